"""A cluster profile: how one site runs jobs. With a profile for each site, the same study runs anywhere; see env/profiles/.

A profile never changes what is computed. That depends on the study alone.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from curricula.core_yaml import dump_yaml
from curricula.durable import write_text
from curricula.errors import UsageError
from curricula.provenance import PACKAGE
from curricula.secrets import is_secret, secret_in
from curricula.settings import NonNegativeNumber, Positive, PositiveNumber, Settings, in_yaml, located, parse, read_yaml

RESERVE_S = 20
"""A job is requeued at least this long before its time limit."""
LEAST_LEAD_S = RESERVE_S + 5
"""Smallest `lead_time_s`. The batch script stops work that still runs `RESERVE_S` before the limit, so less leaves no time to
save."""
OneLine = Annotated[str, msgspec.Meta(pattern=r"^[^\x00-\x1f\x7f]+\Z")]
"""One line of printable text. Scripts quote it, but a line break could still end a comment there."""


class StageOptions(Settings, frozen=True):
    """What the jobs of a stage request. Options not given here come from `all`; sizes and hours given in neither place come
    from the study."""

    partition: OneLine | None = None
    """`--partition` of sbatch. See `sinfo`."""
    account: OneLine | None = None
    """`--account` of sbatch. See `sacctmgr show associations user=$USER`."""
    qos: OneLine | None = None
    """`--qos` of sbatch."""
    constraint: OneLine | None = None
    """`--constraint` of sbatch: features that nodes must have."""
    reservation: OneLine | None = None
    """`--reservation` of sbatch."""
    exclude: OneLine | None = None
    """Nodes to avoid, such as "n[3,7-9]"."""
    nodes: Positive | None = None
    """Number of nodes for each element that trains. Default: the study's. All other elements use one node."""
    gpus_per_node: Annotated[int, msgspec.Meta(ge=0)] | None = None
    """Number of GPUs on each node. Default: the study's."""
    gpu_type: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]+\Z")] | None = None
    """Type of GPU, if the site requires one: h100 gives --gpus-per-node=h100:8."""
    gpu_option: Literal["gpus-per-node", "gres"] | None = None
    """The sbatch option that requests GPUs. Sites that accept only --gres=gpu:h100:8 need gres. Default: gpus-per-node."""
    cpus_per_task: Positive | None = None
    """CPUs for each process. Training runs one process per GPU; every other element is one process."""
    memory_gb: Annotated[float, msgspec.Meta(ge=0.01, le=1e6)] | None = None
    """Memory on each node. Default: the site's, or with `exclusive` all of it."""
    exclusive: bool | None = None
    """Whether an element has its nodes to itself."""
    hours: PositiveNumber | None = None
    """Longest time limit of a job. Longer work is requeued and continues from its last checkpoint."""
    throttle: Positive | None = None
    """Largest number of elements of an array that run at the same time."""
    options: dict[str, str | int | bool] = {}
    """Other options of sbatch by their long names, such as {licenses: "fs"}. The value false removes an option that the suite
    would set, such as {mem: false} at a site that does not allow --mem."""

    def check(self) -> None:
        for name, value in self.options.items():
            if not re.fullmatch(r"[a-z][a-z-]*", name) or name in MANAGED:
                raise ValueError(
                    f"options names {name!r}; give long options of sbatch without dashes. The suite sets these itself, some of "
                    f"them from keys of their own: {', '.join(MANAGED)}"
                )
            if value is not False and (other := self.set_by_key(name)) is not None:
                key = key_of(name)
                raise ValueError(
                    f"options.{name} is {in_yaml(value)}, but the key {key}, here or under `all`, is {in_yaml(other)}; keep "
                    "one of them"
                )
            if re.search(r"[\x00-\x1f\x7f]", str(value)):
                raise ValueError(f"options.{name} is {value!r}; write it on one line")
            if name == "gres" and re.search(r"(^|,)(gres/)?gpu\b", str(value)):
                raise ValueError(
                    f"options.gres asks for {value!r}, but gpus_per_node asks for GPUs already; use gpus_per_node and gpu_type "
                    "with gpu_option: gres"
                )

    def set_by_key(self, option: str) -> Any:
        """The value of the key that sets this option of sbatch; None if there is no such key, or it is not set."""
        return getattr(self, key_of(option), None)


MANAGED = ("array", "chdir", "dependency", "error", "export", "job-name", "open-mode", "output", "parsable", "requeue",
           "no-requeue", "signal", "test-only", "wait", "wrap", "ntasks", "ntasks-per-node", "nodes", "time", "clusters",
           "gpus", "gpus-per-node", "gpus-per-task")  # fmt: skip
"""Options of sbatch that the suite sets itself."""
OTHER_KEYS = {"mem": "memory_gb", "mem-per-cpu": "memory_gb", "mem-per-gpu": "memory_gb", "cpus-per-gpu": "cpus_per_task"}
"""Options of sbatch that are set by a key of another name."""


def key_of(option: str) -> str:
    """The name of the key that sets an option of sbatch, if there is one."""
    return OTHER_KEYS.get(option, option.replace("-", "_"))


class Stages(Settings, frozen=True):
    """The options for each group of stages."""

    all: StageOptions = StageOptions()
    """Defaults for all the others."""
    data: StageOptions = StageOptions()
    """Fetching, preparing and tokenising."""
    pretraining: StageOptions = StageOptions()
    """Segments of the training tree."""
    tuning: StageOptions = StageOptions()
    """All finetuning stages, including the export of their models."""
    export: StageOptions = StageOptions()
    """The export of pretrained and midtrained models."""
    evaluation: StageOptions = StageOptions()
    """Evaluation, after and during training; also merging and judging answers if the judge needs a GPU."""
    report: StageOptions = StageOptions()
    """The page with figures and tables; also merging and judging answers if the judge needs no GPU."""

    def check(self) -> None:
        for name in ("data", "export", "evaluation", "report"):
            if (nodes := getattr(self, name).nodes or 1) > 1:
                raise ValueError(f"{name}.nodes is {nodes}, but only training runs on several nodes; remove the key")


class Container(Settings, frozen=True):
    """The image that elements run in. The batch scripts themselves run outside it, where Slurm's commands are."""

    kind: Literal["apptainer", "pyxis"]
    """Runtime of the image: apptainer, or Slurm's plugin pyxis."""
    image: OneLine
    """A .sif or .sqsh file, or a name that the runtime pulls."""
    mounts: tuple[OneLine, ...] = ()
    """Further mounts: folders, or "outside:inside". The run folder and the data folder are always mounted."""
    python: OneLine = "python3"
    """The interpreter in the image."""
    options: tuple[OneLine, ...] = ()
    """Further options of `apptainer exec` or, with pyxis, of srun."""

    def check(self) -> None:
        for mount in self.mounts:
            if "," in mount:
                raise ValueError(f"mounts has {mount!r}, but the runtime ends a mount at a comma; list two entries instead")


class Preflight(Settings, frozen=True):
    """What nodes must satisfy."""

    min_bandwidth_gb_s: PositiveNumber | None = None
    """Lowest acceptable bandwidth of an all-reduce over all processes (`busbw` of NCCL's tests). By default it is only measured
    and logged."""
    max_skew_s: PositiveNumber = 5.0
    """Largest acceptable difference between a node's clock and the median of all nodes."""
    min_free_gb: NonNegativeNumber = 1.0
    """Smallest acceptable free space on the run folder's disk and in the node's temporary folder."""
    patience_s: PositiveNumber = 300.0
    """How long to wait until all processes have started. Containers and cold file systems are slow."""


class Profile(Settings, frozen=True):
    """Settings for one site, or for one part of a site."""

    description: OneLine | None = None
    """A line about the site, for people."""
    runs: OneLine | None = None
    """Folder that contains the run folders, on a disk that all nodes see. ~ and $NAME are expanded. Default: runs."""
    cluster: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]*\Z")] | None = None
    """Cluster that jobs are submitted to (-M), if the login node serves several. Default: the login node's own."""
    stages: Stages = Stages()
    """What jobs request."""
    setup: tuple[OneLine, ...] = ()
    """Lines of bash to run before the work, such as "module load python/3.12". If one fails, the job starts again elsewhere."""
    environment: dict[str, OneLine | int] = {}
    """Environment variables of the work, such as those for NCCL and the fabric. Names are in capital letters, or end in
    `_proxy`. Do not put secrets here. Values are taken literally; for one with ~ or $NAME, write `export` in `setup`."""
    secrets_file: OneLine | None = None
    """File of NAME=value lines that only you can read (chmod 600). The work gets them as environment variables. Everything
    after the `=` is the value, taken literally; quotes around the whole value are removed. In this path, and in those of
    `python`, `image` and `mounts`, ~ and $NAME are expanded when you submit."""
    node_scratch: OneLine | None = None
    """Folder on each node's own disk, such as $SLURM_TMPDIR. Pretraining copies its shards there first. Each node expands
    $NAME. With a container, name a folder that is the same in every job, and list it in `mounts` too."""
    python: OneLine | None = None
    """The interpreter on the nodes. Default: the one that runs `curricula submit`."""
    container: Container | None = None
    """The image that elements run in. Default: none."""
    srun_options: tuple[OneLine, ...] = ()
    """Further options of srun."""
    max_array_size: Positive = 1001
    """Largest number of elements in an array: MaxArraySize of `scontrol show config`. Longer arrays are split."""
    continuations: Annotated[int, msgspec.Meta(ge=0, le=200)] | None = None
    """Number of follow-up arrays to submit for an array that Slurm will not requeue. Default: as many as its hours need."""
    lead_time_s: Annotated[int, msgspec.Meta(ge=1, le=3600)] = 120
    """How long before its time limit a job is told to save. Allow more than a step and a save take."""
    restarts_without_progress: Positive = 5
    """A job gives up after this many failed or timed-out starts that saved nothing new; jobs that wait for it are cancelled.
    Preemptions and lost nodes do not count."""
    gpu_hours_limit: PositiveNumber = 100
    """`curricula submit` asks for confirmation before it submits more than this."""
    preflight: Preflight = Preflight()
    """What nodes must satisfy before a job with several processes begins."""
    notify: OneLine | None = None
    """Command to run when an element fails and when the report is done; see docs/monitoring.md."""

    def check(self) -> None:
        if self.lead_time_s < LEAST_LEAD_S:
            raise ValueError(
                f"lead_time_s is {self.lead_time_s}, but work is stopped {RESERVE_S} s before the time limit, so nothing would "
                f"be saved; the smallest that works is {LEAST_LEAD_S}"
            )
        if self.container:
            self.require_default(["python"], "without `container`, which has a key `python` of its own")
        for section in Stages.__struct_fields__[1:]:
            with located(f"stages.{section}"):
                self.options(section)  # checks them together with those of `all`
        for name, value in self.environment.items():
            is_name = re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) and (not name.islower() or name.endswith("_proxy"))
            if not is_name or name == "IFS":  # other names might overwrite variables of the batch script
                raise ValueError(f"environment names {name!r}; use capital letters, digits and '_', and not IFS")
            if is_secret(name, str(value)):
                raise ValueError(f"environment names {name}, which every script would show; put it in secrets_file")
        for key, text in texts_in(msgspec.to_builtins(self)):
            if secret := secret_in(text):
                raise ValueError(f"{key} holds {secret}, which files would show; put it in a variable of secrets_file")
        try:
            words = shlex.split(self.notify or "")
        except ValueError as error:
            raise ValueError(f"notify is {self.notify!r} ({error}); quote its words as in a shell") from None
        if self.notify and not words:
            raise ValueError(f"notify is {self.notify!r}, which names no command; give one, or remove the key")

    def options(self, section: str) -> StageOptions:
        """The options of a section of `stages`, with defaults from `all`."""
        general, own = (msgspec.structs.asdict(options) for options in (self.stages.all, getattr(self.stages, section)))
        given = {name: value for name, value in own.items() if value is not None}
        return StageOptions(**{**general, **given, "options": {**general["options"], **own["options"]}})

    def request(self, stage: str, section: str, ask: Ask) -> Request:
        """What each element of a stage requests: the profile's sizes and hours, or the study's if the profile gives none.

        Raises UsageError if a job would have to save as soon as it begins.
        """
        request = request_of(section, ask, self.options(section))
        longest = min(ask.hours, request.options.hours or ask.hours)
        if longest * 3600 <= self.lead_time_s:
            where = f"stages.{section}.hours" if longest == request.options.hours else f"the study's hours for {stage}"
            shorter = ", or a shorter lead_time_s" if longest * 3600 > LEAST_LEAD_S else ""
            raise UsageError(
                f"{where}: {longest:g} h ({longest * 3600:.0f} s) are no longer than the lead_time_s of {self.lead_time_s}, so "
                f"the job would be told to save as soon as it begins; give more hours{shorter}"
            )
        return request

    def run_root(self, name: str) -> Path:
        """The run folder of this name. Raises UsageError if `runs` names a variable that is not set."""
        return Path(expanded("runs", self.runs or "runs")) / name

    def interpreter(self) -> str:
        return self.container.python if self.container else expanded("python", self.python or sys.executable)


@dataclass(frozen=True)
class Ask:
    """What a study asks for each element of a stage, before the site's profile is applied."""

    nodes: int = 1
    gpus_per_node: int = 0
    hours: float = 1.0
    """Time limit: the longest that the element is expected to take."""
    cpus_per_task: int | None = None
    one_task_per_gpu: bool = False
    """Whether each GPU has a process of its own, as in training."""
    takes_gpus: bool = True
    """Whether the stage can use the GPUs that the profile gives its section."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What one element of a job requests of the cluster."""

    nodes: int = 1
    tasks_per_node: int = 1
    gpus_per_node: int = 0
    cpus_per_task: int | None = None
    minutes: int = 60
    """Time limit of one start of the job."""
    total_hours: float = 1.0
    """Time that the study expects the element to take over all its starts."""
    section: str = ""
    """Section of the profile's `stages` that the options come from."""
    options: StageOptions = StageOptions()
    """Partition, account and the site's other options."""

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


def expanded(key: str, path: str) -> str:
    """Expand ~ and $NAME in a path of a profile. Raises UsageError if a variable is not set on this machine."""
    result = os.path.expandvars(os.path.expanduser(path))
    if re.search(r"\$\{?[A-Za-z_]\w*(?![\w@])", result):  # $oauthtoken@ is a user name at a registry
        raise UsageError(f"{key}: {path} names a variable that is not set here; set it, or write the path out")
    return result


def texts_in(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """All strings in a plain value, each with its dotted key."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for name, part in entries:
        yield from texts_in(part, f"{key}.{name}".lstrip("."))
    if isinstance(value, str):
        yield key, value


def request_of(section: str, ask: Ask, options: StageOptions) -> Request:
    """What a stage asks for, with the profile's options applied."""
    gpus = ask.gpus_per_node
    if options.gpus_per_node is not None and ask.takes_gpus:
        gpus = options.gpus_per_node
    return Request(
        nodes=(options.nodes or ask.nodes) if ask.one_task_per_gpu else 1,
        tasks_per_node=max(1, gpus) if ask.one_task_per_gpu else 1,
        gpus_per_node=gpus,
        cpus_per_task=options.cpus_per_task or ask.cpus_per_task,
        minutes=math.ceil(min(ask.hours, options.hours or ask.hours) * 60),
        total_hours=ask.hours,
        section=section,
        options=options,
    )


def load_profile(path: Path) -> Profile:
    """Read and check a profile, given by its path or by the short name of one in env/profiles/.

    Raises UsageError that names the file, the key, its value and what to write instead.
    """
    if not path.is_file() and path.parent == Path() and not path.suffix:
        path = PACKAGE / "profiles" / f"{path}.yaml"
    raw = read_yaml(path, "no such profile; copy one of env/profiles/ and change its marked lines")
    return with_secrets(parse(raw, Profile, str(path)), path)


def with_secrets(profile: Profile, path: Path) -> Profile:
    """The profile of file `path`, with an absolute path to the secrets file; one with ~ or $NAME stays as it is.

    Jobs read the path from other folders. ~ and $NAME let each member of a team name a file of their own.

    Raises UsageError if this user cannot read the file, others can, or a line of it is not NAME=value.
    """
    if not profile.secrets_file:
        return profile
    file = expanded("secrets_file", profile.secrets_file)
    secrets = Path(file).absolute()
    try:
        mode = stat.S_IMODE(secrets.stat().st_mode)
        lines = secrets.read_bytes().splitlines()
    except OSError as error:
        raise UsageError(
            f"{path}: secrets_file is {secrets}, which cannot be read ({error.strerror}); "
            "name a file of your own, in a profile given with --profile"
        ) from None
    if mode & 0o077:
        raise UsageError(f"{secrets}: others can read it (mode {mode:o}); protect it with `chmod 600 {secrets}`")
    for number, line in enumerate(lines, start=1):
        if not re.match(rb"\s*(#|$)|(export +)?[A-Za-z_][A-Za-z0-9_]*=", line):
            raise UsageError(
                f"{secrets}: line {number} is not NAME=value; write each value on one line, and begin comments with '#'"
            )
    was_expanded = file != profile.secrets_file
    return profile if was_expanded else msgspec.structs.replace(profile, secrets_file=str(secrets))


def keep_profile(path: Path, profile: Profile) -> None:
    """Write the profile into a run folder, for its jobs and later submissions."""
    write_text(path, dump_yaml(msgspec.to_builtins(profile)))


def kept_profile(path: Path) -> Profile:
    """The profile of a run's latest submission. Raises UsageError if there is none or it is damaged."""
    return parse(read_yaml(path, "the run was submitted without it; name one with --profile"), Profile, str(path))


def kept_cluster(path: Path) -> str | None:
    """The cluster of a run's latest submission, even if the rest of the profile is no longer valid."""
    try:
        raw = read_yaml(path, "")
    except UsageError:
        return None
    return raw.get("cluster") if isinstance(raw, dict) else None
