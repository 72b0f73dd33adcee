"""A checkpoint that was lost or damaged while something still begins from it is trained again; one that nobody needs is not."""

import errno
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType

import msgspec
import pytest
from run_folders import finish, new_run
from small_studies import demo, tree_study

from curricula.durable import exclusive_lock, read_json, write_json, write_text
from curricula.errors import StorageError, UserError
from curricula.fencing import InUse
from curricula.jobs.completion import is_done
from curricula.jobs.element import main, run_element
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.stages import STAGES, Work
from curricula.jobs.stages.base import saved_steps
from curricula.jobs.stages.tune import base_checkpoint, checkpoint_of
from curricula.jobs.study import parse_study
from curricula.model.checkpoints.folder import CheckpointInfo, read_info, step_folder, step_of, stored_file
from curricula.model.config import PRESETS
from curricula.progress import silent


def test_a_lost_branch_point_is_made_again_only_while_an_arm_begins_from_it(tmp_path, monkeypatch):
    run, _ = new_run(tmp_path / "run")
    plan = plan_study(run.study)
    trunk = next(segment for segment in plan.segments.values() if segment.branch == "trunk")
    work = next(Work(run, plan, job, element) for job, element in plan.elements() if element.segment == trunk.name)
    finish(run, work.job.name, "trunk")
    point = step_folder(run.branch("trunk") / "checkpoints", trunk.stop)
    assert not is_done(work)
    _save(point)
    assert is_done(work)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_, **__: _fail_to_read())
        with pytest.raises(StorageError):  # an unreadable one may be whole
            is_done(work)
    (point / "weights").write_bytes(b"1234")
    assert not is_done(work)
    shutil.rmtree(point)
    for job, element in plan.elements():
        if element.segment and plan.segments[element.segment].parent == trunk.name:
            assert not is_done(work)
            if element.label in ("full-20", "trunk"):  # has begun and goes on from there
                _save(step_folder(run.branch(element.label) / "checkpoints", trunk.stop + 1))
            else:
                finish(run, job.name, element.label)
    assert is_done(work)


def test_a_lost_branch_point_is_not_made_again_beside_a_later_segment_that_trains_in_the_same_folder(tmp_path, monkeypatch):
    """Each would delete the other's half-written checkpoints as leftovers of its own."""
    run, _ = new_run(tmp_path / "run")
    plan = plan_study(run.study)
    keys = [(job.name, element.label) for job, element in plan.elements() if element.segment]
    first, *_, last = (key for key in keys if key[1] == "trunk")
    began = []

    def train(stage, work, progress):
        began.append((work.job.name, work.element.label))
        if began == [last]:
            with pytest.raises(InUse, match="pretrain/trunk: in use"):
                run_element(run.root, *first)
            run_element(run.root, *keys[-1])  # of another branch

    monkeypatch.setattr("curricula.jobs.element.DEAD_HOLDER_S", 0.0)
    monkeypatch.setattr(type(STAGES["pretrain"]), "run", train)
    for key in (last, first):
        run_element(run.root, *key)
    assert began == [last, keys[-1], first] and keys[-1][1] != "trunk"


def test_the_last_checkpoint_of_an_arm_is_made_again_while_its_model_has_to_be_tuned_or_exported(tmp_path):
    run, jobs = new_run(tmp_path / "run")
    plan = plan_study(run.study)
    work = Work(run, plan, *plan.find("pretrain-20", "full-20"))
    finish(run, "pretrain-20", "full-20")
    last = base_checkpoint(run, work.arm)
    _save(last)
    _save(step_folder(last.parent, 1))
    (last / "checkpoint.json").unlink()
    assert not is_done(work)
    with pytest.raises(UserError, match="full-20.*no such file"):  # never the earlier one in its place
        read_info(base_checkpoint(run, work.arm))
    for job in ("export-base-20", "instruct-20"):
        finish(run, job, "full-20")
    assert is_done(work)


@pytest.mark.parametrize(("stage", "child"), [("instruct", "benign-20"), ("mt", "export-mt-20")])
def test_the_last_checkpoint_of_a_stage_is_made_again_while_something_has_to_begin_from_it(tmp_path, stage, child):
    raw = demo()
    raw["stages"] = {"mt": {"kind": "midtrain", "mix": "full", "steps": 4, "lr": 1e-3}}
    run = Run.create(tmp_path / "run", parse_study(raw, "here"))
    plan = plan_study(run.study)
    work = Work(run, plan, *plan.find(f"{stage}-20", "full-20"))
    begins = Work(run, plan, *plan.find(child, "full-20"))
    checkpoints = run.tuning("full-20", stage) / "checkpoints"
    finish(run, work.job.name, "full-20")
    for step in (2, 4):
        _save(step_folder(checkpoints, step), {"total_steps": 4})
    write_text(checkpoints / "latest", "step_00000004")
    write_json(work.model_folder / "config.json", {})
    assert is_done(work)
    shutil.rmtree(step_folder(checkpoints, 4))
    assert not is_done(work)
    (checkpoints / "latest").unlink()
    assert not is_done(work)
    with pytest.raises(UserError, match="step_00000002: step 2 of 4, and the last checkpoint is gone"):
        _ = STAGES[begins.job.stage].inputs(begins)  # never from the earlier one
        STAGES[begins.job.stage].run(begins, silent)
    own = step_folder(run.tuning("full-20", "benign") / "checkpoints", 1)
    _save(own)
    assert is_done(work) is (child == "benign-20")  # which goes on from there
    shutil.rmtree(own)
    finish(run, child, "full-20")
    assert is_done(work)


@pytest.mark.parametrize(("kind", "job"), [("base", "export-base-20"), ("instruct", "instruct-20")])
def test_a_model_that_was_lost_before_it_was_measured_is_written_again_once_and_nothing_else_is_done_for_it(
    tmp_path, monkeypatch, kind, job
):
    run, _ = new_run(tmp_path / "run")
    plan, exported, measured = plan_study(run.study), [], []

    def export(checkpoint, model, *_):
        read_info(checkpoint)
        time.sleep(0.1)
        write_json(model / "config.json", {})
        exported.append(checkpoint)

    monkeypatch.setattr("curricula.model.convert.export_hf", export)
    monkeypatch.setattr("curricula.eval.models.load_model", lambda folder, *_, **__: folder)
    monkeypatch.setattr("curricula.eval.runner.run_element", lambda task, model, *_, **__: measured.append((task, model)))
    monkeypatch.setattr("curricula.eval.runner.task_prompts", lambda *_: [])
    own, step = (run.branch("full-20"), run.study.budget.steps) if kind == "base" else (run.tuning("full-20", kind), 4)
    last = step_folder(own / "checkpoints", step)
    _save(last, {"total_steps": step})
    write_text(last.parent / "latest", last.name)
    finish(run, job, "full-20")
    assert is_done(Work(run, plan, *plan.find(job, "full-20")))
    keys = [key for key in plan.needs if key[0] == f"evaluate-{kind}-20" and key[1].startswith("full-20/")]
    works = [Work(run, plan, *plan.find(*key)) for key in keys]
    with ThreadPoolExecutor(4) as several:
        list(several.map(lambda work: STAGES["evaluate"].run(work, silent), works))
    assert exported == [last] and len(measured) == len(works) > 1
    assert {model for _, model in measured} == {run.model("full-20", kind)}
    shutil.rmtree(run.model("full-20", kind))
    monkeypatch.setattr("curricula.jobs.stages.evaluate.EXPORT_S", 0.0)
    with exclusive_lock(run.model("full-20", kind).with_name(f"{kind}.lock")):  # another is still writing it
        assert main([str(run.root), *keys[0]]) == InUse.exit_code
    assert not read_json(run.element(*keys[0]) / "failed.json")["final"]
    shutil.rmtree(last)
    with pytest.raises(UserError, match="no such checkpoint|latest: names"):
        STAGES["evaluate"].run(works[0], silent)


@pytest.mark.parametrize(("stage", "job"), [("pretrain", "pretrain-20"), ("tune", "instruct-20")])
def test_a_checkpoint_of_another_training_is_not_taken_for_the_elements_own(tmp_path, monkeypatch, stage, job):
    run, _ = new_run(tmp_path / "run")
    work = Work(run, plan := plan_study(run.study), *plan.find(job, "full-20"))
    checkpoints = (run.branch("full-20") if stage == "pretrain" else run.tuning("full-20", "instruct")) / "checkpoints"
    last = step_folder(checkpoints, run.study.budget.steps)
    monkeypatch.setattr(type(STAGES[stage]), "run", lambda *_: _save(last, {"seed": 42}))
    write_text(checkpoints / "latest", last.name)
    run_element(run.root, job, "full-20")
    finish(run, "benign-20", "full-20")
    write_json(work.model_folder / "config.json", {})
    assert is_done(work)
    _save(last, {"seed": 43})
    assert not is_done(work)
    _save(step_folder(checkpoints, 1), {"seed": 42})  # measured on the way; the last one is moved away
    shutil.rmtree(last)
    (checkpoints / "latest").unlink()
    assert is_done(work) is (stage == "tune")
    checkpoints.rename(tmp_path / "moved-away")
    assert is_done(work)


def _fail_to_read():
    raise OSError(errno.EIO, "Input/output error")


def _save(folder: Path, recipe: Mapping[str, int] = MappingProxyType({})) -> None:
    """A checkpoint of one file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "weights").write_bytes(b"12345")
    held = {
        "model": PRESETS["tiny"],
        "precision": "float32",
        "full": True,
        "files": {"weights": stored_file(folder / "weights")},
    }
    record = CheckpointInfo(step=step_of(folder), consumed_samples=0, consumed_tokens=0, recipe=dict(recipe), **held)
    write_json(folder / "checkpoint.json", msgspec.to_builtins(record))


def test_a_lost_checkpoint_from_the_midst_of_a_training_is_made_again_by_what_its_message_says(tmp_path):
    run = Run.create(tmp_path / "run", parse_study(tree_study(), "here"))
    plan = plan_study(run.study)
    training = Work(run, plan, *plan.find("pretrain-50", "full-50"))
    for key in (("pretrain-50", "full-50"), ("export-base-50", "full-50"), ("instruct-50", "full-50")):
        finish(run, *key)
    checkpoints = run.branch("full-50") / "checkpoints"
    for step in (15, 24):
        _save(step_folder(checkpoints, step))
    write_text(checkpoints / "latest", "step_00000024")
    for job, label in (("along-50", "full-50/75"), ("mt-50", "full-50")):
        one = Work(run, plan, *plan.find(job, label))
        start = checkpoint_of(one) if one.element.point else base_checkpoint(run, one.arm, 0.75)
        with pytest.raises(UserError, match="if the training counts as done, copy this one back, or delete all later ones"):
            read_info(start)
    assert is_done(training)
    shutil.rmtree(step_folder(checkpoints, 24))
    for job, label in (("along-50", "full-50/75"), ("mt-50", "full-50")):
        assert not is_done(training)
        finish(run, job, label)
    assert is_done(training)


def test_what_was_saved_is_counted_where_the_newest_checkpoint_was_set_aside(tmp_path):
    checkpoints = tmp_path / "checkpoints"
    assert saved_steps(tmp_path) == 0
    for step in (4, 6):
        (checkpoints / f"step_{step:08d}").mkdir(parents=True)
    (checkpoints / "latest").write_text("step_00000004\n")
    assert saved_steps(tmp_path) == 4
    (checkpoints / "latest").write_text("step_00000008\n")  # damaged; set aside by a start that was killed before its next save
    assert saved_steps(tmp_path) == 6


def test_what_a_lost_branch_point_costs_to_train_again_counts_as_progress(tmp_path):
    run, _ = new_run(tmp_path / "run")
    work = Work(run, plan := plan_study(run.study), *plan.find("pretrain-trunk-100", "trunk"))
    checkpoints, stop = run.branch("trunk") / "checkpoints", plan.segments[work.element.segment].stop
    for saved in (stop - 2, stop - 1, stop):
        for step in (saved, stop + 5):
            step_folder(checkpoints, step).mkdir(parents=True, exist_ok=True)
        (checkpoints / "latest").write_text(f"step_{stop + 5:08d}\n")
        assert STAGES["pretrain"].saved(work) == saved
