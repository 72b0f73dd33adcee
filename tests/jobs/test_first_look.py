"""The local launcher with several seeds: their order and the early report. Elements that do nothing stand in for real ones."""

import multiprocessing
import time

from small_studies import small_study, smaller_demo

from curricula.jobs import local
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.study import load_study


class Watcher:
    def __init__(self):
        self.ended, self.looks = [], []

    def update(self, running, finished=None):
        self.ended += [finished] if finished else []

    def first_look(self, page):
        self.looks.append((page, len(self.ended)))


def test_the_first_seed_goes_first_and_the_report_waits_for_the_look_at_it(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_forkserver", lambda *_: multiprocessing.get_context("fork"))
    monkeypatch.setattr(local, "_element_process", lambda *_: None)
    monkeypatch.setattr(local, "_first_look", lambda *_: time.sleep(3.0))
    tasks = {"base": ["attacks-topk"], "instruct": [], "benign": []}
    study = small_study(tmp_path, seed=None, seeds=[42, 43, 44], evaluation={**smaller_demo()["evaluation"], "tasks": tasks})
    run = Run.create(tmp_path / "run", load_study(study))
    plan, watcher = plan_study(run.study), Watcher()
    outcome = local.run_plan(run, plan, watcher, list(plan.needs), set(), workers=2)
    assert set(outcome.done) == set(plan.needs) and not outcome.failed and not outcome.skipped
    ((page, before),) = watcher.looks
    assert page == run.report / "index.html" and watcher.ended.index(("report", "report")) >= before
    seeds = {(job.name, element.label): element.seed for job, element in plan.elements()}
    first = [place for place, key in enumerate(watcher.ended) if seeds[key] == 42]
    assert max(first) < len(watcher.ended) * 2 / 3
