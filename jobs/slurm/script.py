"""The batch script of a job array: the options of sbatch, and the body.

Every value that a user chooses is quoted before it reaches the shell, and checked before it reaches an #SBATCH line.
"""

from __future__ import annotations

import functools
import glob
import json
import os
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from curricula.curriculum.sources.registry import local_root
from curricula.durable import team, write_text
from curricula.errors import UsageError
from curricula.fencing import InUse, Superseded
from curricula.jobs.monitor.progress import words_of
from curricula.jobs.plan import Edge, EdgeKind, Job, Key, Plan
from curricula.jobs.run import PATHS, Run
from curricula.jobs.slurm.commands import AWAY, IGNORED, KEPT, RANKS, STARTS
from curricula.jobs.slurm.profile import RESERVE_S, Container, Profile, expanded, texts_in
from curricula.jobs.slurm.snapshot import ENTRY, Snapshot, take_snapshot
from curricula.jobs.slurm.submissions import ENOUGH_NODES, REMEMBERED_S, contents_line, latest_tasks, submissions
from curricula.jobs.study import Study
from curricula.provenance import PACKAGE, RECORD

if TYPE_CHECKING:
    import jinja2

TEMPLATES = PACKAGE / "sbatch_templates"
LOG = "%A_%a_%t_log.out"
"""Name of a task's log in RUN/slurm: array, index and rank. The batch script's own output goes to the log of rank 0."""
OUTPUT = LOG.replace("%t", "0")
"""Name of a batch script's log. sbatch's command line contains it too, so that `sacct` shows which run the job belongs to."""
EXIT_PATIENCE_S = 60
"""How long the other tasks of a job can take to end after the first one has finished the work."""

SHORT = {
    "pretrain-trunk-": "t",
    "pretrain-": "pre-",
    "export-base-": "xb-",
    "instruct-": "sft-",
    "benign-": "ben-",
    "evaluate-base-": "evb-",
    "evaluate-instruct-": "evi-",
    "evaluate-benign-": "evg-",
    "along-": "al-",
    "merge-": "mrg-",
    "fetch-benchmarks": "fetch-b",
}
"""Prefixes of job names, and their short forms for Slurm: squeue shows only eight characters of a name."""

WITH_PATHS = {"path", "artifacts", *PATHS}
"""Keys of a study whose value can be a path, or a mapping from names to paths."""

Options = dict[str, str | int | bool]


def check_root(root: Path) -> Path:
    """The run folder as an absolute path; raises UsageError if it contains characters that Slurm interprets."""
    root = root.resolve()
    if re.search(r"[\x00-\x1f\x7f%\\,]", str(root)):
        raise UsageError(
            f"{str(root)!r}: Slurm gives '%', ',', backslashes and line breaks in a path a meaning of their own; name a folder "
            "without them with --run"
        )
    return root


def short_name(job: str) -> str:
    """The job's name for Slurm's listings. The names of a study's jobs differ in their first eight characters."""
    prefix = next((prefix for prefix in SHORT if job.startswith(prefix)), "")
    return SHORT.get(prefix, "") + job.removeprefix(prefix)


def sbatch_options(job: Job, study: Study, profile: Profile) -> Options:
    """The job's options of sbatch by their long names, except those that differ between submissions."""
    request, asked = job.request, job.request.options
    # 0 requests all of a node's memory; a site's default can be far less.
    memory: str | int | None = f"{round(asked.memory_gb * 1024)}M" if asked.memory_gb else 0 if asked.exclusive else None
    options: dict[str, str | int | bool | None] = {
        "job-name": f"{short_name(job.name)}@{study.name}",
        "nodes": request.nodes,
        "ntasks-per-node": request.tasks_per_node,
        "time": request.minutes,
        "requeue": True,  # under the same number, after preemption or the loss of a node
        "export": "ALL",
        "open-mode": "append",
        "kill-on-invalid-dep": "yes",  # otherwise jobs that wait for a failed one would stay in the queue for ever
        "signal": f"USR2@{profile.lead_time_s}",
        "clusters": profile.cluster,
        "cpus-per-task": request.cpus_per_task,
        "mem": memory,
        "exclusive": asked.exclusive,
        **{name: getattr(asked, name) for name in ("partition", "account", "qos", "constraint", "reservation", "exclude")},
    }
    extra = {name: value for name, value in asked.options.items() if value is not False or not asked.set_by_key(name)}
    if request.gpus_per_node:
        gpus = f"{asked.gpu_type}:{request.gpus_per_node}" if asked.gpu_type else str(request.gpus_per_node)
        if asked.gpu_option == "gres":
            extra["gres"] = ",".join(filter(None, (f"gpu:{gpus}", str(extra.get("gres") or ""))))
        else:
            options["gpus-per-node"] = gpus
    return {name: value for name, value in {**options, **extra}.items() if value is not None and value is not False}


def body(job: Job, study: Study, profile: Profile, root: Path, code: Snapshot, continues: str = "", avoids: str = "") -> str:
    """The batch script of an array without its #SBATCH lines.

    `root`: the absolute path of the run folder. `code`: the snapshot to run. `continues`: the number of the array whose
    elements this one continues, if any. `avoids`: the nodes that the options exclude because they failed a check of the run.
    """
    command = [profile.interpreter(), str(code.folder / ENTRY)]
    srun_words = list(profile.srun_options)
    if container := profile.container:
        image, mounts = expanded("container.image", container.image), _mounts(container, root, study)
        if container.kind == "pyxis":
            srun_words += [f"--container-image={image}", f"--container-mounts={','.join(mounts)}"]
            srun_words += [*container.options, "--no-container-mount-home"]
        else:
            binds = [word for mount in mounts for word in ("--bind", mount)]
            command = ["apptainer", "exec", *binds, *container.options, image, *command]
    return (
        templates()
        .get_template("element.sh.j2")
        .render(
            contents=contents_line(job.name, job.labels),
            study=study,
            job=job,
            short_name=short_name(job.name),
            profile=profile,
            secrets_file=expanded("secrets_file", profile.secrets_file or ""),
            code=code,
            record=RECORD,
            superseded=Superseded.exit_code,
            in_use=InUse.exit_code,
            enough_nodes=ENOUGH_NODES,
            remembered_s=round(REMEMBERED_S),
            team=team(),
            run=Run(root),
            avoids=avoids,
            reserve_s=RESERVE_S,
            exit_patience_s=EXIT_PATIENCE_S,
            log=LOG,
            srun_words=srun_words,
            command=command,
            continues=continues,
            notify=words_of(profile.notify or ""),
            away=AWAY.pattern,
            starts=STARTS,
        )
    )


def _mounts(container: Container, root: Path, study: Study) -> list[str]:
    """What the container mounts: the run folder, the data folder and (read-only) paths of the study outside them, each at the
    same path inside, and the profile's `mounts`. Raises UsageError for a path that no runtime can mount."""
    run = Run(root)  # a preview has not created its folder yet
    data = None if study.world else run.data_folder if (root / "run.json").exists() else local_root()
    folders = [root, *([data.resolve()] if data else [])]
    named = dict.fromkeys(_named_paths(study))
    others = [path for path in named if not any(path.is_relative_to(folder) for folder in folders)]
    for path in (*folders, *others):
        if re.search("[:,]", str(path)):
            raise UsageError(f"{path}: a container cannot mount a path with ':' or ',' in it; use one without them")
    mounts = [f"{path}:{path}:ro" for path in others]  # first, because one may contain the run folder, mounted over it next
    mounts += [f"{folder}:{folder}" for folder in folders]
    return [*mounts, *(expanded("container.mounts", mount) for mount in container.mounts)]


def _named_paths(study: Study) -> Iterator[Path]:
    """The absolute paths in a study that exist.

    A pattern gives the folder before its first wildcard. A snapshot in the hub's cache gives the folder of its repository,
    where the files themselves are.
    """
    for key, text in texts_in(msgspec.to_builtins(study)):
        if WITH_PATHS.isdisjoint(key.split(".")[-2:]) or not os.path.isabs(text):
            continue
        path = Path(text)
        existing = next(above for above in (path, *path.parents) if above.exists())
        rest = path.relative_to(existing)
        if re.search(r"[*?[]", "".join(rest.parts[:1])):
            path = existing
            if Path.home().is_relative_to(path):  # the runtime mounts the home folder itself, writable: name single files
                names = glob.glob(str(rest), root_dir=existing, recursive=True)
                yield from (existing / name for name in names if (existing / name).is_file())
                continue
        caches = (above.parent for above in (path, *path.parents) if above.name == "snapshots")
        path = next((cache for cache in caches if (cache / "blobs").is_dir()), path)
        if path.exists():
            yield path


@functools.cache
def templates() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=False,  # shell, not markup: every value passes `quote`
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    environment.globals.update(ranks=" ".join(RANKS), ignored=IGNORED, kept="|".join(KEPT))
    return environment


@dataclass(frozen=True)
class Script:
    """One job array as a file."""

    file: str
    job: Job
    piece: int
    """Number of this array among those of its job."""
    variable: str
    """Shell variable that holds Slurm's number of the array."""

    @property
    def record(self) -> str:
        """The array's line in submissions.jsonl, as a format for printf, which fills in Slurm's number and the time."""
        record = json.dumps({"job": self.job.name, "job_id": "@ID@", "labels": self.job.labels, "submitted": "@TIME@"})
        escaped = record.replace("\\", "\\\\").replace("%", "%%")
        return escaped.replace("@ID@", "%s").replace('"@TIME@"', "%s") + "\\n"


def render(run: Run, plan: Plan, profile: Profile, out: Path) -> list[Path]:
    """Write a script for each array of the plan, and submit_all.sh, which submits them. Returns the paths, that one last."""
    scripts = _write_scripts(run, plan.jobs, profile, out)
    return [*(out / script.file for script in scripts), _write_submission(run, scripts, profile, out / "submit_all.sh")]


def write_resubmit(run: Run, plan: Plan, profile: Profile, chosen: Collection[Key]) -> None:
    """Write RUN/resubmit.sh, which needs only bash and Slurm, and its batch scripts in RUN/slurm/scripts.

    It submits those elements that are not done, among all that were submitted before or are `chosen` now.
    """
    wanted = {*latest_tasks(submissions(run)), *chosen}
    parts = (job.part(label for label in job.labels if (job.name, label) in wanted) for job in plan.jobs)
    folder = run.slurm / "scripts"
    scripts = _write_scripts(run, [job for job in parts if job.elements], profile, folder)
    _write_submission(run, scripts, profile, run.root / "resubmit.sh", first=False)
    for old in set(folder.glob("*.sbatch")) - {folder / script.file for script in scripts}:
        old.unlink()


def _write_scripts(run: Run, jobs: Sequence[Job], profile: Profile, out: Path) -> list[Script]:
    """Write a script for each array of the jobs."""
    study, root = run.study, check_root(run.root)
    code = take_snapshot(root)
    longest, scripts = profile.max_array_size, list[Script]()
    for job in jobs:
        starts = range(0, len(job.labels), longest)
        for piece, start in enumerate(starts):
            array, number = job.part(job.labels[start : start + longest]), f"{len(scripts):02d}"
            name = job.name if len(starts) == 1 else f"{job.name}-part{piece}"
            script = Script(f"{number}-{name}.sbatch", array, piece, f"job_{number}")
            scripts.append(script)
            throttle = job.request.options.throttle
            options: Options = {
                **sbatch_options(job, study, profile),
                "array": f"0-{len(array.labels) - 1}" + (f"%{throttle}" if throttle else ""),
                "output": str(root / "slurm" / OUTPUT),
            }
            text = body(array, study, profile, root, code)
            template = templates().get_template("array.sbatch.j2")
            _write_script(out / script.file, template.render(job=array, options=options, body=text))
    return scripts


def _write_submission(run: Run, scripts: Sequence[Script], profile: Profile, path: Path, first: bool = True) -> Path:
    """Write the script that submits `scripts`: all of them in a new run (`first`), otherwise the elements that are not done."""
    by_job: dict[str, list[Script]] = {}
    for script in scripts:
        by_job.setdefault(script.job.name, []).append(script)

    def wait(edge: Edge, script: Script) -> tuple[EdgeKind, list[str]]:
        """The kind of dependency, and the variables of the arrays to wait for."""
        others = [other.variable for other in by_job[edge.job]]
        if edge.kind == "aftercorr":  # both have the same elements, split at the same places, unless some are left out
            return ("aftercorr", [others[script.piece]]) if first else ("afterok", others)
        return edge.kind, others

    text = templates().get_template("submit.sh.j2").render(
        first=first,
        study=run.study.name,
        team=team(),
        cluster=profile.cluster,
        root=str(run.root.resolve()),
        log=OUTPUT,
        scripts=[
            (
                script,
                [wait(edge, script) for edge in script.job.needs if edge.job in by_job],
                [run.element(*key).relative_to(run.root / "jobs") for key in script.job.keys],
            )
            for script in scripts
        ],
    )  # fmt: skip
    _write_script(path, text)
    return path


def _write_script(path: Path, text: str) -> None:
    write_text(path, text)
    path.chmod(0o700 if team() is None else 0o770)
