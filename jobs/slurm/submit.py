"""Submits a plan, or any part of it, to Slurm: one sbatch for each array, with the plan's dependencies.

An interrupted submission is completed by the same command: it finds the arrays that Slurm already has.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit.slurm.slurm import _make_sbatch_string

from curricula.durable import make_folder, write_text
from curricula.errors import UsageError, UserError
from curricula.jobs.completion import done_elements
from curricula.jobs.graph import check_batches
from curricula.jobs.plan import Job, Key, Plan
from curricula.jobs.run import Run
from curricula.jobs.selection import check_needs
from curricula.jobs.slurm import commands
from curricula.jobs.slurm.commands import ControllerAway, DependencyLost, QueueFull, Task, patiently
from curricula.jobs.slurm.profile import Profile, keep_profile, kept_cluster
from curricula.jobs.slurm.script import Options, body, check_root, sbatch_options, write_resubmit
from curricula.jobs.slurm.snapshot import planned_snapshot, take_snapshot
from curricula.jobs.slurm.submissions import (
    Submission,
    cancel_hopeless,
    exclusion,
    live_elements,
    queued,
    record,
    recover,
    submissions,
)
from curricula.terminal import plural

Say = Callable[[str], None]

LOOK_EVERY_S = 120.0
"""How often a long submission checks which elements have been done since, so that later arrays need not wait for them. Slurm
drops dependencies on jobs that it has forgotten, which it does some time after their end (MinJobAge, by default 300 s)."""


@dataclass(frozen=True)
class Standing:
    """The elements of a run that need not be submitted."""

    done: set[Key]
    live: dict[Key, tuple[Task, ...]]
    """Queued or running elements with their tasks. An element has several if jobs continue one another."""

    def open(self, chosen: Collection[Key]) -> list[Key]:
        """The `chosen` elements that are neither done nor live."""
        return [key for key in chosen if key not in self.done and key not in self.live]


def standing(run: Run, plan: Plan, profile: Profile, say: Say) -> Standing:
    """Ask the run folder what is done and Slurm what is live, and record jobs that a killed submission left unrecorded.

    Raises UsageError if the run's jobs are on another cluster than the profile's.
    """
    commands.require_slurm()
    use_cluster(run, profile)
    queue = patiently(say)(queued, run)
    for array in patiently(say)(recover, run, queue):
        say(f"{array.job}: array {array.job_id} was submitted by an interrupted command; recorded")
    cancel_hopeless(run, queue)
    live = live_elements(run, queue)
    return Standing(done_elements(run, plan) - live.keys(), live)


def use_cluster(run: Run, profile: Profile) -> None:
    """Direct Slurm's commands to the profile's cluster. Raises UsageError if the run's jobs are on another."""
    earlier = kept_cluster(run.profile)
    if submissions(run) and earlier != profile.cluster:
        raise UsageError(
            f"{run.root}: its jobs are on {_named(earlier)}, but the profile names {_named(profile.cluster)}; "
            "keep the cluster, or give another run folder with --run"
        )
    commands.on_cluster(profile.cluster)


def _named(cluster: str | None) -> str:
    return f"cluster {cluster}" if cluster else "the login node's own cluster"


def submit_plan(run: Run, plan: Plan, chosen: Collection[Key], profile: Profile, now: Standing, say: Say) -> list[Submission]:
    """Submit the `chosen` elements, none of them done or live, each after those it needs. Returns the new submissions.

    Raises UsageError, before anything is submitted, if an element needs one that is neither done nor live nor chosen, or if its
    batch cannot be divided among its GPUs. Raises UserError if Slurm refuses a job; earlier ones stay submitted. The error is
    QueueFull if the user's limit of submitted jobs is reached: as many elements as fit are then submitted, in the plan's order,
    but some arrays that continue another may be missing. It is DependencyLost if Slurm has forgotten one of the run's jobs, so
    that `now` is out of date.
    """
    check_needs(plan, chosen, now.done, now.live)
    check_batches(plan, chosen)
    if explained := commands.ignored_explained():
        say(explained)
    root = check_root(run.root)
    make_folder(run.slurm)
    code = take_snapshot(root)
    keep_profile(run.profile, profile)
    profile = commands.within_array_limit(profile)
    write_resubmit(run, plan, profile, chosen)
    new: list[Submission] = []
    cut_off: list[str] = []
    sizes = {submission.job_id: len(submission.labels) for submission in submissions(run)}
    numbering = _Numbering({key: tasks[-1] for key, tasks in now.live.items()}, sizes)

    def submit(array: Job, existing: Submission | None = None) -> None:
        """Submit an array and the arrays that continue it. `existing`: the array itself, if Slurm has it already."""
        taken = {task.job_id for task in numbering.tasks.values()} if existing is None else set()
        options = _options(plan, array, profile, numbering)
        avoids = _avoidable(run, array, options, say)
        options = _also(options, "exclude", avoids)

        def send(options: Options, continues: str = "") -> Submission:
            text = body(array, plan.study, profile, root, code, continues, avoids)
            return _submit(run, array, options, sbatch_file(root / "slurm", array, options, text), say)

        if existing:
            first = existing
        else:
            with _unmarked(run, array):
                first = send(options)
            new.append(first)
        further, are_all = _continuations(run, array, first, options, profile, send, say)
        new.extend(further)
        if not are_all:
            cut_off.append(array.name)
        chain = [first, *further]
        numbering.add(array, chain[-1].job_id)
        # A number that comes again belonged to a job that Slurm has forgotten. The new array is on record.
        if again := taken & {submission.job_id for submission in chain}:
            raise DependencyLost(f"Slurm has forgotten array {again.pop()} of this run; run the same command again")

    for existing in _unasked(run, plan, now):
        submit(plan.by_name[existing.job].part(existing.labels), existing)
    looked = time.monotonic()
    for array in _arrays(plan, chosen, profile, numbering):
        if full := _submit_what_fits(array, submit):
            left = len(set(chosen).difference(*(submission.keys for submission in new)))
            raise QueueFull(f"{full}; {plural(left, 'element')} left to submit: run the same command again when some jobs end")
        if time.monotonic() - looked > LOOK_EVERY_S:
            for key in done_elements(run, plan):
                numbering.tasks.pop(key, None)
            looked = time.monotonic()
    if cut_off:
        raise QueueFull(f"fewer arrays than needed continue {', '.join(cut_off)}, as said above")
    return new


def _also(options: Options, name: str, value: str) -> Options:
    """The options with one more value, unless it is empty, for an option that takes several, separated by commas."""
    return {**options, name: ",".join(filter(None, (str(options.get(name, "")), value)))} if value else options


def _avoidable(run: Run, array: Job, options: Options, say: Say) -> str:
    """The nodes that failed a check; empty if Slurm could start the job with them but not without them."""

    def answer(options: Options) -> str:
        return commands.tested(sbatch_file(run.slurm, array, options, ""))

    nodes = exclusion(run)
    if not nodes:
        return ""
    without = answer(_also(options, "exclude", nodes))
    if commands.STARTS in without or commands.STARTS not in answer(options):
        return nodes
    say(f"{array.name}: it does not avoid {nodes}, which failed a check: {without}")
    return ""


def _unasked(run: Run, plan: Plan, now: Standing) -> list[Submission]:
    """The live arrays for which no command has asked yet whether Slurm requeues them, because one was interrupted."""
    live = {task.job_id for tasks in now.live.values() for task in tasks}
    files = list(run.slurm.glob("*.continued"))
    asked = {job_id for file in files for job_id in (file.stem, *file.read_text().split())}
    return [array for array in submissions(run) if array.job_id in live - asked and {*array.keys} <= plan.needs.keys()]


def _continuations(
    run: Run, array: Job, first: Submission, options: Options, profile: Profile, send: Callable[..., Submission], say: Say
) -> tuple[list[Submission], bool]:
    """If Slurm will not requeue the array, submit arrays that continue it, each after the end of the one before.

    They also wait for everything that the first array waits for: it also ends if Slurm cancels it because something it needs
    has failed. Elements that need the array wait for the last one. Returns the new arrays, and whether none is missing.
    """
    further: list[Submission] = []
    followers = run.slurm / f"{first.job_id}.continued"  # read by the batch scripts
    followers.unlink(missing_ok=True)
    reason = patiently(say)(commands.why_not_requeued, first.job_id)
    write_text(followers, "")
    if not reason:
        return further, True
    request = array.request
    needed = math.ceil(request.total_hours * 60 / request.minutes)
    count = needed if profile.continuations is None else profile.continuations
    say(f"{array.name}: {reason}, so {plural(count, 'more array')} will continue it if it ends early")
    for _ in range(count):
        before = [first, *further][-1].job_id
        try:
            further.append(send(_also(options, "dependency", f"afterany:{before}"), first.job_id))
        except (QueueFull, DependencyLost) as error:
            is_lost = isinstance(error, DependencyLost)
            if is_lost and not further:
                followers.unlink()  # the next submission asks again
                raise
            why = "Slurm has forgotten a job that they wait for" if is_lost else error
            say(
                f"{why}; only {len(further)} of the {count} arrays that continue {array.name} are submitted: if they end "
                f"before it is done, jobs that need it are cancelled; `curricula retry {run.root}` then continues from what it "
                "saved"
            )
            return further, False
        write_text(followers, "".join(f"{array.job_id}\n" for array in further))
    return further, True


def _submit_what_fits(array: Job, submit: Callable[[Job], None]) -> QueueFull | None:
    """Submit the array or, if Slurm refuses, its first half, and so on. Returns the last refusal if anything was left out."""
    count, refusal = len(array.labels), None
    while count:
        try:
            submit(array.part(array.labels[:count]))
            break
        except QueueFull as error:
            count, refusal = count // 2, error
    return refusal


@contextlib.contextmanager
def _unmarked(run: Run, array: Job) -> Iterator[None]:
    """Remove the marks of elements that are about to run again, and restore them if sbatch refuses the array.

    An element with a mark would end at once. Without restarts.json, its restarts are counted from zero.
    """
    paths = [run.element(*key) / mark for key in array.keys for mark in ("done.json", "failed.json", "restarts.json")]
    marks = {path: path.read_text() for path in paths if path.exists()}
    for path in marks:
        path.unlink()
    try:
        yield
    except ControllerAway:  # Slurm may have accepted the array
        raise
    except UserError:
        for path, text in marks.items():
            write_text(path, text)
        raise


@dataclass(frozen=True)
class Preview:
    """An array as a first submission would pass it to sbatch."""

    job: str
    array: Job
    waits: str
    """The dependency, with names of arrays instead of numbers."""
    script: str


def preview(plan: Plan, chosen: Collection[Key], profile: Profile, root: Path) -> list[Preview]:
    """Every array of a first submission of `chosen`; writes nothing."""
    profile = commands.within_array_limit(profile)
    code = planned_snapshot(root)
    numbering = _Numbering({}, {})
    sizes = Counter(job for job, _ in chosen)
    previews: list[Preview] = []
    for array in _arrays(plan, chosen, profile, numbering):
        number = sum(earlier.array.name == array.name for earlier in previews)
        name = array.name if len(array.labels) == sizes[array.name] else f"{array.name}/{number}"
        options = _options(plan, array, profile, numbering)
        text = body(array, plan.study, profile, root, code)
        script = sbatch_file(root / "slurm", array, options, text)
        previews.append(Preview(name, array, str(options.get("dependency", "")), script))
        numbering.add(array, name)
    return previews


@dataclass(frozen=True)
class _Numbering:
    """The array task of each element that is queued or running, and how many tasks each array has."""

    tasks: dict[Key, Task]
    sizes: dict[str, int]

    def add(self, array: Job, job_id: str) -> None:
        self.sizes[job_id] = len(array.labels)
        self.tasks.update({key: Task(job_id, place) for place, key in enumerate(array.keys)})


def _arrays(plan: Plan, chosen: Collection[Key], profile: Profile, numbering: _Numbering) -> Iterator[Job]:
    """The arrays of `chosen` in the plan's order. A job's arrays are computed only after those it needs are in `numbering`."""
    wanted = set(chosen)
    for job in plan.jobs:
        labels = [label for label in job.labels if (job.name, label) in wanted]
        yield from arrays_of(plan, job, labels, numbering.tasks, profile.max_array_size)


def arrays_of(plan: Plan, job: Job, labels: Sequence[str], tasks: Mapping[Key, Task], max_array_size: int) -> list[Job]:
    """The job's elements in arrays of at most `max_array_size`.

    If elements wait for their counterparts (aftercorr), those with counterparts in different arrays go to different arrays, and
    so do those whose counterparts are done. `tasks`: the array tasks of elements that are queued or running.
    """
    in_step = {edge.job for edge in job.needs if edge.kind == "aftercorr"}
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for label in labels:
        counterparts = [need for need, _ in plan.needs[job.name, label] if need[0] in in_step]
        groups[tuple(tasks[need].job_id for need in counterparts if need in tasks)].append(label)
    return [
        job.part(group[start : start + max_array_size])
        for group in groups.values()
        for start in range(0, len(group), max_array_size)
    ]


def dependency(plan: Plan, array: Job, tasks: Mapping[Key, Task], sizes: Mapping[str, int]) -> str:
    """The value of sbatch's --dependency; empty if there is nothing to wait for. `sizes`: how many tasks each array has."""
    clauses = []
    for edge in array.needs:
        if edge.kind == "aftercorr":
            others = [need for key in array.keys for need, _ in plan.needs[key] if need[0] == edge.job]
        else:
            others = plan.by_name[edge.job].keys
        waited_for = [tasks[key] for key in others if key in tasks]
        if not waited_for:
            continue
        if edge.kind == "afterany":  # tasks that have ended do no harm
            clauses.append(":".join(["afterany", *dict.fromkeys(task.job_id for task in waited_for)]))
            continue
        other = waited_for[0].job_id
        if edge.kind == "aftercorr" and waited_for == [Task(other, number) for number in range(len(array.labels))]:
            clauses.append(f"aftercorr:{other}")
        else:  # also if the array is not in step with the other one: then all wait for all
            clauses.append(f"afterok:{_ids(waited_for, sizes)}")
    return ",".join(dict.fromkeys(clauses))


def _ids(tasks: Sequence[Task], sizes: Mapping[str, int]) -> str:
    """The tasks in Slurm's notation, with a single number for a whole array."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for task in tasks:
        numbers[task.job_id].add(task.number)
    ids = []
    for job_id, of_job in numbers.items():
        ids += [job_id] if len(of_job) == sizes[job_id] else [f"{job_id}_{number}" for number in sorted(of_job)]
    return ":".join(ids)


def _options(plan: Plan, array: Job, profile: Profile, numbering: _Numbering) -> Options:
    waits = dependency(plan, array, numbering.tasks, numbering.sizes)
    return _also(sbatch_options(array, plan.study, profile), "dependency", waits)


def sbatch_file(folder: Path, array: Job, options: Options, body: str) -> str:
    """The batch script of an array, as submitit writes it. The script's output goes to `folder`, which is RUN/slurm."""
    count = len(array.labels)
    return _make_sbatch_string(
        command=body,
        folder=folder,
        job_name=str(options["job-name"]),
        additional_parameters={name: value for name, value in options.items() if name != "job-name"},
        map_count=count,
        array_parallelism=array.request.options.throttle or count,
        stderr_to_stdout=True,
        use_srun=False,  # the body calls it
        wckey=None,  # type: ignore[arg-type]  # none; its annotation is wrong
    )


def _submit(run: Run, array: Job, options: Options, text: str, say: Say) -> Submission:
    """Call sbatch and record the array. If Slurm may have accepted it without an answer, look in the queue before a retry."""
    script = run.slurm / ".submission.sh"
    for attempt in patiently(say):
        with attempt:
            if attempt.retry_state.attempt_number > 1:
                for recovered in recover(run, queued(run), may_repeat=True):
                    if recovered.job == array.name and recovered.labels == array.labels:
                        return recovered
            write_text(script, text)
            job_id = commands.sbatch(script, array.name, str(options.get("exclude", "")))
            script.rename(script.with_name(f"{job_id}_submission.sh"))
            submission = Submission(job=array.name, job_id=job_id, labels=array.labels, submitted=time.time())
            record(run, submission)
            say(f"{array.name}: array {job_id} of {len(array.labels)}")
            return submission
    raise AssertionError("unreachable: the last attempt raises")
