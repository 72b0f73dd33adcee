"""When should safety enter pretraining? A Slurm-native suite that carries out the study from data to report.

The command line is `curricula` (`curricula --help`). The packages, in the order of the data: `curricula.curriculum` (what
the model reads, and when), `curricula.model` (training), `curricula.eval` (what the model does), `curricula.jobs` (where and
when all this runs). Each package says in its docstring what to import from it.
"""

from __future__ import annotations


def __getattr__(name: str) -> str:
    """`__version__` of the installed distribution, looked up when it is asked for: that takes longer than most imports."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("safety-curricula")
    except PackageNotFoundError:  # a copy of the code that is not installed
        return "0+unknown"
