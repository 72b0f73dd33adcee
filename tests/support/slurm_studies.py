"""A study small enough to run again and again on the lab, and what its runs leave behind."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from paths import ROOT
from small_studies import demo_file as demo_file
from small_studies import smaller_demo

from curricula.durable import read_jsonl
from curricula.jobs.run import Run
from curricula.jobs.slurm.submissions import latest_tasks, submissions

PROFILE = ROOT / "env" / "profiles" / "slurm-lab.yaml"
TRUNK = "pretrain-trunk-12"


def write_study(folder: Path, name: str = "demo", steps: int = 24, batch: int = 4, **pretraining) -> Path:
    """Write the smaller demo, with `pretraining` for its settings of that name."""
    raw = smaller_demo()
    raw["name"] = name
    raw["pretraining"].update(budget_tokens=steps * batch * 128, global_batch=batch, micro_batch=2, save_interval_steps=2)
    raw["pretraining"].update(pretraining)
    for source in raw["sources"].values():
        source["max_epochs"] = 1000  # many steps over a little text
    path = folder / "study.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(raw))
    return path


def write_profile(folder: Path, **changes) -> Path:
    """The lab's profile; what is given for a stage is added to it."""
    raw = yaml.safe_load(PROFILE.read_text())
    for stage, options in changes.pop("stages", {}).items():
        raw["stages"].setdefault(stage, {}).update(options)
    raw.update(changes)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "profile.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def prepared(lab, folder: Path, study: Path) -> Path:
    """A run folder in which the data is made, on this machine: a start for many runs of the same study."""
    script = (
        "import sys; from pathlib import Path; from curricula.jobs.run import Run\n"
        "from curricula.jobs.study import load_study\n"
        "from curricula.jobs.graph import plan_study; from curricula.jobs.element import run_element\n"
        "run = Run.create(Path(sys.argv[2]), load_study(Path(sys.argv[1])))\n"
        "for job in plan_study(run.study).jobs_up_to(['tokenize']):\n"
        "    for element in job.elements: run_element(run.root, job.name, element.label)\n"
    )
    run = folder / "prepared"
    lab.run(sys.executable, "-c", script, study, run)
    return run


def curricula(lab, *args: object, check: bool = True) -> str:
    return lab.run(sys.executable, "-m", "curricula.jobs.cli.main", *args, check=check, stdin=subprocess.DEVNULL, cwd=ROOT)


def submit(lab, study: Path, profile: Path, run: Path, *args: object, check: bool = True) -> str:
    return curricula(
        lab, "submit", study, "--cluster", "slurm", "--profile", profile, "--run", run, "--yes", *args, check=check
    )


def task_of(run: Path, job: str, label: str) -> str:
    """Slurm's name of the array task that runs an element."""
    return str(latest_tasks(submissions(Run(run)))[job, label])


def show(lab, task: str) -> dict[str, str]:
    """`scontrol show job`, by key."""
    words = lab.run("scontrol", "--oneliner", "show", "job", task).split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def wait_until(
    condition: Callable[[], object], what: str, timeout_s: float = 300.0, tell: Callable[[], str] = str, every_s: float = 0.25
) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}\n{tell()}"
        time.sleep(every_s)


def is_done(run: Path, job: str, label: str) -> bool:
    return (Run(run).element(job, label) / "done.json").exists()


def step_of(run: Path, branch: str) -> int:
    """The last step in the metrics of a branch."""
    path = run / "pretrain" / branch / "metrics.jsonl"
    return max((row["step"] for row in read_jsonl(path)), default=0)


def saved_step(run: Path, branch: str) -> int:
    pointer = run / "pretrain" / branch / "checkpoints" / "latest"
    text = pointer.read_text(errors="replace") if pointer.exists() else ""  # a test may have put anything in it
    step = re.fullmatch(r"step_(\d{8})\n?", text)
    return int(step[1]) if step else 0


def metrics(run: Path, branch: str) -> list[str]:
    """What training computed and read at each step, without how long it took."""
    rows = [{k: v for k, v in row.items() if k != "timing"} for row in read_jsonl(run / "pretrain" / branch / "metrics.jsonl")]
    return [json.dumps(row, sort_keys=True) for row in rows]


def logs(run: Path) -> str:
    """All logs of a run, for the message of a failure."""
    texts = [f"== {path.name}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(run.glob("slurm/*_log.out"))]
    return "\n".join(texts)
