"""Calls Slurm's commands and parses what they print: squeue, sacct, scancel, scontrol, sacctmgr and sbatch.

Slurm reads variables such as SBATCH_PARTITION or SQUEUE_STATES as options that override those in a script. The commands do not
get them, nor those of another job's ranks, so that the profile and the study alone decide what a job requests.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import tenacity

from curricula.errors import UserError
from curricula.jobs.slurm.profile import Profile, Request
from curricula.terminal import one_line

PATIENCE_S = 60.0
"""Time limit for a command."""
RESTART_PATIENCE_S = 300.0
"""How long to wait for a controller that restarts."""
COLUMNS = {"ArrayJobID": 24, "ArrayTaskID": 24, "State": 24, "RestartCnt": 12, "Reason": 96, "NodeList": 256, "STDOUT": 4096}
"""The columns that squeue prints, and their widths in characters."""
RUNNING = {"RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"}
"""Slurm's states of jobs that have nodes."""
WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
"""Slurm's states of jobs that wait for nodes."""
AWAY = re.compile(
    r"Unable to contact slurm controller|Socket timed out|Zero Bytes were transmitted|Connection refused|Connection timed out|"
    r"Slurm backup controller|Slurmctld.*(down|not running)|Transport endpoint|Slurm temporarily unable|"
    r"Munge (en|de)code failed|Protocol authentication error|Could not establish a configuration source",
    re.IGNORECASE,
)
"""What Slurm's commands print when the controller does not answer, or munge, which authenticates them, restarts."""
STARTS = "to start at"
"""What `sbatch --test-only` prints for a job that can start, and only then."""
CORRECT = "`curricula cancel`, correct the profile and submit again"
REASONS = {
    "Priority": "other jobs are ahead in the queue",
    "Resources": "waits for free nodes",
    "Dependency": "waits for jobs it needs",
    "DependencyNeverSatisfied": "a job it needs failed or was cancelled: fix that, then `curricula retry`",
    "JobArrayTaskLimit": "the array's limit of simultaneous tasks",
    "BeginTime": "was requeued and starts again soon",
    "JobHeldUser": "held: `scontrol release TASKS` releases it",
    "JobHeldAdmin": "held by an administrator",
    "JobHoldMaxRequeue": "requeued too often: `scontrol release TASKS` lets it continue",
    "job requeued in held state": "held: its log may say why; `scontrol release TASKS` releases it",
    "launch failed requeued held": "its node could not start it: `scontrol release TASKS` lets it start elsewhere",
    "ReqNodeNotAvail": "nodes it asks for are down, drained or reserved",
    "PartitionTimeLimit": f"asks for more time than the partition allows: {CORRECT}",
    "PartitionNodeLimit": f"asks for more nodes than the partition allows: {CORRECT}",
    "BadConstraints": f"no node can satisfy its request: {CORRECT}",
    "QOSMaxJobsPerUserLimit": "your limit of running jobs is reached",
    "AssocMaxJobsLimit": "your limit of running jobs is reached",
    "QOSMaxWallDurationPerJobLimit": f"asks for more time than its QOS allows: {CORRECT}",
    "AssocMaxWallDurationPerJobLimit": f"asks for more time than your account allows: {CORRECT}",
    "QOSMaxGRESPerUser": "your limit of GPUs is reached",
    "QOSGrpGRESMinutes": "its QOS's budget of GPU time is used up",
    "QOSGrpGRES": "its QOS's limit of GPUs is reached",
    "AssocGrpGRESMinutes": "your account's budget of GPU time is used up",
    "AssocGrpGRES": "your account's limit of GPUs is reached",
}
"""What Slurm's reasons for waiting mean. TASKS stands for the tasks that wait."""

RANKS = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
"""Variables that torchrun sets for each rank. A profile's `environment` can set some of them for its jobs."""
KEPT = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_SACK_KEY", "SLURM_SACK_JWKS")
"""Variables that the commands keep: they say where Slurm's controller is, and who calls it."""
IGNORED = f"^((SBATCH|SRUN|SLURM|SALLOC|SQUEUE|SACCT|SCANCEL|SCONTROL)_.*|TORCHELASTIC_.*|{'|'.join(RANKS)})$"
"""Regular expression, in Python and bash, for `RANKS` and Slurm's variables: its commands' options, facts of an allocation."""

_cluster: str | None = None


def on_cluster(name: str | None) -> None:
    """Direct the Slurm commands of this process to the cluster of that name. None means the machine's own cluster."""
    global _cluster
    _cluster = name


class ControllerAway(UserError):
    """Slurm's controller does not answer now, but may do so later."""


class QueueFull(UserError):
    """This user's limit of submitted jobs is reached; Slurm accepts more only after some have ended."""


class DependencyLost(UserError):
    """Slurm's controller has forgotten a job that others wait for."""


class Task(NamedTuple):
    """One array task, which Slurm names `job_id`_`number`."""

    job_id: str
    number: int

    def __str__(self) -> str:
        return f"{self.job_id}_{self.number}"


@dataclass(frozen=True)
class TaskState:
    """What Slurm reports about one array task."""

    state: str
    """Slurm's word for the state, without additions such as "by 1000"."""
    reason: str = ""
    """Why the task waits, or the exit code or signal with which it ended."""
    nodes: str = ""
    restarts: int = 0
    output: str = ""
    """From squeue the path of the task's log, from sacct the command that submitted it. Both name the run folder."""

    @property
    def is_running(self) -> bool:
        return self.state in RUNNING

    @property
    def is_waiting(self) -> bool:
        return self.state in WAITING

    @property
    def is_hopeless(self) -> bool:
        """Whether it waits for a job that has already failed."""
        return self.state == "PENDING" and self.reason == "DependencyNeverSatisfied"


def ignored() -> list[str]:
    """Names of this process's variables that Slurm's commands and the jobs do not get."""
    return sorted(name for name in os.environ if re.match(IGNORED, name) and name not in KEPT)


def ignored_explained() -> str:
    """One line that names the ignored variables that would have changed jobs; empty if there are none.

    Inside an allocation, SLURM_ variables are not named: they describe the allocation, and nobody set them to change jobs.
    """
    harmless = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", *(["SLURM_"] if "SLURM_JOB_ID" in os.environ else []))
    names = [name for name in ignored() if not name.startswith(harmless)]
    return f"Ignored variables of this shell: {', '.join(names)}. The profile decides." if names else ""


def require_slurm() -> None:
    """Raise UserError if Slurm is not installed."""
    if shutil.which("sbatch") is None:
        raise UserError("sbatch is not on this machine's PATH; run the command on a login node, or use --cluster local")


def is_full(message: str) -> bool:
    """Whether sbatch's error message means that the user's limit of submitted jobs is reached.

    Slurm names the limit on a separate line, such as QOSMaxSubmitJobPerUserLimit. Old versions print one text for all limits.
    """
    limit = re.search(r"\b(QOS|Assoc|Max)[A-Z]\w+", message)
    return "SubmitJob" in limit[0] if limit else "job submit limit" in message


def patiently(say: Callable[[str], object]) -> tenacity.Retrying:
    """Retry while the controller is away, for up to RESTART_PATIENCE_S; then raise ControllerAway."""

    def announce(state: tenacity.RetryCallState) -> None:
        if state.attempt_number == 1:
            say("Slurm's controller does not answer; waiting for it …")

    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(ControllerAway),
        stop=tenacity.stop_after_delay(RESTART_PATIENCE_S),
        wait=tenacity.wait_exponential(multiplier=0.5, max=10),
        before_sleep=announce,
        reraise=True,
    )


def call(*command: str, patience_s: float = PATIENCE_S) -> str:
    """Run a command and return what it prints.

    Raises ControllerAway if Slurm does not answer it, UserError if it is not installed or fails for another reason.
    """
    name = command[0]
    if _cluster and name != "sacctmgr":  # which has no such option, since one database serves all clusters
        command = (name, f"--clusters={_cluster}", *command[1:])
    done = _run(*command, patience_s=patience_s)
    if done.returncode:
        problem = one_line(done.stderr) or f"exit code {done.returncode}"
        raise (ControllerAway if AWAY.search(problem) else UserError)(f"{name}: {problem}")
    return done.stdout


def _run(*command: str, input: str = "", patience_s: float | None = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. Raises UserError if it is not installed, ControllerAway if it exceeds `patience_s`."""
    try:
        return subprocess.run(
            command,
            input=input,
            env={name: os.environ[name] for name in os.environ.keys() - ignored()},
            capture_output=True,
            text=True,
            timeout=patience_s,
            errors="replace",  # sites add output of their own, in any encoding
        )
    except FileNotFoundError:
        raise UserError(f"{command[0]}: not on this machine's PATH") from None
    except subprocess.TimeoutExpired:
        raise ControllerAway(f"{command[0]}: no answer within {patience_s:g} s") from None


def squeue(
    job_ids: Iterable[str] | None = None, patience_s: float = PATIENCE_S, output_bytes: int = COLUMNS["STDOUT"]
) -> dict[Task, TaskState]:
    """The array tasks in Slurm's queue: all of this user's or, given `job_ids`, those of these arrays, ended ones included.

    `output_bytes` limits the paths of logs to what the caller looks at, because Slurm pads every column to its full width.
    """
    layout = ",".join(f"{name}:{width}" for name, width in {**COLUMNS, "STDOUT": output_bytes}.items())
    which = ["--me"] if job_ids is None else ["--states=all", f"--jobs={','.join(dict.fromkeys(job_ids))}"]
    try:
        listing = call("squeue", "--array", "--noheader", *which, f"--Format={layout}", patience_s=patience_s)
    except UserError as error:
        if job_ids is not None and "Invalid job id specified" in str(error):  # all of them ended a while ago
            return {}
        raise
    return dict(row for line in listing.splitlines() if (row := _squeue_row(line)))


def _squeue_row(line: str) -> tuple[Task, TaskState] | None:
    """Parse a line of squeue. Returns None for a job that is not an array, and so not one of the suite's."""
    ends = list(itertools.accumulate(COLUMNS.values()))
    job_id, number, state, restarts, reason, nodes, output = (line[a:b].strip() for a, b in zip([0, *ends], ends))
    if not (job_id.isdecimal() and number.isdecimal()):
        return None
    return Task(job_id, int(number)), TaskState(
        state=state,
        reason="" if reason == "None" else reason,
        nodes=nodes,
        restarts=int(restarts) if restarts.isdecimal() else 0,
        output=output,
    )


def sacct(job_ids: Iterable[str], patience_s: float) -> dict[Task, TaskState]:
    """The tasks of these arrays in Slurm's accounting; empty if the cluster has no accounting.

    Raises UserError if the accounting does not answer.
    """
    try:
        listing = call(
            "sacct", "--allocations", "--array", "--noheader", "--parsable2", f"--jobs={','.join(dict.fromkeys(job_ids))}",
            "--format=JobID,State,ExitCode,NodeList,SubmitLine", patience_s=patience_s,
        )  # fmt: skip
    except UserError as error:
        if "accounting storage is disabled" in str(error):
            return {}
        raise
    return dict(row for line in listing.splitlines() if (row := _sacct_row(line)))


def _sacct_row(line: str) -> tuple[Task, TaskState] | None:
    """Parse a line of sacct. Returns None for tasks that are listed together because none has started, such as `102_[0-5]`."""
    name, state, code, nodes, command = (line.split("|", 4) + [""] * 4)[:5]
    job_id, _, number = name.partition("_")
    if number and not number.isdecimal():
        return None
    exit_code, _, signal = code.partition(":")
    reason = ""
    if signal not in ("", "0"):
        reason = f"signal {signal}"
    elif exit_code not in ("", "0"):
        reason = f"exit code {exit_code}"
    return Task(job_id, int(number or 0)), TaskState(
        state=state.partition(" ")[0],  # of "CANCELLED by 1000"
        reason=reason,
        nodes="" if nodes == "None assigned" else nodes,
        output=command,
    )


def explained(reason: str, tasks: Iterable[Task] = ()) -> str:
    """Slurm's reason why these tasks wait, followed by its meaning if that is known."""
    meaning = REASONS.get(reason) or next((text for name, text in REASONS.items() if reason.startswith(name)), "")
    return f"{reason} ({meaning.replace('TASKS', shlex.quote(','.join(_listed(tasks))))})" if meaning else reason


def scancel(tasks: Iterable[Task]) -> None:
    """Cancel exactly these array tasks, in one call."""
    if listed := _listed(tasks):
        call("scancel", *listed)


def batch_script(job_id: str) -> str:
    """Slurm's copy of a job's batch script; empty if the job has just ended. Raises ControllerAway if Slurm does not answer."""
    try:
        return call("scontrol", "write", "batch_script", job_id, "-")
    except ControllerAway:
        raise
    except UserError:
        return ""


def why_not_requeued(job_id: str) -> str:
    """Why Slurm will not requeue a job that it has just accepted; empty if it will, or if the reason cannot be found out.

    A site's submit plugin can forbid requeueing for all jobs, and jobs of a partition or QOS can be cancelled on preemption.
    """
    try:
        job = _fields(call("scontrol", "--oneliner", "show", "job", job_id))
        if job.get("Requeue") == "0":
            return "Slurm accepted it with Requeue=0"
        site = dict(re.findall(r"^(Preempt\w+) *= *(\S+)", call("scontrol", "show", "config"), re.MULTILINE))
        kind = site.get("PreemptType")
        if kind == "preempt/partition_prio":
            for name in job.get("Partition", "").split(","):
                if "CANCEL" in _fields(call("scontrol", "--oneliner", "show", "partition", name)).get("PreemptMode", ""):
                    return f"jobs of partition {name} are cancelled when others preempt them"
        elif kind == "preempt/qos" and (qos := job.get("QOS")):
            words = ("--noheader", "--parsable2", "show", "qos", qos, "format=PreemptMode")
            mode = call("sacctmgr", *words).strip().lower()
            if mode in ("", "off", "cluster"):  # the QOS has none of its own
                mode = site.get("PreemptMode", "").lower()
            if "cancel" in mode:
                return f"jobs of QOS {qos} are cancelled when others preempt them"
    except ControllerAway:
        raise
    except UserError:  # the job has ended already, or there is no accounting
        pass
    return ""


def _fields(shown: str) -> dict[str, str]:
    """The fields in the first line that `scontrol --oneliner show` prints."""
    return dict(re.findall(r"(\w+)=(\S+)", shown.partition("\n")[0]))


def set_comment(task: str, comment: str, patience_s: float) -> None:
    """Set the comment of a job or array task, which `squeue --format=%k` shows."""
    call("scontrol", "update", f"JobId={task}", f"Comment={comment}", patience_s=patience_s)


def host_names(node_list: str) -> list[str]:
    """The nodes of a list such as `gpu[003-006]`, in the order of the list."""
    return call("scontrol", "show", "hostnames", node_list).split()


def tested(script: str) -> str:
    """Slurm's answer to `sbatch --test-only` without dependencies: when and where the job would start, or why it cannot."""
    independent = "\n".join(line for line in script.splitlines() if not line.startswith("#SBATCH --dependency"))
    try:
        done = _run("sbatch", "--test-only", "--output=/dev/null", input=independent)
    except ControllerAway as error:
        return str(error)
    return " ".join((done.stderr or done.stdout).replace("sbatch: ", "").split())


def sbatch(script: Path, job: str, avoided: str) -> str:
    """Submit the batch script of `job`, whose options exclude the nodes `avoided`, and return Slurm's number of the job.

    Raises ControllerAway if Slurm did not answer; it may have accepted the job nevertheless. Raises UserError, QueueFull or
    DependencyLost with sbatch's own words if Slurm refused it.
    """
    done = _run("sbatch", str(script), patience_s=None)  # a killed sbatch may have submitted the job already
    # Only in sbatch's own line: a site may print other lines, with numbers of other jobs.
    if not done.returncode and (numbers := re.findall(r"^Submitted batch job (\d+)", done.stdout, re.MULTILINE)):
        return str(numbers[-1])
    said = "; ".join(re.findall("sbatch: error: (.*)", done.stderr)) or one_line(done.stderr or done.stdout)
    said = said or f"exit code {done.returncode}"
    if done.returncode <= 0 or AWAY.search(said):  # it was killed, or printed no number
        raise ControllerAway(f"sbatch: {said}")
    if is_full(said):
        raise QueueFull(f"Slurm accepts no more of your jobs now ({said})")
    if "Job dependency problem" in said:
        raise DependencyLost(f"Slurm has forgotten a job that {job} waits for; repeat the command")
    without = f" (it avoids nodes {avoided}, which the profile or bad-nodes.jsonl names)" if avoided else ""
    raise UserError(f"sbatch refused job {job}{without}: {said}; correct the profile or the study")


def _answer(*command: str) -> str:
    """What a command prints; empty if it fails or Slurm does not answer."""
    with contextlib.suppress(UserError):
        return call(*command)
    return ""


def within_array_limit(profile: Profile) -> Profile:
    """The profile with arrays no longer than the site's MaxArraySize and max_array_tasks, if Slurm reports them."""
    config = _answer("scontrol", "show", "config")
    site = re.findall(r"(?:^MaxArraySize *= *|\bmax_array_tasks=)([1-9]\d*)", config, re.MULTILINE)
    return msgspec.structs.replace(profile, max_array_size=min([profile.max_array_size, *map(int, site)]))


def partition_minutes() -> dict[str, float]:
    """Time limit of each partition, in minutes; the default partition's is also under "". Empty if Slurm does not answer."""
    minutes = {}
    for fields in map(_fields, _answer("scontrol", "--oneliner", "show", "partition").splitlines()):
        if "PartitionName" in fields and "MaxTime" in fields:
            minutes[fields["PartitionName"]] = _minutes(fields["MaxTime"])
            if fields.get("Default") == "YES":
                minutes[""] = minutes[fields["PartitionName"]]
    return minutes


def qos_minutes() -> dict[str, float]:
    """Time limit of each QOS, in minutes. Empty if there is no accounting."""
    listing = _answer("sacctmgr", "--noheader", "--parsable2", "show", "qos", "format=Name,MaxWall")
    return {name: _minutes(longest) for name, _, longest in (line.partition("|") for line in listing.splitlines())}


def too_long(request: Request, partitions: Mapping[str, float], of_qos: Mapping[str, float]) -> str:
    """Why the time limits of its partitions or of its QOS keep a job from starting, as a sentence; empty if they do not."""
    names, qos = (request.options.partition or "").split(","), request.options.qos or ""
    where = f"partition {', '.join(names)}" if names != [""] else "the default partition"
    limits = (where, max(partitions.get(name, math.inf) for name in names)), (f"QOS {qos}", of_qos.get(qos, math.inf))
    where, longest = min(limits, key=lambda limit: limit[1])
    if request.minutes <= longest:
        return ""
    return (
        f"it asks for {request.minutes / 60:g} h, but {where} allows {longest / 60:g} h, so it will not start; "
        f"set stages.{request.section}.hours to at most {longest / 60:g}"
    )


def _minutes(text: str) -> float:
    """Minutes in Slurm's DAYS-HOURS:MINUTES:SECONDS; infinite for UNLIMITED and anything else."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not match:
        return math.inf
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + minutes + seconds / 60


def own_task() -> str | None:
    """Slurm's name for the task this process belongs to; None outside Slurm.

    SLURM_JOB_ID alone is not enough: for one task of each array it is the array's number, which names all its tasks.
    """
    array, number = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{number}" if array and number else os.environ.get("SLURM_JOB_ID")


def restart_count() -> int:
    """How often Slurm has requeued this job; 0 outside Slurm."""
    return int(os.environ.get("SLURM_RESTART_COUNT") or 0)


def _listed(tasks: Iterable[Task]) -> list[str]:
    """Tasks in Slurm's notation, such as 121_[0-3,7], one word for each array."""
    numbers: dict[str, list[int]] = {}
    for task in tasks:
        numbers.setdefault(task.job_id, []).append(task.number)
    return [f"{job_id}_[{_ranges(of_job)}]" for job_id, of_job in numbers.items()]


def _ranges(numbers: Iterable[int]) -> str:
    """Numbers in Slurm's notation, such as 0-3,7."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)
