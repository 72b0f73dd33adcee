"""Run folders in any state, without running anything, and stand-ins for Slurm's commands."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from paths import STUDIES
from small_studies import demo

from curricula.durable import read_json, write_json, write_text
from curricula.jobs.graph import plan_study
from curricula.jobs.plan import Job, Key, Plan
from curricula.jobs.run import Run
from curricula.jobs.slurm.commands import COLUMNS
from curricula.jobs.slurm.submissions import Submission, record
from curricula.jobs.study import load_study, parse_study


def new_run(root: Path, study: str = "demo") -> tuple[Run, dict[str, Job]]:
    """A run of a study of the suite (demo: the full one, trained once) in which nothing has happened yet; its jobs by name."""
    root.mkdir(mode=0o700, parents=True)
    for name, content in _frozen(study).items():
        (root / name).write_bytes(content)
    run = Run.open(root)
    return run, {job.name: job for job in plan_study(run.study).jobs}


@functools.cache
def _frozen(study: str) -> dict[str, bytes]:
    """The files of a new run folder: asking git and the packages for their versions takes longer than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        content = parse_study(demo(), "demo") if study == "demo" else load_study(STUDIES / f"{study}.yaml")
        run = Run.create(Path(folder, "run"), content)
        return {path.name: path.read_bytes() for path in run.root.iterdir() if path.is_file()}


def finish(run: Run, job: str, label: str, seconds: float = 2.0) -> None:
    """Mark the element done; a caller whose test looks at the element's results writes them itself."""
    write_json(run.element(job, label) / "done.json", {"started": 1.0, "seconds": seconds})


def make(run: Run, plan: Plan, key: Key, started: float) -> None:
    """Mark the element as made from what is there."""
    marks = {need: run.element(*need) / "done.json" for need, _ in plan.needs[key]}
    read = {"/".join(need): read_json(path)["started"] if path.exists() else 0.0 for need, path in marks.items()}
    mark = run.element(*key) / "done.json"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps({"started": started, "seconds": 2.0, "read": read}))  # not synced: there are many


def finish_evaluation(run: Run, job: Job, label: str) -> None:
    finish(run, job.name, label)
    element = next(item for item in job.elements if item.label == label)
    assert element.eval_task is not None
    rows = element.eval_task.path(run.evaluation(element.arm, element.kind))
    for path in (rows, rows.with_suffix(".suffixes.jsonl")):
        write_text(path, "{}\n")


def fail(run: Run, job: str, label: str, error: str = "the lamp fell over") -> None:
    write_json(run.element(job, label) / "failed.json", {"error": error, "time": 2.0})


def report_progress(
    run: Run,
    job: str,
    label: str,
    done: int = 30,
    total: int = 100,
    age_s: float = 1.0,
    host: str = "n1",
    left_s: float = 61.0,
    **figures,
) -> None:
    value = {"done": done, "total": total, "updated": time.time() - age_s, "left_s": left_s, "host": host, "figures": figures}
    write_json(run.element(job, label) / "progress.json", value)


def submitted(run: Run, job: str, job_id: str, labels: Iterable[str]) -> None:
    record(run, Submission(job=job, job_id=job_id, labels=tuple(labels), submitted=3.0))


class FakeSlurm:
    """Commands on the PATH that answer with given text and record their arguments."""

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.folder = folder
        self.output = folder.parent / "run" / "slurm" / "%A_%a_0_log.out"
        """Where jobs in the queue write: in the folder of the run they belong to."""
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.setattr("curricula.jobs.monitor.state.SLURM_PATIENCE_S", 120.0)  # bash starts slowly on a busy machine
        for name in ("squeue", "sacct", "sacctmgr", "scontrol", "scancel", "sbatch"):
            self.answer(name)

    def answer(self, command: str, text: str = "", error: str = "", code: int = 0, script: str = "") -> None:
        (self.folder / f"{command}.out").write_text(text)
        path = self.folder / command
        path.write_text(
            f'#!/bin/bash\nfor word in "$@"; do printf "%s\\0" "$word"; done >> "{self.folder}/{command}.calls"\n'
            f'echo >> "{self.folder}/{command}.calls"\n{script}\ncat "{self.folder}/{command}.out"\n'
            f"printf %s {json.dumps(error)} >&2\nexit {code}\n"
        )
        path.chmod(0o755)

    def queue(self, *rows: tuple[str, str, str, str, str, int]) -> None:
        """The rows that squeue lists, beside another job of the user's: (array, index, state, reason, nodes, restarts)."""
        other = squeue_line("6", "N/A", "RUNNING", output="/home/me/slurm-6.out")
        self.answer(
            "squeue", "".join(f"{line}\n" for line in (other, *(squeue_line(*row, output=self.output) for row in rows)))
        )

    def calls(self, command: str) -> list[list[str]]:
        path = self.folder / f"{command}.calls"
        whole = path.read_text().split("\n")[:-1] if path.exists() else []  # without a call that is still being recorded
        return [line.split("\0")[:-1] for line in whole]

    def remove(self, *commands: str) -> None:
        for command in commands:
            (self.folder / command).unlink()


def squeue_line(
    job_id: str, index: str, state: str, reason: str = "None", nodes: str = "", restarts: int = 0, output: object = ""
) -> str:
    values = {"ArrayJobID": job_id, "ArrayTaskID": index, "State": state, "RestartCnt": restarts, "Reason": reason,
              "NodeList": nodes, "STDOUT": output}  # fmt: skip
    return "".join(f"{values[name]!s:<{width}}" for name, width in COLUMNS.items())
