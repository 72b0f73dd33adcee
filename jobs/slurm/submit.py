"""Hands a study's graph, or any part of it, to Slurm: one sbatch for each array, with the dependencies of the graph.

A submission that was interrupted is completed by giving it again: what Slurm has already is found and left alone. All that
lasts is the record in RUN/slurm; nothing stays behind on the login node.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curricula.jobs.graph import Job
from curricula.jobs.local import done_elements
from curricula.jobs.preflight.bad_nodes import exclusion
from curricula.jobs.run import Run
from curricula.jobs.selection import Chosen
from curricula.jobs.slurm.arrays import Array, arrays_of, check_needs, dependency
from curricula.jobs.slurm.commands import patiently, require_slurm, squeue
from curricula.jobs.slurm.profile import Profile, keep_profile
from curricula.jobs.slurm.queue import Key, cancel_hopeless, live_elements, recover
from curricula.jobs.slurm.resubmit import write_resubmit
from curricula.jobs.slurm.script import Options, body, check_root, sbatch_options
from curricula.jobs.slurm.snapshot import take_snapshot
from curricula.jobs.slurm.submissions import Submission, Task, record, submissions
from curricula.jobs.study import Study

Say = Callable[[str], None]


@dataclass(frozen=True)
class Standing:
    """What has become of a run's elements before a submission."""

    done: set[Key]
    live: dict[Key, Task]

    def open(self, chosen: Chosen) -> Chosen:
        """What of `chosen` is neither done nor in the queue."""
        left = {
            job: tuple(label for label in labels if (job, label) not in self.done and (job, label) not in self.live)
            for job, labels in chosen.items()
        }
        return {job: labels for job, labels in left.items() if labels}


def standing(run: Run, jobs: Sequence[Job], say: Say) -> Standing:
    """Ask the run folder what is done and Slurm what it has, recording what a killed submission left unrecorded."""
    require_slurm()
    for attempt in patiently(say):
        with attempt:
            queue = squeue()
    for found in recover(run, queue):
        say(f"{found.job}: array {found.job_id} was submitted by an interrupted command; recorded")
    cancel_hopeless(run, queue)
    live = live_elements(run, queue)
    return Standing({key for key in done_elements(run, list(jobs)) if key not in live}, live)


def submit_graph(
    run: Run, jobs: Sequence[Job], chosen: Chosen, profile: Profile, now: Standing, say: Say
) -> list[Submission]:
    """Submit the `chosen` elements, of which none may be done or queued, each after what it needs; returns what was recorded.

    Raises UsageError, before anything is submitted, when an element needs what is neither done nor queued nor chosen; UserError
    when Slurm refuses a job. What was submitted until then stays, and giving the same again goes on.
    """
    from curricula.jobs.slurm.executor import ElementExecutor

    check_needs(jobs, chosen, now.done, now.live)
    root = check_root(run.root)
    run.slurm.mkdir(parents=True, exist_ok=True)
    code = take_snapshot(root)
    keep_profile(run, profile)
    write_resubmit(run, profile)
    executor = ElementExecutor(root / "slurm")
    tasks = dict(now.live)
    sizes = {submission.job_id: len(submission.labels) for submission in submissions(run)}
    made = []
    for job in jobs:
        labels = chosen.get(job.name, ())
        for label in labels:  # a mark of what is to be made anew would end its element at once
            (run.element(job.name, label) / "done.json").unlink(missing_ok=True)
        for array in arrays_of(jobs, job, labels, tasks, profile.max_array_size):
            options = array_options(array, run.study, profile, dependency(jobs, array, tasks, sizes))
            if avoided := ",".join(filter(None, (str(options.get("exclude", "")), exclusion(run)))):
                options["exclude"] = avoided
            executor.prepare(job.name, len(array.labels), options, profile.options(job).throttle)
            text = body(job, array.labels, run.study, profile, root, code)
            made.append(_submit(run, executor, array, text, say))
            sizes[made[-1].job_id] = len(array.labels)
            tasks.update({(job.name, label): Task(made[-1].job_id, place) for place, label in enumerate(array.labels)})
    return made


def array_options(array: Array, study: Study, profile: Profile, waits: str) -> Options:
    options = sbatch_options(array.job, study, profile)
    return {**options, "dependency": waits} if waits else options


def _submit(run: Run, executor: object, array: Array, text: str, say: Say) -> Submission:
    """One sbatch and its record. Where it stays open whether Slurm took the job, the queue is asked before trying again."""
    for attempt in patiently(say):
        with attempt:
            if attempt.retry_state.attempt_number > 1:
                for found in recover(run, squeue()):
                    if found.job == array.job.name and found.labels == array.labels:
                        return found
            job_id = executor.submit_body(text)  # type: ignore[attr-defined]
            submission = Submission(job=array.job.name, job_id=job_id, labels=array.labels, submitted=time.time())
            record(run, submission)
            say(f"{array.job.name}: array {job_id} of {len(array.labels)}")
            return submission
    raise AssertionError("unreachable: the last attempt raises")
