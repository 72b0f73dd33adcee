"""An element that is restarted again and again without progress gives up."""

import json
from unittest.mock import patch

import pytest
from small_studies import demo

from curricula.durable import write_json
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.slurm.restarts import GaveUp, check_restarts
from curricula.jobs.stages import STAGES, Work
from curricula.jobs.study import parse_study

PLAN = plan_study(parse_study(demo(), "demo"))


def start(run: Run, restarts: int, job_id: str = "5", limit: str = "3") -> None:
    job, element = PLAN.find("pretrain-trunk-100", "trunk")
    environment = {
        "CURRICULA_RESTARTS_WITHOUT_PROGRESS": limit,
        "SLURM_ARRAY_JOB_ID": job_id,
        "SLURM_ARRAY_TASK_ID": "0",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    (run.element(job.name, "trunk")).mkdir(parents=True, exist_ok=True)
    with patch.dict("os.environ", environment):
        check_restarts(Work(run, PLAN, job, element))


def end(run: Run, code: int = 1) -> None:
    """What the batch script does when the element ended by itself."""
    with open(run.element("pretrain-trunk-100", "trunk") / "own-ends", "a") as file:
        file.write(f"{code}\n")


def save(run: Run, step: int) -> None:
    checkpoints = run.branch("trunk") / "checkpoints"
    (checkpoints / f"step_{step:08d}").mkdir(parents=True)
    (checkpoints / "latest").write_text(f"step_{step:08d}\n")


def test_an_element_gives_up_after_restarts_that_saved_nothing_new(tmp_path):
    run = Run(tmp_path)
    for restarts in (0, 1, 2):
        start(run, restarts)
        end(run)
    save(run, 10)
    for restarts in (3, 4, 5):
        start(run, restarts)
        end(run, 124)  # the time limit
    mark = run.element("pretrain-trunk-100", "trunk") / "failed-before.json"
    mark.write_text(json.dumps({"error": "CUDA error: out of luck"}))
    with pytest.raises(GaveUp, match="restarted 3 times without progress .still at 10 saved steps.*out of luck") as error:
        start(run, 6)
    assert error.value.exit_code == 93
    mark.write_text("")
    with pytest.raises(GaveUp, match="none was recorded"):
        start(run, 6)


def test_a_start_that_is_killed_when_it_has_noted_progress_counts_no_end_before_it(tmp_path, monkeypatch):
    run = Run(tmp_path)
    for _ in range(3):
        start(run, 0)
        end(run)
    save(run, 10)

    def write_and_die(*args) -> None:
        write_json(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as dying, pytest.raises(KeyboardInterrupt):
        dying.setattr("curricula.jobs.slurm.restarts.write_json", write_and_die)
        start(run, 0)
    start(run, 0)
    assert not (run.element("pretrain-trunk-100", "trunk") / "own-ends").exists()


def test_what_was_lost_and_is_saved_again_is_no_progress(tmp_path):
    run = Run(tmp_path)
    for step in (10, 20):
        save(run, step)
    for step in (20, 10, 20):
        (run.branch("trunk") / "checkpoints/latest").write_text(f"step_{step:08d}\n")
        start(run, 0)
        end(run)
    with pytest.raises(GaveUp, match="restarted 3 times"):
        start(run, 0)


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_damaged_count_of_what_was_saved_is_begun_anew(tmp_path, content):
    run = Run(tmp_path)
    start(run, 0, limit="1")
    end(run)
    (run.element("pretrain-trunk-100", "trunk") / "restarts.json").write_text(content)
    start(run, 0, limit="1")
    end(run)
    with pytest.raises(GaveUp):
        start(run, 0, limit="1")


def test_starts_that_slurm_took_away_are_not_counted(tmp_path):
    run = Run(tmp_path)
    for restarts in range(9):
        start(run, restarts, limit="1")
    for restarts in (9, 10):
        end(run)
        start(run, restarts)
    end(run)
    with pytest.raises(GaveUp, match="restarted 3 times"):
        start(run, 11)


def test_starts_of_several_jobs_of_an_element_count_together(tmp_path):
    """They continue one another, or Slurm has two and they fail in turn."""
    run = Run(tmp_path)
    for job_id in ("5", "6", "5"):
        start(run, 0, job_id)
        end(run)
    with pytest.raises(GaveUp, match="restarted 3 times"):
        start(run, 0, "6")


def work_of(run: Run, job: str, label: str) -> Work:
    return Work(run, PLAN, *PLAN.find(job, label))


def test_what_other_elements_save_is_no_progress_of_an_evaluation_but_verdicts_are_of_its_merge(tmp_path):
    run = Run(tmp_path)
    rows = run.evaluation("full-0", "base")
    (rows / "attacks-topk").mkdir(parents=True)
    own = work_of(run, "evaluate-base-0", "full-0/attacks-topk/jb_completions")
    merge = work_of(run, "merge-0", "full-0/base")
    saved = [STAGES[work.job.stage].saved(work) for work in (own, merge)]
    for name, is_own in (("attacks-topk/other.jsonl", False), ("attacks-topk/jb_completions.jsonl", True)):
        (rows / name).write_text("{}\n")
        assert (STAGES["evaluate"].saved(own) > saved[0]) is is_own
    (rows / "attacks-topk.verdicts.jsonl").write_text("{}\n")
    assert STAGES["merge"].saved(merge) == 9 and STAGES["evaluate"].saved(own) == 3


def test_restarts_are_not_counted_outside_of_slurm(tmp_path, monkeypatch):
    job = PLAN.jobs[0]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "99")
    check_restarts(Work(Run(tmp_path), PLAN, job, job.elements[0]))
    assert not list(tmp_path.iterdir())
