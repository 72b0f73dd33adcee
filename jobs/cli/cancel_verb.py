"""The verb `curricula cancel`: take a study, a stage, a job or an arm out of Slurm's queue, and nothing else."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from curricula.errors import UserError
from curricula.jobs.cli.help_text import HelpFormatter
from curricula.jobs.cli.selection import add_options, select


def add_parser(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "cancel",
        help="cancel what a study has in Slurm's queue: all, or a stage, a job or an arm",
        description="Cancel what a study has in Slurm's queue. What is finished stays; training that runs is killed, and goes "
        "on from its last checkpoint when it is submitted again, with `curricula retry`.",
        epilog="examples:\n  curricula cancel /scratch/paper\n"
        "  curricula cancel /scratch/paper --stage evaluate --arm full-20 --yes",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    parser.add_argument("--job", metavar="JOB", help="only this job, as `curricula status` names it")
    add_options(parser)
    parser.add_argument("--yes", action="store_true", help="do not ask")
    parser.set_defaults(verb=cancel)


def cancel(words: argparse.Namespace) -> int:
    from collections import Counter

    from curricula.jobs.run import Run
    from curricula.jobs.slurm.commands import scancel
    from curricula.jobs.slurm.squeue import Query
    from curricula.jobs.slurm.submissions import Task, submissions

    run = Run.open(words.run)
    jobs = run.jobs
    chosen = {(job.name, item.label) for job, item in select(jobs, words.job, None, words.stage, words.arm)}
    submitted = submissions(run)
    if not submitted:
        raise UserError(
            f"{run.root}: nothing of it was submitted to Slurm; a run on this machine ends with Ctrl-C where it runs"
        )
    answer = Query(submission.job_id for submission in submitted).answer(())
    if answer.problem:
        raise UserError(f"{answer.problem.removesuffix(': shown is what the run folder tells')}; nothing was cancelled")
    tasks = [
        Task(submission.job_id, number)
        for submission in submitted
        for number, label in enumerate(submission.labels)
        if (submission.job, label) in chosen
    ]
    live = [
        task
        for task in tasks
        if task in answer.tasks and (answer.tasks[task].is_running or answer.tasks[task].is_waiting)
    ]
    if not live:
        print(f"{run.root}: nothing of this is in Slurm's queue")
        return 0
    states = Counter("running" if answer.tasks[task].is_running else "pending" for task in live)
    what = " and ".join(f"{number} {state}" for state, number in states.items())
    if not words.yes and not _confirmed(f"Cancel {what} of {run.root}?"):
        print("nothing was cancelled")
        return 1
    scancel(live)
    print(f"cancelled {what}; `curricula retry {run.root}` submits them again, and what cannot run without them")
    return 0


def _confirmed(question: str) -> bool:
    """The answer of a person; raises UserError when there is nobody to ask."""
    if not sys.stdin.isatty():
        raise UserError(f"{question} Standard input is no terminal: give --yes")
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
