"""When and where a study runs: the study file, its plan, the launchers, monitoring and the command line.

    study = load_study(Path("jobs/studies/demo.yaml"))
    for job, element in plan_study(study).elements():
        print(job.name, element.label, element.gpu_hours)

The names below are imported when they are first used, so that the command line's help appears at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curricula.jobs.graph import plan_study as plan_study
    from curricula.jobs.plan import Plan as Plan
    from curricula.jobs.run import Run as Run
    from curricula.jobs.study import Study as Study
    from curricula.jobs.study import load_study as load_study

_MODULES = {"plan_study": "graph", "Plan": "plan", "Run": "run", "Study": "study", "load_study": "study"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
