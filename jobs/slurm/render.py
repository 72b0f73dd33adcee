"""The plan as plain sbatch scripts, and one script that submits them with their dependencies.

For users who want to read, change and submit the jobs with bash and Slurm alone: `curricula render STUDY OUT --profile P`, then
`OUT/submit_all.sh`. The scripts request and do the same as those of `curricula submit --cluster slurm`. They record what they
submit in the same place, so `status`, `logs`, `retry` and `cancel` work on it too.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from curricula.durable import open_atomically, team
from curricula.jobs.plan import Chosen, Edge, EdgeKind, Job, Plan, keys_of
from curricula.jobs.run import Run
from curricula.jobs.slurm.profile import Profile
from curricula.jobs.slurm.script import LOG, Options, array_option, body, check_root, sbatch_options, templates
from curricula.jobs.slurm.snapshot import take_snapshot
from curricula.jobs.slurm.submissions import latest_tasks, submissions

SUBMIT_ALL = "submit_all.sh"
OUTPUT = LOG.replace("%t", "0")
"""The log of a batch script. The command line names it too, by which `sacct` knows whose job it is."""


@dataclass(frozen=True)
class Script:
    """One job array as a file."""

    file: str
    job: Job
    labels: tuple[str, ...]
    variable: str
    """The shell variable for the array's number at Slurm."""


@dataclass(frozen=True)
class Waits:
    """Arrays that a script in resubmit.sh waits for."""

    kind: EdgeKind
    variables: tuple[str, ...]


def render(run: Run, plan: Plan, profile: Profile, out: Path) -> list[Path]:
    """Write a script for each array of the plan, and submit_all.sh; returns their paths, that one last."""
    scripts = _write_scripts(run, plan.jobs, profile, out)
    submit_all = templates().get_template("submit_all.sh.j2").render(
        study=run.study.name,
        team=team(),
        scripts=scripts,
        waits=_dependencies(scripts),
        cluster=profile.cluster,
        slurm=str(run.root.resolve() / "slurm"),
        log=OUTPUT,
        records={script.file: record_format(script) for script in scripts},
    )  # fmt: skip
    write_script(out / SUBMIT_ALL, submit_all)
    return [*(out / script.file for script in scripts), out / SUBMIT_ALL]


def _write_scripts(run: Run, jobs: Sequence[Job], profile: Profile, out: Path) -> list[Script]:
    """Write a script for each array of the jobs."""
    study, root = run.study, check_root(run.root)
    code = take_snapshot(root)
    scripts = _scripts(jobs, profile.max_array_size)
    for script in scripts:
        options: Options = {
            **sbatch_options(script.job, study, profile),
            "array": array_option(len(script.labels), script.job.request.options.throttle),
            "output": str(root / "slurm" / OUTPUT),
        }
        text = templates().get_template("array.sbatch.j2").render(
            job=script.job,
            labels=script.labels,
            directives=[_directive(name, options[name]) for name in sorted(options)],
            body=body(script.job, script.labels, study, profile, root, code),
        )  # fmt: skip
        write_script(out / script.file, text)
    return scripts


def _scripts(jobs: Sequence[Job], longest: int) -> list[Script]:
    scripts: list[Script] = []
    for job in jobs:
        pieces = [job.labels[start : start + longest] for start in range(0, len(job.labels), longest)]
        for piece, labels in enumerate(pieces):
            number = len(scripts)
            name = job.name if len(pieces) == 1 else f"{job.name}-part{piece}"
            scripts.append(Script(f"{number:02d}-{name}.sbatch", job, labels, f"job_{number:02d}"))
    return scripts


def _dependencies(scripts: Sequence[Script]) -> dict[str, str]:
    """For the file of each script of a whole plan the value of --dependency, with the variables of the arrays it waits for."""
    of_job: dict[str, list[Script]] = {}
    for script in scripts:
        of_job.setdefault(script.job.name, []).append(script)
    return {
        script.file: ",".join(_dependency(edge, piece, len(pieces), of_job) for edge in script.job.needs)
        for pieces in of_job.values()
        for piece, script in enumerate(pieces)
    }


def _dependency(edge: Edge, piece: int, pieces: int, of_job: Mapping[str, Sequence[Script]]) -> str:
    others = of_job[edge.job]
    if edge.kind == "aftercorr":  # both have the same elements, so they are cut at the same places
        assert len(others) == pieces
        others = [others[piece]]
    return ":".join([edge.kind, *(f"${{{other.variable}}}" for other in others)])


def _directive(name: str, value: str | int | bool) -> str:
    return f"--{name}" if value is True else f"--{name}={shlex.quote(str(value))}"


def record_format(script: Script) -> str:
    """The script's record in submissions.jsonl as a format of printf, which fills in number and time of the submission."""
    record = json.dumps({"job": script.job.name, "job_id": "@ID@", "labels": script.labels, "submitted": "@TIME@"})
    escaped = record.replace("\\", "\\\\").replace("%", "%%")
    return escaped.replace("@ID@", "%s").replace('"@TIME@"', "%s") + "\\n"


def write_script(path: Path, text: str) -> None:
    with open_atomically(path, "w") as file:
        file.write(text)
    path.chmod(0o700 if team() is None else 0o770)


def write_resubmit(run: Run, plan: Plan, profile: Profile, chosen: Chosen | None = None) -> Path:
    """Write RUN/resubmit.sh, which submits again what is not done, with bash and Slurm alone.

    Of a run of which a part was submitted, it submits that part: all that is on record, and the elements `chosen` now. Without
    `chosen`, all. Its sbatch scripts go to RUN/slurm/scripts.
    """
    folder = run.slurm / "scripts"
    scripts = _write_scripts(run, _part(run, plan, chosen), profile, folder)
    of_job: dict[str, tuple[str, ...]] = {}
    for script in scripts:
        of_job[script.job.name] = (*of_job.get(script.job.name, ()), script.variable)

    def edges(script: Script) -> list[Waits]:
        return [Waits(edge.kind, of_job[edge.job]) for edge in script.job.needs if edge.job in of_job]

    text = templates().get_template("resubmit.sh.j2").render(
        study=run.study.name,
        team=team(),
        cluster=profile.cluster,
        root=str(run.root.resolve()),
        scripts=[(script, edges(script), _elements(run, script), record_format(script)) for script in scripts],
    )  # fmt: skip
    path = run.root / "resubmit.sh"
    write_script(path, text)
    for old in set(folder.glob("*.sbatch")) - {folder / script.file for script in scripts}:
        old.unlink()
    return path


def _part(run: Run, plan: Plan, chosen: Chosen | None) -> list[Job]:
    """The plan's jobs with only those elements that were submitted or are `chosen`; all jobs without `chosen`."""
    if chosen is None:
        return list(plan.jobs)
    wanted = {*latest_tasks(submissions(run)), *keys_of(chosen)}
    parts = (
        replace(job, elements=tuple(element for element in job.elements if (job.name, element.label) in wanted))
        for job in plan.jobs
    )
    return [job for job in parts if job.elements]


def _elements(run: Run, script: Script) -> list[str]:
    """The elements' folders below RUN/jobs, in the order of the array."""
    return [str(run.element(script.job.name, label).relative_to(run.root / "jobs")) for label in script.labels]
