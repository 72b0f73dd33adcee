"""When should safety enter pretraining? A Slurm-native suite that carries out the study from data to report.

    run = curricula.Run("runs/demo")
    pandas.DataFrame(run.answers()).groupby(["arm", "stage"]).verdict.value_counts()

The command line is `curricula` (`curricula --help`). What a notebook wants can be imported from here; docs/library.md has
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
"""A run folder; a study file and its plan; a model of a run, or any other; and what is raised for what a user can mend."""
__all__ = ["__version__", *_OFFERED]


def __getattr__(name: str) -> Any:
    """Each name when it is asked for: some import torch, and looking the version up takes longer than most imports."""
    if name in _OFFERED:
        return getattr(importlib.import_module(f"curricula.{_OFFERED[name]}"), name)
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("safety-curricula")
    except PackageNotFoundError:  # a copy of the code that is not installed
        return "0+unknown"
