"""When should safety enter pretraining? A Slurm-native suite that carries out the study from data to report.

    run = curricula.Run("runs/demo")
    pandas.DataFrame(run.answers()).groupby(["arm", "stage"]).verdict.value_counts()

The command line is `curricula` (`curricula --help`). Notebooks can import the names below from here; docs/library.md has
recipes. The packages, in the order of the data: `curricula.curriculum` (what the model reads, and when), `curricula.model`
(training), `curricula.eval` (what the model does), `curricula.jobs` (where and when all this runs). Each package says in its
docstring what its modules are for.
"""

from __future__ import annotations

import importlib
from typing import Any

_OFFERED = {
    "Run": "jobs.run",
    "load_study": "jobs.study",
    "plan_study": "jobs.graph",
    "load_model": "eval.models",
    "UserError": "errors",
}
"""Public names, and the module that defines each."""
__all__ = ["__version__", *_OFFERED]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: some modules import torch, and the version takes longer to find than most imports."""
    if name in _OFFERED:
        return getattr(importlib.import_module(f"curricula.{_OFFERED[name]}"), name)
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("safety-curricula")
    except PackageNotFoundError:  # a copy of the code that is not installed
        return "0+unknown"
