"""The local launcher: the order of several seeds, the early report, and failures. Elements that do nothing stand in for real
ones."""

import multiprocessing
import os
import signal
import sys
import time

import pytest
from run_folders import finish
from small_studies import small_study, smaller_demo

from curricula.jobs import local
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.study import load_study


class Watcher:
    def __init__(self, seen=None):
        """`seen` is a folder for files by which elements learn how many ran at once and how many ended."""
        self.ended, self.looks, self.most, self.seen = [], [], 0, seen

    def update(self, running, finished=None):
        self.most = max(self.most, len(running))
        self.ended += [finished] if finished else []
        if self.seen:
            for what in (f"{self.most} at once", f"{len(self.ended)} ended"):
                (self.seen / what).touch()

    def first_look(self, page):
        self.looks.append((page, len(self.ended)))


def wait_for(path):
    for _ in range(1200):
        if path.exists():
            break
        time.sleep(0.1)


def test_the_first_seed_goes_first_and_the_report_waits_for_the_look_at_it(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_forkserver", lambda *_: multiprocessing.get_context("fork"))
    monkeypatch.setattr(local, "_element_process", lambda *_: None)
    tasks = {"base": ["attacks-topk"], "instruct": [], "benign": []}
    study = small_study(tmp_path, seed=None, seeds=[42, 43, 44], evaluation={**smaller_demo()["evaluation"], "tasks": tasks})
    run = Run.create(tmp_path / "run", load_study(study))
    plan, watcher = plan_study(run.study), Watcher(tmp_path)

    def look(*_):
        (tmp_path / f"look after {max(int(path.name.split()[0]) for path in tmp_path.glob('* ended'))}").touch()
        wait_for(tmp_path / f"{len(plan.needs) - 1} ended")  # all but the report,
        time.sleep(1.0)  # which would now end first

    monkeypatch.setattr(local, "_first_look", look)
    outcome = local.run_plan(run, plan, watcher, list(plan.needs), set(), workers=1)  # with more, slower ones end later
    assert set(outcome.done) == set(plan.needs) and not outcome.failed and not outcome.skipped
    ((page, before),) = watcher.looks
    assert page == run.report / "index.html" and watcher.ended.index(("report", "report")) >= before
    seeds = {(job.name, element.label): element.seed for job, element in plan.elements()}
    first, later = ([place for place, key in enumerate(watcher.ended) if seeds[key] in wanted] for wanted in ([42], [43, 44]))
    assert max(first) < min(later)
    (look_after,) = (int(path.name.split()[-1]) for path in tmp_path.glob("look after *"))
    assert look_after >= sum(seed in (None, 42) for seed in seeds.values()) - 1  # all of the first seed but the report


def test_if_the_first_seed_ends_last_there_is_no_first_look_beside_the_final_report(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_forkserver", lambda *_: multiprocessing.get_context("fork"))
    monkeypatch.setattr(local, "_first_look", lambda *_: (tmp_path / "look").touch())
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path, seed=None, seeds=[42, 43])))
    plan = plan_study(run.study)
    chosen = [(name, label) for name, label in plan.needs if name in ("merge-50", "report")]

    def process(root, job, label):
        if label == "full-50/base":
            wait_for(tmp_path / f"{len(chosen) - 2} ended")  # all but itself and the report
        elif job == "report":
            time.sleep(1.0)  # in which a look would begin

    monkeypatch.setattr(local, "_element_process", process)
    outcome = local.run_plan(run, plan, Watcher(tmp_path), chosen, set(plan.needs) - set(chosen), workers=2)
    assert outcome.done[-2:] == [("merge-50", "full-50/base"), ("report", "report")] and not (tmp_path / "look").exists()


def test_there_is_no_first_look_at_a_first_seed_that_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_forkserver", lambda *_: multiprocessing.get_context("fork"))
    monkeypatch.setattr(local, "_element_process", lambda root, job, label: sys.exit(label == "full-50/base"))
    monkeypatch.setattr(local, "_first_look", lambda *_: (tmp_path / "look").touch())
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path, seed=None, seeds=[42, 43])))
    plan = plan_study(run.study)
    chosen = [("merge-50", "full-50/base"), ("merge-50", "full-50-s43/base"), ("report", "report")]
    outcome = local.run_plan(run, plan, Watcher(), chosen, set(plan.needs) - set(chosen), workers=1)
    assert outcome.failed == chosen[:1] and outcome.done[-2:] == chosen[1:] and not (tmp_path / "look").exists()


@pytest.mark.parametrize(("project", "code", "looks"), [(None, 0, 1), (None, 1, 0), ("p", 0, 0)])
def test_a_first_look_is_shown_if_it_could_be_written_and_not_sent_as_if_it_were_final(
    tmp_path, monkeypatch, project, code, looks
):
    monkeypatch.setattr(local, "_forkserver", lambda *_: multiprocessing.get_context("fork"))
    monkeypatch.setattr(local, "_element_process", lambda *_: None)
    monkeypatch.setattr(local, "_first_look", lambda *_: sys.exit(code))
    study = small_study(tmp_path, seed=None, seeds=[42, 43], tracking={"wandb_project": project})
    run = Run.create(tmp_path / "run", load_study(study))
    plan, watcher = plan_study(run.study), Watcher()
    chosen = [("merge-50", "full-50-s43/base"), ("report", "report")]
    outcome = local.run_plan(run, plan, watcher, chosen, set(plan.needs) - set(chosen), workers=2)
    assert len(watcher.looks) == looks and not outcome.failed
    done = set(plan.needs) - {chosen[0]}  # and no report is to be written
    assert local.run_plan(run, plan, watcher, chosen[:1], done, workers=2).failed == [] and len(watcher.looks) == looks


def test_no_more_elements_run_at_a_time_than_there_are_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_forkserver", lambda *_: multiprocessing.get_context("fork"))
    monkeypatch.setattr(local, "_element_process", lambda *_: wait_for(tmp_path / "2 at once"))
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path)))
    plan, watcher = plan_study(run.study), Watcher(tmp_path)
    chosen = [key for key in plan.needs if key[0].startswith("merge")][:3]
    local.run_plan(run, plan, watcher, chosen, set(plan.needs) - set(chosen), workers=2)
    assert len(watcher.ended) == 3 and watcher.most == 2
    monkeypatch.setattr(local, "_forkserver", lambda *_: 1 / 0)  # where nothing is left to do none is started
    assert local.run_plan(run, plan, watcher, chosen, set(plan.needs), workers=2).done == list(plan.needs)


def test_failures_hold_back_what_needs_success_alone(tmp_path, monkeypatch):
    failing = ("instruct-50", "full-50"), ("evaluate-base-100", "safe-100/attacks-topk/jb_completions")

    def element(root, job, label):
        if (job, label) == failing[1]:
            os.kill(os.getpid(), signal.SIGKILL)
        sys.exit((job, label) in failing)

    monkeypatch.setattr(local, "_forkserver", lambda *_: multiprocessing.get_context("fork"))
    monkeypatch.setattr(local, "_element_process", element)
    tasks = {"base": ["attacks-topk"], "instruct": ["attacks-topk"], "benign": []}
    study = small_study(tmp_path, evaluation={**smaller_demo()["evaluation"], "tasks": tasks})
    run = Run.create(tmp_path / "run", load_study(study))
    plan, watcher, done = plan_study(run.study), Watcher(), {("prepare", "prepare"), ("tokenize", "web/00000")}
    chosen = [key for key in plan.needs if key != ("benign-100", "safe-100")]
    for key in chosen:
        finish(run, *key)
    outcome = local.run_plan(run, plan, watcher, chosen, done, workers=2)
    assert set(outcome.failed) == set(failing)
    held = {("benign-50", "full-50"), *(key for key in plan.needs if key[0] == "evaluate-instruct-50")}
    assert set(outcome.skipped) == held and set(outcome.done) == set(chosen) - held - set(failing)
    assert outcome.done[:2] == [key for key in plan.needs if key in done] and outcome.done[-1] == ("report", "report")
    started = {*watcher.ended}
    assert started == set(chosen) - held - done and not watcher.looks
    assert {key for key in chosen if (run.element(*key) / "done.json").exists()} == done  # elements make their marks themselves
    assert "killed by SIGKILL" in (run.element(*failing[1]) / "log.txt").read_text()
    for key, needs in plan.needs.items():
        if key in started:
            assert all(watcher.ended.index(need) < watcher.ended.index(key) for need, _ in needs if need in started)


def test_the_report_is_written_though_a_failure_of_a_later_seed_holds_back_what_nothing_measures(tmp_path, monkeypatch):
    def element(root, job, label):
        time.sleep(2.0)  # the first look ends before
        sys.exit(job == "instruct-50")

    monkeypatch.setattr(local, "_forkserver", lambda *_: multiprocessing.get_context("fork"))
    monkeypatch.setattr(local, "_element_process", element)
    monkeypatch.setattr(local, "_first_look", lambda *_: (tmp_path / f"look of {os.getpid()}").touch())
    tasks = {"base": ["attacks-topk"], "instruct": [], "benign": []}
    study = small_study(tmp_path, seed=None, seeds=[42, 43], evaluation={**smaller_demo()["evaluation"], "tasks": tasks})
    run = Run.create(tmp_path / "run", load_study(study))
    plan = plan_study(run.study)
    chosen = [("instruct-50", "full-50-s43"), ("benign-50", "full-50-s43"), ("report", "report")]
    outcome = local.run_plan(run, plan, Watcher(), chosen, set(plan.needs) - set(chosen), workers=2)
    assert (outcome.failed, outcome.skipped) == (chosen[:1], chosen[1:2]) and outcome.done[-1] == chosen[2]
    assert len(list(tmp_path.glob("look of *"))) == 1
