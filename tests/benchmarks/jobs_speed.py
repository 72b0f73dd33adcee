"""Waiting times around the jobs: the command line, `status` of a large study, the start of training.

    python tests/benchmarks/jobs_speed.py
    python tests/benchmarks/jobs_speed.py --elements 5000 --json jobs.json
    SLURM_CONF=... python tests/benchmarks/jobs_speed.py --profile env/profiles/slurm-lab.yaml

Each measurement is a process of its own. Rows:

import   Import `curricula.jobs.cli.main` and build the parser of all verbs but `data`; run `curricula status --help`. For
         comparison `import submitit`, the usual library for submitting to Slurm.
status   Run `curricula status`, also with `--json`, on a run folder of about --elements elements in all states, all submitted.
         squeue is a stand-in that answers at once with a line for each. For comparison, the time that submitit takes to learn
         the states of as many tasks from one answer of sacct, a stand-in too: a SlurmJob for each, and `job.state` of all,
         without the import of submitit. That reads no progress, no errors and no results.
slow     Read the folder alone when each file takes 1 ms to open, as on a busy parallel file system: with one thread and with
         all.
start    From the start of the process to the end of the first training step of a tiny model on this CPU, part by part. For
         comparison torchrun, from its start to the first line of the script that it launches: the suite needs no launcher.
job      With --profile, on an existing Slurm: the same from sbatch's answer on, which adds the queue and srun.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import machine

sys.path += [str(machine.ROOT / "tests" / "support")]
OPEN_S = 0.001
PATIENCE_S = 600
"""How long a job may take to get through the queue."""
STATES = ("done", "done", "done", "done", "running", "running", "pending", "pending", "failed", "cancelled")


def cpu_seconds() -> float:
    """Processor time of this process and its ended children, which other work on the machine hardly affects."""
    return sum(os.times()[:4])


def imports(what: str) -> machine.Task:
    began, cpu = time.perf_counter(), cpu_seconds()
    if what == "ours":
        from curricula.jobs.cli.main import build_parser

        build_parser([])
    else:
        import submitit  # noqa: F401
    return {"seconds": time.perf_counter() - began, "cpu": cpu_seconds() - cpu}


def command(words: list[str], path: str) -> machine.Task:
    """Times a `curricula` command from start to end."""
    environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}", "COLUMNS": "120"}
    began, cpu = time.perf_counter(), cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "curricula.jobs.cli.main", *words], env=environment, capture_output=True, check=True
    )
    return {"seconds": time.perf_counter() - began, "cpu": cpu_seconds() - cpu, "bytes": len(done.stdout)}


def submitit_states(folder: str, tasks: list[str], path: str) -> machine.Task:
    import submitit

    os.environ["PATH"] = f"{path}:{os.environ['PATH']}"
    began, cpu = time.perf_counter(), cpu_seconds()
    jobs: list[Any] = [submitit.SlurmJob(folder, task) for task in tasks]
    states = [job.state for job in jobs]
    assert "UNKNOWN" not in states
    return {"seconds": time.perf_counter() - began, "cpu": cpu_seconds() - cpu}


def slow_folder(root: str, readers: int) -> machine.Task:
    from curricula.jobs.graph import plan_study
    from curricula.jobs.monitor import state
    from curricula.jobs.run import Run

    run = Run(Path(root))
    plan = plan_study(run.study)  # before the clock starts
    true_open = io.open

    def slow_open(*words: Any, **more: Any) -> Any:
        time.sleep(OPEN_S)
        return true_open(*words, **more)

    run.submissions.rename(run.submissions.with_suffix(".away"))  # the folder alone
    try:
        with patch("io.open", slow_open), patch("builtins.open", slow_open), patch.object(state, "READERS", readers):
            began, cpu = time.perf_counter(), cpu_seconds()
            state.run_status(run, plan)
            return {"seconds": time.perf_counter() - began, "cpu": cpu_seconds() - cpu}
    finally:
        run.submissions.with_suffix(".away").rename(run.submissions)


def start(root: str, began: float) -> machine.Task:
    """Seconds of each part up to the end of the trunk's first step."""
    parts: dict[str, float] = {}
    last = began

    def lap(part: str) -> None:
        nonlocal last
        now = time.time()
        parts[part], last = now - last, now

    lap("the interpreter and this program")
    from curricula.jobs.graph import plan_study
    from curricula.jobs.run import Run
    from curricula.jobs.stages import STAGES, Work

    lap("imports of jobs and curriculum")
    run = Run(Path(root))
    plan = plan_study(run.study)
    work = next(Work(run, plan, job, element) for job, element in plan.elements() if element.segment)
    lap("study and plan")
    import torch  # noqa: F401

    lap("import of torch")
    import curricula.model.train as engine

    lap("import of Megatron-core")
    true_started, true_read = engine.started, engine.Trainer._read

    @contextlib.contextmanager
    def started(*words: Any) -> Any:
        with true_started(*words) as parallel:
            lap("process group and parallel state")
            yield parallel

    def read(self: Any, *words: Any) -> Any:
        lap("network, optimizer, metrics")
        return true_read(self, *words)

    class FirstStep(Exception):
        pass

    def progress(done: int, total: int, **figures: Any) -> None:
        lap("first step, with its batch")
        raise FirstStep

    engine.started, engine.Trainer._read = started, read  # type: ignore[method-assign]
    with contextlib.suppress(FirstStep):
        STAGES["pretrain"].run(work, progress)
    return {"parts": parts, "seconds": time.time() - began, "cpu": cpu_seconds()}


def slurm_start(root: str, profile: str) -> machine.Task:
    """Seconds of each part from sbatch's answer to the trunk's first step, in a job of `curricula submit`."""
    from curricula.jobs.run import Run
    from curricula.jobs.slurm.submissions import submissions

    with tempfile.TemporaryDirectory(dir=Path(root).parent) as folder:
        run = Run(Path(folder, "run"))
        shutil.copytree(root, run.root, ignore=shutil.ignore_patterns("pretrain"))  # what `start` left
        words = ["submit", str(run.root / "study.yaml"), "--cluster", "slurm", "--profile", profile, "--run", str(run.root)]
        cpu = cpu_seconds()
        try:
            curricula(*words, "--stage", "pretrain", "--arm", "safe-100", "--yes")
            first = submissions(run)[0]
            element, metrics = run.element(first.job, first.labels[0]), run.branch(first.labels[0]) / "metrics.jsonl"
            deadline = time.monotonic() + PATIENCE_S
            while not metrics.exists() or not metrics.stat().st_size:
                if time.monotonic() > deadline or (element / "failed.json").exists():
                    raise RuntimeError(f"job {first.job_id} made no step within {PATIENCE_S} s: {logs(run)}")
                time.sleep(0.005)
            ended = time.time()
            times = [
                first.submitted,
                float(subprocess.check_output(["stat", "--format=%.9W", element])),  # the batch script has made it
                (element / "lock").stat().st_mtime,
                ended,
            ]
        finally:
            curricula("cancel", str(run.root), "--yes")
            ids = ",".join(one.job_id for one in submissions(run))
            while ids and subprocess.run(["squeue", "--noheader", f"--jobs={ids}"], capture_output=True, text=True).stdout:
                time.sleep(0.1)
    parts = ("the queue", "srun, interpreter, imports of jobs", "torch, Megatron-core, network, first step")
    laps = {part: after - before for part, before, after in zip(parts, times, times[1:])}
    return {"parts": laps, "seconds": sum(laps.values()), "cpu": cpu_seconds() - cpu}


def curricula(*words: str) -> None:
    command = [sys.executable, "-m", "curricula.jobs.cli.main", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=machine.ROOT)
    if done.returncode:
        raise RuntimeError(f"{words}: {done.stdout[-1000:]}{done.stderr[-1000:]}")


def logs(run: Any) -> str:
    return "\n".join(path.read_text(errors="replace")[-1000:] for path in run.slurm.glob("*_log.out"))


def torchrun(folder: str) -> machine.Task:
    script = Path(folder, "first_line.py")
    script.write_text("import time; print(time.time())\n")
    began, cpu = time.time(), cpu_seconds()
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "--master-port=0", str(script)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return {"seconds": float(done.stdout.split()[-1]) - began, "cpu": cpu_seconds() - cpu}


MEASURES = {
    "imports": imports, "command": command, "submitit_states": submitit_states, "slow_folder": slow_folder, "start": start,
    "torchrun": torchrun, "slurm_start": slurm_start,
}  # fmt: skip


def large_run(folder: Path, elements: int) -> tuple[str, str, list[str]]:
    """A run folder of about `elements` elements, stand-ins for squeue and sacct, and the tasks' names."""
    from run_folders import FakeSlurm, fail, finish, finish_evaluation, report_progress, squeue_line, submitted
    from small_studies import demo

    from curricula.jobs.graph import plan_study
    from curricula.jobs.run import Run
    from curricula.jobs.study import Study, parse_study

    raw = demo()
    sets = raw["curriculum"]["interventions"]

    def study(more: int) -> Study:
        raw["curriculum"]["interventions"] = {**sets, **{f"set{number}": sets["full"] for number in range(more)}}
        return parse_study(raw, "the benchmark's study")

    none, one = (sum(len(job.elements) for job in plan_study(study(more)).jobs) for more in (0, 1))
    run = Run.create(folder / "run", study(max(1, round((elements - none) / (one - none)))))

    class Ignored:  # the stand-ins get their PATH by themselves
        def setenv(self, name: str, value: str) -> None:
            pass

    slurm = FakeSlurm(folder / "bin", Ignored())
    queue, account, tasks, place = [], [], [], 0
    for number, job in enumerate(plan_study(run.study).jobs):
        submitted(run, job.name, str(1000 + number), [element.label for element in job.elements])
        for index, element in enumerate(job.elements):
            state = STATES[place % len(STATES)]
            place += 1
            task = f"{1000 + number}_{index}"
            tasks.append(task)
            words = {
                "done": "COMPLETED",
                "running": "RUNNING",
                "pending": "PENDING",
                "failed": "FAILED",
                "cancelled": "CANCELLED",
            }
            queue.append(squeue_line(str(1000 + number), str(index), words[state], "None", "n1", output=slurm.output))
            account.append(f"{task}|{task}|{words[state]}|n1")
            if state in ("done", "running"):
                report_progress(run, job.name, element.label, loss=2.0, tokens_per_second=1e6)
            if state == "done":
                finish_evaluation(run, job, element.label) if job.name.startswith("evaluate") else finish(
                    run, job.name, element.label
                )
            elif state == "failed":
                fail(run, job.name, element.label)
    slurm.answer("squeue", "".join(f"{line}\n" for line in queue))
    slurm.answer("sacct", "JobID|JobIDRaw|State|NodeList\n" + "".join(f"{line}\n" for line in account))
    return str(run.root), str(slurm.folder), tasks


def trainable_run(folder: Path) -> str:
    """A run whose trunk can train, with the data of a very small study."""
    from small_studies import small_study

    from curricula.jobs.element import run_element
    from curricula.jobs.graph import plan_study
    from curricula.jobs.run import Run
    from curricula.jobs.study import load_study

    run = Run.create(folder / "trainable", load_study(small_study(folder)))
    for job in plan_study(run.study).jobs_up_to(["tokenize"]):
        for element in job.elements:
            run_element(run.root, job.name, element.label)
    return str(run.root)


def main() -> None:
    parser = machine.parser(__doc__)
    parser.add_argument("--elements", type=int, default=2000, help="how large the study is that status shows")
    parser.add_argument("--profile", type=Path, help="measure the start of a job on the Slurm that is there, with this profile")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="jobs-speed-") as name:
        folder = Path(name)
        machine.progress("making run folders")
        root, path, tasks = large_run(folder, args.elements)
        trainable = trainable_run(folder)
        asked: dict[str, machine.Task] = {
            "import: ours": {"measure": "imports", "what": "ours"},
            "import: submitit": {"measure": "imports", "what": "submitit"},
            "curricula status --help": {"measure": "command", "words": ["status", "--help"], "path": path},
            "curricula status": {"measure": "command", "words": ["status", root], "path": path},
            "curricula status --json": {"measure": "command", "words": ["status", root, "--json"], "path": path},
            "submitit: state of each": {
                "measure": "submitit_states",
                "folder": str(folder / "submitit"),
                "tasks": tasks,
                "path": path,
            },
            "slow files: 1 thread": {"measure": "slow_folder", "root": root, "readers": 1},
            "slow files: all threads": {"measure": "slow_folder", "root": root, "readers": 16},
            "start of training": {"measure": "start", "root": trainable},
            "start of torchrun": {"measure": "torchrun", "folder": name},
        }
        if args.profile:
            profile = str(args.profile.resolve())
            asked["start of a job"] = {"measure": "slurm_start", "root": trainable, "profile": profile}

        def measure(row: str) -> machine.Task:
            began = {"began": time.time()} if asked[row]["measure"] == "start" else {}
            return machine.fresh({**asked[row], **began})

        rows = machine.in_turns(list(asked), args.repeats, measure)
    seconds = {row: [measured["seconds"] for measured in found] for row, found in rows.items()}
    middle = {row: statistics.median(values) for row, values in seconds.items()}
    peers = {
        "import: ours": "import: submitit", "curricula status": "submitit: state of each",
        "curricula status --json": "submitit: state of each", "slow files: all threads": "slow files: 1 thread",
        "start of training": "start of torchrun",
    }  # fmt: skip
    shown = machine.table(f"Waiting, for a study of {len(tasks)} elements", "", "seconds", "peer / ours", "of a processor")
    for row, values in seconds.items():
        ratio = f"{middle[peers[row]] / middle[row]:.2f}" if row in peers else ""
        shown.add_row(row, machine.shown(values), ratio, machine.shown([measured["cpu"] for measured in rows[row]]))
    tables = [shown]
    for row, since in (("start of training", "the start of the process"), ("start of a job", "sbatch's answer")):
        if row in rows:
            tables.append(machine.table(f"From {since} to the first step", "part", "seconds"))
            for part in rows[row][0]["parts"]:
                tables[-1].add_row(part, machine.shown([found["parts"][part] for found in rows[row]]))
    machine.report(args, tables, [], rows)


if __name__ == "__main__" and not machine.serve_child(MEASURES):
    main()
