"""The interface of a stage, and the element that it works on."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from curricula.curriculum.plan import Arm
from curricula.errors import StorageError, UserError
from curricula.jobs.plan import Element, Job, Key, Plan
from curricula.jobs.run import Run
from curricula.jobs.slurm.profile import Ask, Request
from curricula.jobs.study import Study
from curricula.model.checkpoints.folder import (
    checkpoints_to_resume,
    identity,
    read_info,
    require_checkpoint,
    step_folder,
    step_of,
)
from curricula.model.study import Allocation
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
        """The study, or that of the element's point if it belongs to one of a sweep."""
        return self.plan.study.at(self.element.variant)

    @property
    def arm(self) -> Arm:
        """The training whose model the element makes or measures."""
        return self.study.training(self.element.arm, self.element.seed)

    @property
    def key(self) -> str:
        """The name of that training's folders."""
        return self.study.replicate_of(self.element.seed).named(self.element.arm)

    @property
    def model_folder(self) -> Path:
        return self.run.model(self.key, self.element.model)

    @property
    def rows_folder(self) -> Path:
        return self.run.evaluation(self.key, self.element.model)

    @property
    def folder(self) -> Path:
        """The folder of the element's log, progress and marks."""
        return self.run.element(*self.place)

    @property
    def training(self) -> Path:
        """The folder of the element's training: that of its segment's branch, else that of its stage."""
        segment = self.plan.segments.get(self.element.segment)
        return self.run.branch(segment.branch) if segment else self.run.tuning(self.key, self.element.kind)

    @property
    def place(self) -> Key:
        return self.job.name, self.element.label

    @property
    def name(self) -> str:
        return "/".join(self.place)


class Stage(ABC):
    """One kind of work: what it does, when it is complete, what it reads and saves, and what it asks of a cluster.

    Stages import heavy packages inside their methods, so that planning stays quick.
    """

    name: ClassVar[str]
    section: ClassVar[str]
    """The key of a profile's `stages` with the options of its jobs."""
    needs_torch: ClassVar[bool] = True
    """Whether its elements import torch, which the local launcher then imports once for all of them."""
    unit: ClassVar[str] = "bytes of results"
    """What `saved` counts."""
    lost: ClassVar[str] = "what it made is gone, or something else is in its place"
    """What to report as wrong when an element is marked as done but is not complete."""
    ends_study: ClassVar[bool] = False
    """Whether the study is done when its element is."""

    def section_of(self, study: Study) -> str:
        """The section of the profile whose options apply to its jobs in this study."""
        return self.section

    def names(self, element: Element) -> tuple[str, ...]:
        """The names by which a command can select the job of this element."""
        return (self.name,)

    @abstractmethod
    def run(self, work: Work, progress: Progress) -> None:
        """Do the work of one element, resuming where its outputs end."""

    def ask(self, study: Study) -> Ask:
        """What `study` asks of the cluster for each element; by default, `data_hours` of time and no GPU."""
        resources = study.resources
        return Ask(hours=resources.data_hours, cpus_per_task=resources.data_cpus if self.section == "data" else None)

    def global_batch(self, study: Study, element: Element) -> int:
        """Rows of a training step, which must divide evenly among the element's processes; 0 if the stage trains nothing."""
        return 0

    def is_complete(self, work: Work, made: str | None) -> bool:
        """Whether the outputs of an element that is marked as done are still there; else it runs again. True by default:
        models can be moved away without being made again. `made` is what the method of that name returns now."""
        return True

    def readers(self, work: Work) -> tuple[str, ...]:
        """Stages that read the element's outputs. Once all their elements are done, lost outputs need not be made again. By
        default, they are made again in any case."""
        return ()

    def made(self, work: Work) -> str | None:
        """What tells an element's outputs from others in their place; the element is done only while it does not change. None
        if the outputs were moved away, and by default."""
        return None

    def shared(self, work: Work) -> Path | None:
        """A folder that other elements also write to, so that only one of them can run at a time; None if there is none."""
        return None

    def inputs(self, work: Work) -> list[Path]:
        """Files that each of the element's nodes must be able to read: one from each dataset or folder that it uses."""
        return []

    def saved(self, work: Work) -> int:
        """How much of the element's work would survive a kill now, in `unit`; 0 if the stage keeps no unfinished work."""
        return 0

    def flops(self, study: Study, element: Element) -> float:
        """Rough FLOPs of the element's training or answers; 0 for elements that do neither."""
        return 0.0

    def gpu_hours(self, study: Study, element: Element, request: Request) -> float:
        """The GPU-hours of the element; by default, the most that the time limit allows one start."""
        return request.gpus * request.total_hours


class Training(Stage):
    """A stage whose elements each carry out a training, or a part of one, in the folder `Work.training`. The processes of an
    element, one for each GPU, train together."""

    unit = "steps"

    def stop(self, work: Work) -> int | None:
        """The step up to which the element trains; None for the end of the training."""
        return None

    def ask(self, study: Study) -> Ask:
        """The allocation that `resources` has under the section's name."""
        asked: Allocation = getattr(study.resources, self.section)
        return Ask(asked.nodes, asked.gpus_per_node, asked.hours, one_task_per_gpu=True)

    def is_complete(self, work: Work, made: str | None) -> bool:
        """Whether its last checkpoint is complete, by the names and sizes of its files, or nothing has yet to begin from it.

        A lost model alone is no reason to train again: the evaluation writes it from that checkpoint. Neither is a missing
        folder of checkpoints, which may have been moved away, unless another segment needs it.
        """
        return bool(made) or not is_awaited(work)

    def made(self, work: Work) -> str | None:
        return training_behind(work.training / "checkpoints", self.stop(work))

    def saved(self, work: Work) -> int:
        return saved_steps(work.training, self.stop(work))


def saved_steps(branch: Path, stop: int | None = None) -> int:
    """The step of the newest checkpoint, at most at `stop`, from which training could resume; 0 if there is none."""
    # Not that of `latest`, which may be set aside as damaged, or lie beyond a lost one at `stop` that is trained again.
    steps = map(step_of, checkpoints_to_resume(branch / "checkpoints"))
    return next((step for step in steps if stop is None or step <= stop), 0)


def checkpoint_to_resume(branch: Path) -> Path | None:
    """The checkpoint from which training would resume: the newest whose files have the right names and sizes, else the newest
    of all; None if there is none."""
    candidates = checkpoints_to_resume(branch / "checkpoints")
    for folder in candidates:
        with contextlib.suppress(UserError, OSError):
            read_info(folder)
            return folder
    return next(iter(candidates), None)


def training_behind(checkpoints: Path, step: int | None = None) -> str | None:
    """The identity of the training that made the checkpoint at `step`, by default the one that `latest` names; None if that
    checkpoint is not complete."""
    if step is None and not (checkpoints / "latest").is_file():  # an older checkpoint is not the training's result
        return None
    try:
        return identity(require_checkpoint(checkpoints) if step is None else step_folder(checkpoints, step))
    except StorageError:  # it says nothing about the checkpoint
        raise
    except UserError:
        return None


def is_awaited(work: Work) -> bool:
    """Whether another element has yet to begin from the last checkpoint of this one's training: it is not done, and has saved
    no checkpoint of its own. If the folder of checkpoints is gone, only segments of pretraining count."""
    is_kept = (work.training / "checkpoints").is_dir()
    later = [job for job in work.plan.jobs if work.job.name in [edge.job for edge in job.needs]]  # few, in a plan of thousands
    others = (Work(work.run, work.plan, job, element) for job in later for element in job.elements)
    children = (other for other in others if (work.place, True) in work.plan.needs[other.place])
    return any((is_kept or child.element.segment) and not _has_begun(child, work.training) for child in children)


def _has_begun(child: Work, training: Path) -> bool:
    """Whether an element no longer needs the checkpoint at the end of `training`."""
    if child.element.eval_task or (child.folder / "done.json").exists():  # evaluations read the exported model
        return True
    # A later segment of the same branch resumes from any checkpoint there; an export shares the folder but saves none.
    is_training = child.element.segment or child.training != training
    return bool(is_training and any((child.training / "checkpoints").glob("step_*")))


def are_filled(*paths: Path) -> bool:
    return all(path.is_file() and path.stat().st_size for path in paths)


def size_of(folder: Path, pattern: str) -> int:
    """Bytes of the files in `folder` that match. Hidden ones do not count: locks and temporary files are not results."""
    total = 0
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() and not path.name.startswith(".") else 0
    return total
