"""--only, --from and --arms; restarts without progress; the snapshot of the code."""

import json
import subprocess
import sys

import pytest
from paths import STUDIES

from curricula.errors import UsageError
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.slurm.restarts import GaveUp, check_restarts
from curricula.jobs.slurm.scope import choose
from curricula.jobs.slurm.snapshot import take_snapshot
from curricula.jobs.study import load_study

DEMO = load_study(STUDIES / "demo.yaml")
JOBS = plan_study(DEMO).jobs


def test_everything_by_default():
    assert choose(DEMO, JOBS) == {job.name: tuple(element.label for element in job.elements) for job in JOBS}


def test_an_arm_brings_the_trunk_that_leads_to_it_and_the_data():
    chosen = choose(DEMO, JOBS, arms=["full-60"])
    trained = {name: labels for name, labels in chosen.items() if name.startswith("pretrain")}
    assert trained == {"pretrain-trunk-100": ("trunk",), "pretrain-trunk-300": ("trunk",), "pretrain-60": ("full-60",)}
    assert chosen["instruct-60"] == ("full-60",) and "instruct-20" not in chosen and "tokenize" in chosen
    assert all(label.startswith("full-60/") for label in chosen["evaluate-base-60"])


def test_stages_kinds_and_jobs_can_be_named():
    assert set(choose(DEMO, JOBS, only=["benign"])) == {"benign-0", "benign-20", "benign-60", "benign-100"}
    assert set(choose(DEMO, JOBS, only=["export-base-20", "report"])) == {"export-base-20", "report"}
    assert list(choose(DEMO, JOBS, start="evaluate"))[0] == "evaluate-base-0"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"only": ["tuning"]}, "--only 'tuning': choose a stage of"),
        ({"start": "x"}, "--from 'x': choose"),
        ({"arms": ["full-30"]}, "--arms 'full-30': not in this study; its arms are"),
        ({"only": ["prepare"], "start": "report"}, "leave nothing"),
    ],
)
def test_words_that_name_nothing_are_refused(words, said):
    with pytest.raises(UsageError, match=said):
        choose(DEMO, JOBS, **words)


def start(run: Run, restarts: int, job_id: str = "5", limit: str = "3") -> None:
    job = next(job for job in JOBS if job.name == "pretrain-trunk-100")
    environment = {
        "CURRICULA_RESTARTS_WITHOUT_PROGRESS": limit,
        "SLURM_ARRAY_JOB_ID": job_id,
        "SLURM_ARRAY_TASK_ID": "0",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    (run.element(job.name, "trunk")).mkdir(parents=True, exist_ok=True)
    check_restarts(run, job, job.elements[0], environment)


def save(run: Run, step: int) -> None:
    checkpoints = run.branch("trunk") / "checkpoints"
    (checkpoints / f"step_{step:08d}").mkdir(parents=True)
    (checkpoints / "latest").write_text(f"step_{step:08d}\n")


def test_an_element_gives_up_after_restarts_that_saved_nothing_new(tmp_path):
    run = Run(tmp_path)
    for restarts in (0, 1, 2):
        start(run, restarts)
    save(run, 10)
    for restarts in (3, 4, 5):
        start(run, restarts)
    mark = run.element("pretrain-trunk-100", "trunk") / "failed-before.json"
    mark.write_text(json.dumps({"error": "CUDA error: out of luck"}))
    with pytest.raises(
        GaveUp, match="restarted 3 times without progress .still at 10 saved steps.*out of luck"
    ) as error:
        start(run, 6)
    assert error.value.exit_code == 93
    start(run, 0, job_id="6")  # submitted anew


def test_restarts_are_not_counted_outside_of_slurm(tmp_path):
    job = JOBS[0]
    check_restarts(Run(tmp_path), job, job.elements[0], {"SLURM_RESTART_COUNT": "99"})
    assert not list(tmp_path.iterdir())


def test_a_snapshot_is_the_code_and_is_what_runs(tmp_path):
    folder = take_snapshot(tmp_path)
    assert take_snapshot(tmp_path) == folder and [path.name for path in (tmp_path / "code").iterdir()] == [folder.name]
    # Told from the checkout by a change in it, and run from a folder that has a package of the same name.
    (folder / "curricula" / "jobs" / "element.py").write_text(
        "def main(words):\n    print('of the snapshot', *words)\n    return 0\n"
    )
    (tmp_path / "curricula").mkdir()
    (tmp_path / "curricula" / "__init__.py").write_text("raise SystemExit('of the working folder')\n")
    ran = subprocess.run(
        [sys.executable, folder / "run_element.py", "R", "J", "E"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.stdout == "of the snapshot R J E\n", ran.stderr
