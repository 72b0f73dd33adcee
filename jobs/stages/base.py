"""What the rest of the suite asks of a stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from curricula.jobs.plan import Element, Job, Plan
from curricula.jobs.run import Run
from curricula.jobs.slurm.profile import Ask, Profile, Request, plain_request
from curricula.jobs.study import Study
from curricula.progress import Progress


@dataclass(frozen=True)
class Work:
    """One element of a plan in a run folder."""

    run: Run
    plan: Plan
    job: Job
    element: Element

    @property
    def study(self) -> Study:
        return self.run.study

    @property
    def folder(self) -> Path:
        """Where the element's log, progress and marks lie."""
        return self.run.element(self.job.name, self.element.label)

    @property
    def name(self) -> str:
        return f"{self.job.name}/{self.element.label}"


class Stage(ABC):
    """One kind of work: what it does, when it is complete, what it reads and saves, and what it asks of a cluster.

    Modules of stages import heavy packages inside `run`, so that planning stays light.
    """

    name: ClassVar[str]
    section: ClassVar[str]
    """The key of a profile's `stages` that holds the options of its jobs."""
    trains: ClassVar[bool] = False
    """Whether all processes of an element work together, one for each GPU."""
    needs_torch: ClassVar[bool] = True
    unit: ClassVar[str] = "bytes of results"
    """What `saved` counts."""
    ends_study: ClassVar[bool] = False
    """Whether the study is finished when its element is."""

    def names(self, element: Element) -> tuple[str, ...]:
        """What people may call the stage of a job with elements like this one."""
        return (self.name,)

    @abstractmethod
    def run(self, work: Work, progress: Progress) -> None:
        """Do the work of one element, going on where its outputs end."""

    @abstractmethod
    def ask(self, study: Study) -> Ask:
        """What `study` asks of the cluster for each element."""

    def is_complete(self, work: Work) -> bool:
        """Whether what a done element made is still there: what was deleted or cut short is made again.

        True by default: models and checkpoints may be moved away without being trained again.
        """
        return True

    def inputs(self, work: Work) -> list[Path]:
        """A file of everything that the element reads, which each of its nodes must be able to see."""
        return []

    def saved(self, work: Work) -> int:
        """How much of an element's work would outlive its process, in `unit`; 0 where it is all or nothing."""
        return 0

    def gpu_hours(self, study: Study, element: Element, request: Request) -> float:
        """At most: by the time limit."""
        return request.gpus * request.total_hours

    def request(self, study: Study, profile: Profile | None) -> Request:
        ask = self.ask(study)
        return profile.request(self.name, self.section, ask) if profile else plain_request(self.section, ask)


def saved_steps(branch: Path) -> int:
    """The step of the newest checkpoint of a training run, 0 without one."""
    from curricula.model.checkpoints import latest_checkpoint

    latest = latest_checkpoint(branch / "checkpoints")
    return int(latest.name.rpartition("_")[2]) if latest else 0


def are_filled(*paths: Path) -> bool:
    return all(path.is_file() and path.stat().st_size for path in paths)
