"""RUN/resubmit.sh: submits again all of a run that is not done, with bash and Slurm alone, where Python is not at hand."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from curricula.jobs.run import Run
from curricula.jobs.slurm.profile import Profile
from curricula.jobs.slurm.render import Script, record_format, render_scripts, write_script
from curricula.jobs.slurm.script import templates


@dataclass(frozen=True)
class Edge:
    """Arrays that a script waits for, and how."""

    kind: str
    variables: tuple[str, ...]


def write_resubmit(run: Run, profile: Profile) -> Path:
    """Write the script, and the sbatch scripts that it hands to Slurm into RUN/slurm/scripts."""
    folder = run.slurm / "scripts"
    scripts = render_scripts(run, profile, folder)
    needs = {job.name: job.needs for job in run.jobs}
    of_job: dict[str, tuple[str, ...]] = {}
    for script in scripts:
        of_job[script.job.name] = (*of_job.get(script.job.name, ()), script.variable)

    def edges(script: Script) -> list[Edge]:
        return [Edge(edge.kind, of_job[edge.job]) for edge in needs[script.job.name]]

    text = templates().get_template("resubmit.sh.j2").render(
        study=run.study.name,
        root=str(run.root.resolve()),
        scripts=[(script, edges(script), _elements(run, script), record_format(script)) for script in scripts],
    )  # fmt: skip
    path = run.root / "resubmit.sh"
    write_script(path, text)
    return path


def _elements(run: Run, script: Script) -> list[str]:
    """The elements' folders below RUN/jobs, in the order of the array."""
    return [str(run.element(script.job.name, label).relative_to(run.root / "jobs")) for label in script.labels]
