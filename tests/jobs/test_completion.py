"""An element is done only if it read what is there now: for `status`, `retry`, the launchers and the element itself."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from judge_server import answer_row
from run_folders import FakeSlurm, fail, finish, make, new_run, submitted
from shard_folders import write_source
from small_studies import tree_study

from curricula.curriculum.world.fiction import World
from curricula.durable import read_json, write_text
from curricula.errors import StorageError
from curricula.eval.decoding.registry import DECODERS
from curricula.eval.judges.registry import load_judge
from curricula.eval.rows import VerdictRow, append_rows, write_rows
from curricula.eval.verdicts import key_of_question, verdicts_path
from curricula.jobs.cli.main import main
from curricula.jobs.cli.submit import to_run_again
from curricula.jobs.completion import Done, done_elements, is_complete
from curricula.jobs.element import run_element
from curricula.jobs.graph import plan_study
from curricula.jobs.monitor.state import run_status
from curricula.jobs.run import Run
from curricula.jobs.slurm.profile import Profile
from curricula.jobs.slurm.submit import standing
from curricula.jobs.stages import STAGES
from curricula.jobs.stages.base import Work
from curricula.jobs.study import parse_study

REPORT = ("report", "report")


@pytest.fixture
def demo(tmp_path, monkeypatch):
    """A run that is done: every element was made after those it needs, by clocks that disagree by minutes."""
    for module in ("completion", "monitor.state"):
        monkeypatch.setattr(f"curricula.jobs.{module}.is_complete", lambda *_: True)
    for stage in STAGES.values():
        monkeypatch.setattr(type(stage), "run", lambda *_: None)
    run, _ = new_run(tmp_path / "run")
    plan = plan_study(run.study)
    for number, key in enumerate(plan.needs):
        make(run, plan, key, 1000.0 + number % 7 * 100)
    return run, plan


def states(run, plan):
    return {(item.job, item.label): (item.state, item.reason) for item in run_status(run, plan).elements}


def test_a_finished_run_is_done_whatever_its_clocks_said(demo, monkeypatch):
    run, plan = demo
    assert done_elements(run, plan) == set(plan.needs)
    assert {state for state, _ in states(run, plan).values()} == {"done"}
    assert to_run_again(plan, run_status(run, plan).elements, plan.needs) == []
    before = (run.element(*REPORT) / "done.json").read_bytes()
    monkeypatch.setattr(type(STAGES["report"]), "run", lambda *_: pytest.fail("it works again"))
    for rank in "01":  # were it to work, the second would wait for the first
        monkeypatch.setenv("RANK", rank)
        run_element(run.root, *REPORT)
    assert (run.element(*REPORT) / "done.json").read_bytes() == before


def test_a_report_that_ran_before_its_results_were_there_is_stale_and_written_again(demo, capsys, tmp_path, monkeypatch):
    run, plan = demo
    merge = ("merge-20", "full-20/base")
    mark = run.element(*merge) / "done.json"
    kept = mark.read_bytes()
    mark.unlink()
    make(run, plan, REPORT, 1e9)  # the report does not wait for success
    mark.write_bytes(kept)
    assert done_elements(run, plan) == set(plan.needs) - {REPORT}
    state, reason = states(run, plan).pop(REPORT)
    assert state == "stale" and reason == "merge-20/full-20/base, which it reads, has been made since it began"
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["status", str(run.root)]) == 0
    shown = capsys.readouterr().out
    assert f"{len(plan.needs) - 1} of {len(plan.needs)} done, 1 stale" in shown and reason in shown and "pending" not in shown
    assert main(["retry", str(run.root), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "report/report"
    FakeSlurm(tmp_path / "bin", monkeypatch)
    assert standing(run, plan, Profile(), print).open(plan.needs) == [REPORT]  # what `submit` submits
    run_element(run.root, *REPORT)
    assert done_elements(run, plan) == set(plan.needs)


@pytest.mark.parametrize("clock", [5000.0, 5.0])  # nodes' clocks differ
def test_what_was_made_from_something_stale_is_stale_too(demo, clock):
    run, plan = demo
    make(run, plan, ("export-base-20", "full-20"), clock)  # made again
    found = {key: item for key, item in states(run, plan).items() if item[0] == "stale"}
    assert found["evaluate-base-20", "full-20/probes"][1].startswith("export-base-20/full-20, which it reads, has been")
    assert found[REPORT][1] == "merge-20/full-20/base, which it reads, is stale"
    assert not any("-60" in job or "data-20" in label for job, label in found)
    assert done_elements(run, plan) == set(plan.needs) - set(found)
    assert to_run_again(plan, run_status(run, plan).elements, plan.needs) == list(found)


def test_when_a_study_grows_or_shrinks_only_what_collects_is_stale(demo):
    run, plan = demo
    for key in (REPORT, ("export-base-20", "full-20")):
        mark, (need, *_) = run.element(*key) / "done.json", plan.needs[key]
        done = read_json(mark)
        del done["read"]["/".join(need[0])]  # the plan had not yet had it
        write_text(mark, json.dumps({**done, "read": {**done["read"], "dropped/since": 1.0}}))
    assert done_elements(run, plan) == set(plan.needs) - {REPORT}


def test_an_element_records_what_it_read_when_it_began(demo, monkeypatch):
    run, plan = demo
    merge = ("merge-20", "full-20/base")
    (run.element(*REPORT) / "done.json").unlink()
    monkeypatch.setattr(type(STAGES["report"]), "run", lambda *_: make(run, plan, merge, 7000.0))
    run_element(run.root, *REPORT)
    read = read_json(run.element(*REPORT) / "done.json")["read"]
    assert set(read) == {"/".join(need) for need, _ in plan.needs[REPORT]} and read["/".join(merge)] != 7000.0
    assert states(run, plan)[REPORT][0] == "stale"


def test_marks_of_earlier_versions_stand_until_what_they_read_is_made_again(demo):
    run, plan = demo
    for key in plan.needs:
        finish(run, *key)
    assert done_elements(run, plan) == set(plan.needs)
    make(run, plan, ("merge-20", "full-20/base"), 1.0)
    assert done_elements(run, plan) == set(plan.needs) - {REPORT}
    make(run, plan, ("pretrain-20", "full-20"), 1.0)
    assert ("export-base-20", "full-20") not in done_elements(run, plan)


def test_a_damaged_mark_counts_as_none_and_is_replaced(demo):
    run, plan = demo
    write_text(run.element(*REPORT) / "done.json", "nonsense")
    assert done_elements(run, plan) == set(plan.needs) - {REPORT}
    run_element(run.root, *REPORT)
    assert done_elements(run, plan) == set(plan.needs)


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EACCES])
def test_a_mark_that_cannot_be_read_now_stands(demo, monkeypatch, code):
    run, plan = demo
    mark, read = run.element("prepare", "prepare") / "done.json", Path.read_bytes

    def read_bytes(path):
        if path == mark:
            raise OSError(code, os.strerror(code), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    for look in (lambda: done_elements(run, plan), lambda: run_element(run.root, "prepare", "prepare")):
        with pytest.raises(StorageError, match=rf"done\.json: cannot be read \({os.strerror(code)}\)"):
            look()
    status = run_status(run, plan)
    assert status.problem.startswith(f"{mark}: cannot be read") and mark.exists()


def test_retry_names_the_running_report_that_it_overtakes(demo, capsys, tmp_path, monkeypatch):
    run, plan = demo
    slurm = FakeSlurm(tmp_path / "bin", monkeypatch)
    failed = ("merge-20", "full-20/base")
    for key, number in ((failed, "7"), (REPORT, "8")):
        submitted(run, key[0], number, [key[1]])
        (run.element(*key) / "done.json").unlink()
    fail(run, *failed)
    slurm.queue(("8", "0", "RUNNING", "None", "n1", 0))
    assert main(["retry", str(run.root), "--dry-run"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "report/report is running on the old results; run the same command again when it has ended",
        "merge-20/full-20/base",
        "1 element would run",
    ]


def test_an_element_that_began_before_what_it_needs_was_done_is_stale_once_that_is_made(demo, monkeypatch):
    run, plan = demo
    tuned, evaluated = ("instruct-20", "full-20"), ("evaluate-instruct-20", "full-20/probes")
    for key in (tuned, evaluated):
        (run.element(*key) / "done.json").unlink()
    run_element(run.root, *evaluated)  # by hand
    make(run, plan, tuned, 7000.0)
    assert evaluated not in done_elements(run, plan)
    assert states(run, plan)[evaluated][0] == "stale"


def test_a_model_that_an_earlier_version_of_the_judge_judged_is_judged_again(tmp_path):
    run, _ = new_run(tmp_path / "run")
    World.generate(run.study.world).save(run.world)
    plan, folder, row = plan_study(run.study), run.evaluation("full-20", "base"), answer_row(0)
    (task, *_) = run.study.eval_tasks("base")
    for path in (task.path(folder), folder / f"{task.task.name}.jsonl"):
        append_rows(path, [row])
    job = next(job for job in plan.jobs if job.name == "merge-20")
    element = next(element for element in job.elements if element.label == "full-20/base")
    work = Work(run, plan, job, element)
    now = load_judge(run.study.evaluation.judge_of("attack"), "attack", run.world).version
    for version in (now, "1"):
        about = {"judge": "world", "version": version, "label": "safe", "tells_helpful": None}
        verdict = VerdictRow(key=row.key, question=key_of_question(row, "world", version), **about)
        write_rows(verdicts_path(path), [verdict])
        assert is_complete(work, Done(seconds=1.0)) is (version == now)


@pytest.mark.parametrize("version", ["now", "1"])
def test_a_point_on_the_way_needs_the_rows_of_each_task_and_keeps_the_verdicts_that_it_has(tmp_path, version):
    run = Run.create(tmp_path / "run", parse_study(tree_study(), "here"))
    World.generate(run.study.world).save(run.world)
    work, row = Work(run, plan := plan_study(run.study), *plan.find("along-50", "full-50/75")), answer_row(0)
    rows = {task.task.name: task.path(work.rows_folder) for task in run.study.eval_tasks("base", on_the_way=True)}
    merged = work.rows_folder / "attacks-topk.jsonl"
    for path in (rows["attacks-topk"], rows["probes"], merged):
        assert not is_complete(work, Done(seconds=1.0))
        append_rows(path, [row])
    assert not is_complete(work, Done(seconds=1.0))
    now = load_judge(run.study.evaluation.judge_of("attack"), "attack", run.world).version
    version = now if version == "now" else version
    about = {"judge": "world", "version": version, "label": "safe", "tells_helpful": None}
    write_rows(verdicts_path(merged), [VerdictRow(key=row.key, question=key_of_question(row, "world", version), **about)])
    made = STAGES["along"].made(work)
    assert is_complete(work, Done(seconds=1.0, made=made))
    append_rows(rows["probes"], [row])
    assert not is_complete(work, Done(seconds=1.0, made=made))


def test_answers_of_an_earlier_version_of_the_decoder_are_generated_again(tmp_path, monkeypatch):
    run, _ = new_run(tmp_path / "run")
    work = Work(run, plan := plan_study(run.study), *plan.find("evaluate-base-20", "full-20/attacks-topk/jb_completions"))
    write_text(run.evaluation("full-20", "base") / "attacks-topk/jb_completions.jsonl", "{}\n")
    mark = Done(seconds=1.0, made=STAGES["evaluate"].made(work))
    assert is_complete(work, mark)
    monkeypatch.setitem(DECODERS, "topk", replace(DECODERS["topk"], version=DECODERS["topk"].version + 1))
    assert not is_complete(work, mark)


def test_an_evaluation_whose_rows_were_cut_at_the_end_of_a_line_runs_again(tmp_path, monkeypatch):
    run, _ = new_run(tmp_path / "run")
    plan, key = plan_study(run.study), ("evaluate-base-20", "full-20/probes")
    rows = run.evaluation("full-20", "base") / "probes.jsonl"
    monkeypatch.setattr(type(STAGES["evaluate"]), "run", lambda *_: write_text(rows, "{}\n{}\n"))

    def shown():
        return next((one.state, one.error) for one in run_status(run, plan).elements if (one.job, one.label) == key)

    run_element(run.root, *key)
    assert shown() == ("done", "")
    write_text(rows, "{}\n")
    assert shown() == (
        "interrupted",
        "was done, but its results are gone, or not those that it made, or a decoder has changed since: it will be made again",
    )
    run_element(run.root, *key)
    assert shown() == ("done", "") and rows.read_text() == "{}\n{}\n"


@pytest.mark.parametrize("shards", [1, 4])
def test_an_evaluation_without_rows_is_complete_only_where_it_is_a_shard_that_may_have_no_prompts(tmp_path, shards):
    run, _ = new_run(tmp_path / "run")
    plan = plan_study(run.study)
    job, element = next(one for one in plan.elements() if one[1].eval_task and one[1].eval_task.task.kind == "gcg")
    task = replace(element.eval_task, shards=shards)
    work = Work(run, plan, job, replace(element, eval_task=task))
    rows, found = task.path(work.rows_folder), [is_complete(work, Done(seconds=1.0))]
    suffixes, evaluation = rows.with_suffix(".suffixes.jsonl"), run.study.evaluation
    two = "{}\n" * 2 * (evaluation.topk.samples + 1)  # answers to two prompts, under top-k and under SafeBeam
    for path, text in ((rows, ""), (rows, two), (suffixes, "{}\n"), (suffixes, "{}\n{}\n")):
        write_text(path, text)
        found.append(is_complete(work, Done(seconds=1.0)))
    assert found == [False, shards > 1, False, False, True]  # other arms may try the suffixes, also one that a cut lost


def test_a_shard_that_another_was_put_in_place_of_is_not_done(tmp_path, monkeypatch):
    run, jobs = new_run(tmp_path / "run")
    plan, shards = plan_study(run.study), run.shards / "web"
    label = next(label for label in jobs["tokenize"].labels if label.startswith("web/0"))
    monkeypatch.setattr(type(STAGES["tokenize"]), "run", lambda *_: write_source(shards, [8]))
    run_element(run.root, "tokenize", label)
    assert states(run, plan)["tokenize", label][0] == "done"
    shutil.rmtree(shards)
    write_source(shards, [9])
    assert states(run, plan)["tokenize", label][0] == "interrupted"


EVERYTHING = {"fetch", "fetch-benchmarks", "tokenize"}


@pytest.mark.parametrize(
    ("stage", "is_made_again", "needed"),
    [
        ("merge", False, set()),
        ("evaluate", False, {"fetch-benchmarks"}),
        ("prepare", True, EVERYTHING),
        ("pretrain", True, EVERYTHING),  # what continues from it is stale
        ("report", True, set()),
    ],
)
def test_lost_data_are_made_again_only_while_something_has_yet_to_read_them(
    tmp_path, monkeypatch, stage, is_made_again, needed
):
    monkeypatch.delenv("CURRICULA_DATA", raising=False)
    for module in ("completion", "monitor.state"):
        monkeypatch.setattr(f"curricula.jobs.{module}.is_complete", lambda work, _: work.job.name not in EVERYTHING)
    raw = tree_study(world=None)
    raw["evaluation"]["judge"] = "refusal-phrases"
    run = Run.create(tmp_path / "run", parse_study(raw, "here"))
    plan = plan_study(run.study)
    for key in plan.needs:
        make(run, plan, key, 1000.0)
    assert done_elements(run, plan) == set(plan.needs)  # else all of a finished run would have to run again
    first = next(key for key in plan.needs if plan.by_name[key[0]].stage == stage)
    if is_made_again:
        make(run, plan, first, 2000.0)
    else:
        (run.element(*first) / "done.json").unlink()
    assert {job for job, _ in plan.needs.keys() - done_elements(run, plan)} & EVERYTHING == needed
    assert {item.job for item in run_status(run, plan).elements if item.state != "done"} & EVERYTHING == needed


def test_data_in_whose_place_others_were_put_are_made_again_in_any_case(tmp_path, monkeypatch):
    monkeypatch.setattr("curricula.jobs.completion.is_complete", lambda work, _: work.job.name != "tokenize")
    run, jobs = new_run(tmp_path / "run")
    plan = plan_study(run.study)
    for key in plan.needs:
        make(run, plan, key, 1000.0)
    assert done_elements(run, plan) == set(plan.needs)  # nothing has yet to read the lost shards
    write_source(run.shards / "web", [8])
    label = next(label for label in jobs["tokenize"].labels if label.startswith("web/0"))
    assert ("tokenize", label) not in done_elements(run, plan)


def test_what_a_training_has_made_is_read_once(tmp_path, monkeypatch):
    run, _ = new_run(tmp_path / "run")
    plan, read = plan_study(run.study), []
    work = Work(run, plan, *plan.find("instruct-20", "full-20"))
    write_text(work.model_folder / "config.json", "{}")
    assert is_complete(work, Done(seconds=1.0, made="it"))  # its checkpoints may have been moved away
    monkeypatch.setattr("curricula.jobs.stages.base.training_behind", lambda folder, step: read.append(folder) or "it")
    assert is_complete(work, Done(seconds=1.0, made="it")) and len(read) == 1
