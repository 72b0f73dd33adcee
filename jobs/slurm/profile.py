"""A cluster profile: what a site wants to be told, so that the same study runs on any. Profiles are in env/profiles/.

A profile says how jobs are asked for (partition, account, nodes, time) and what surrounds the work on the nodes (modules, a
container, the fabric's environment). What is computed is the study's alone.
"""

from __future__ import annotations

import math
import os
import re
import stat
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from curricula.durable import write_text
from curricula.errors import UsageError
from curricula.jobs.graph import LIGHT_STAGES, Job
from curricula.jobs.monitor.notifications import SECRET
from curricula.jobs.preflight.preflight import Preflight
from curricula.jobs.run import Run
from curricula.jobs.study import Study
from curricula.provenance import PACKAGE
from curricula.settings import Positive, PositiveNumber, Settings, parse, read_yaml

# One line of printable text: such words go into scripts, quoted, where a line break could end a comment.
OneLine = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f]+\Z")]
SECTIONS = {
    **dict.fromkeys(LIGHT_STAGES, "data"),
    "pretrain": "pretraining",
    "tune": "tuning",
    "export": "export",
    "evaluate": "evaluation",
    "merge": "evaluation",
    "report": "report",
}
"""Under which key of `stages` the jobs of each stage of the graph are."""
TRAINING = ("pretrain", "tune")


class StageOptions(Settings, frozen=True):
    """What jobs of a stage ask for. What is absent is taken from the stage `all`, sizes and hours from the study."""

    partition: OneLine | None = None
    account: OneLine | None = None
    qos: OneLine | None = None
    constraint: OneLine | None = None
    reservation: OneLine | None = None
    exclude: OneLine | None = None
    """Nodes to stay away from, such as "n[3,7-9]"."""
    nodes: Positive | None = None
    gpus_per_node: Annotated[int, msgspec.Meta(ge=0)] | None = None
    gpu_type: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]+\Z")] | None = None
    """Where the site wants the kind of GPU named: h100 gives --gpus-per-node=h100:8."""
    cpus_per_task: Positive | None = None
    memory_gb: PositiveNumber | None = None
    """Of each node."""
    exclusive: bool | None = None
    hours: PositiveNumber | None = None
    """The longest a job may run at a time; what takes longer is requeued and goes on from its last checkpoint."""
    throttle: Positive | None = None
    """How many elements of an array run at a time."""
    options: dict[str, str | int | bool] = {}
    """Any other option of sbatch by its long name, such as {licenses: "fs"}."""

    def check(self) -> None:
        for name, value in self.options.items():
            if not re.fullmatch(r"[a-z][a-z-]*", name) or name in MANAGED:
                raise ValueError(
                    f"options names {name!r}; give long options of sbatch without dashes, and none of {', '.join(MANAGED)}, "
                    "which the suite sets"
                )
            if re.search(r"[\x00-\x1f\x7f]", str(value)):
                raise ValueError(f"options.{name} is {value!r}; write it on one line")


MANAGED = ("array", "chdir", "dependency", "error", "export", "job-name", "open-mode", "output", "parsable", "requeue",
           "no-requeue", "signal", "test-only", "wait", "wrap", "ntasks", "ntasks-per-node")  # fmt: skip


class Stages(Settings, frozen=True):
    """`all`, and what differs from it: data is fetching, preparing and tokenising; tuning both finetuning stages with the
    export of their models; export that of base models; evaluation also the merging and judging of answers."""

    all: StageOptions = StageOptions()
    data: StageOptions = StageOptions()
    pretraining: StageOptions = StageOptions()
    tuning: StageOptions = StageOptions()
    export: StageOptions = StageOptions()
    evaluation: StageOptions = StageOptions()
    report: StageOptions = StageOptions()


class Container(Settings, frozen=True):
    """The image that the elements run in; the batch scripts themselves run outside, where Slurm's commands are."""

    kind: Literal["apptainer", "pyxis"]
    image: OneLine
    """A .sif or .sqsh file, or a name that the runtime pulls."""
    mounts: tuple[OneLine, ...] = ()
    """Folders, or "outside:inside", besides the run folder and the data folder."""
    python: OneLine = "python3"
    """In the image."""
    options: tuple[OneLine, ...] = ()
    """More words for `apptainer exec` or for srun."""

    def check(self) -> None:
        for mount in self.mounts:
            if "," in mount:
                raise ValueError(f"mounts has {mount!r}, where the runtime reads a comma as the end; list two entries")


class Profile(Settings, frozen=True):
    """One site, or one part of a site."""

    description: OneLine | None = None
    runs: OneLine | None = None
    """Folder for run folders, on a disk that all nodes see; ~ and $NAME are filled in. Default: runs."""
    stages: Stages = Stages()
    setup: tuple[OneLine, ...] = ()
    """Lines of bash before the work, such as "module load cuda/12.8". They are run as they stand."""
    environment: dict[str, OneLine | int] = {}
    secrets_file: OneLine | None = None
    """A file of NAME=value lines that only you can read (chmod 600), given to the work as environment."""
    python: OneLine | None = None
    """The interpreter on the nodes. Default: the one that runs `curricula submit`."""
    container: Container | None = None
    srun_options: tuple[OneLine, ...] = ()
    max_array_size: Positive = 1001
    """`scontrol show config` says MaxArraySize; longer arrays are split."""
    lead_time_s: Annotated[int, msgspec.Meta(ge=10, le=3600)] = 120
    """How long before its time limit a job is told to save: more than a step and a save take."""
    restarts_without_progress: Positive = 5
    """A job that was requeued this often without saving anything new gives up, and what waits for it is cancelled."""
    gpu_hours_limit: PositiveNumber = 100
    """`curricula submit` asks before it submits more than this."""
    preflight: Preflight = Preflight()
    """What the nodes of a job of many processes must fulfil before it begins."""
    notify: OneLine | None = None
    """A command that is told when an element fails and when the report is done: see docs/monitoring.md."""

    def check(self) -> None:
        for name in self.environment:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(
                    f"environment names {name!r}, which is no name of a variable; use letters, digits and '_'"
                )
            if SECRET.search(name):
                raise ValueError(
                    f"environment names {name}, which would be written into every script; put it into secrets_file"
                )

    def options(self, job: Job) -> StageOptions:
        """What jobs of this one's stage ask for, `all` filled in."""
        general = self.stages.all
        own: StageOptions = getattr(self.stages, SECTIONS[job.stage])
        values: dict[str, Any] = {}
        for name in StageOptions.__struct_fields__:
            value, fallback = getattr(own, name), getattr(general, name)
            values[name] = {**fallback, **value} if name == "options" else fallback if value is None else value
        return StageOptions(**values)

    def request(self, job: Job, study: Study) -> Request:
        """Nodes, tasks, processors and minutes of each element of the job: the profile's, else the study's.

        Raises UsageError when that time is over before a job could save.
        """
        own, resources = self.options(job), study.resources
        nodes, gpus, hours, cpus = 1, 0, resources.data_hours, None
        if job.stage in TRAINING:
            asked = resources.pretraining if job.stage == "pretrain" else resources.tuning
            nodes, gpus, hours = asked.nodes, asked.gpus_per_node, asked.hours
        elif job.stage == "evaluate" or (job.stage == "merge" and study.evaluation.judged_on_gpu):
            gpus, hours = min(1, resources.evaluation.gpus_per_node), resources.evaluation.hours
        elif job.stage in LIGHT_STAGES:
            cpus = resources.data_cpus
        nodes = own.nodes or nodes
        if own.gpus_per_node is not None and (gpus or job.stage != "merge"):  # most judges need none
            gpus = own.gpus_per_node
        longest = min(hours, own.hours or hours)
        if longest * 3600 <= self.lead_time_s:
            where = (
                f"stages.{SECTIONS[job.stage]}.hours" if longest == own.hours else f"the study's hours for {job.stage}"
            )
            raise UsageError(
                f"{where}: {longest:g} h ({longest * 3600:.0f} s) are no longer than lead_time_s of {self.lead_time_s}, so the "
                "job would be told to save as soon as it begins; give more hours, or a shorter lead_time_s"
            )
        return Request(
            nodes=nodes,
            tasks_per_node=max(1, gpus) if job.stage in TRAINING else 1,
            gpus_per_node=gpus,
            cpus_per_task=own.cpus_per_task or cpus,
            minutes=math.ceil(longest * 60),
            total_hours=hours,
        )

    def run_root(self, name: str) -> Path:
        """Raises UsageError where `runs` names a variable that is not set."""
        folder = os.path.expandvars(os.path.expanduser(self.runs or "runs"))
        if "$" in folder:
            raise UsageError(
                f"runs: {self.runs} names a variable that is not set here; set it, or write the folder out"
            )
        return Path(folder) / name

    def interpreter(self) -> str:
        return self.container.python if self.container else self.python or sys.executable


class Request(msgspec.Struct, frozen=True):
    """What one element of a job asks of the cluster."""

    nodes: int
    tasks_per_node: int
    """One for each GPU where it trains."""
    gpus_per_node: int
    cpus_per_task: int | None
    minutes: int
    """The longest at a time."""
    total_hours: float
    """The longest in all, requeued as often as that takes."""

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


def load_profile(path: Path) -> Profile:
    """Read and validate a profile; raises UsageError that names the file, the key, its value and what to write."""
    if not path.exists() and path.parent == Path() and not path.suffix:
        path = PACKAGE / "profiles" / f"{path}.yaml"  # by its short name
    profile = parse(
        read_yaml(path, "no such profile; copy one of env/profiles/ and change its marked lines"), Profile, str(path)
    )
    if profile.secrets_file:
        _check_secrets(path, Path(os.path.expanduser(profile.secrets_file)))
    return profile


def keep_profile(run: Run, profile: Profile) -> None:
    """Leave the profile in the run folder: for the jobs, and for submitting again."""
    write_text(run.profile, yaml.safe_dump(msgspec.to_builtins(profile), sort_keys=False))


def profile_of(run: Run) -> Profile:
    """The profile by which the run was last submitted; raises UsageError without one, or when it is damaged."""
    return parse(
        read_yaml(run.profile, "the run was submitted without it; name one with --profile"), Profile, str(run.profile)
    )


def _check_secrets(profile: Path, secrets: Path) -> None:
    try:
        mode = stat.S_IMODE(secrets.stat().st_mode)
    except OSError as error:
        raise UsageError(f"{profile}: secrets_file is {secrets}, which cannot be read ({error.strerror})") from None
    if mode & 0o077:
        raise UsageError(f"{secrets}: others may read it (mode {mode:o}); protect it with `chmod 600 {secrets}`")
