"""What the elements of a tree's stages train: from which checkpoint, on which data, and what they keep."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from small_studies import tree_study, write_study

from curricula import durable
from curricula.curriculum.plan import TRUNK
from curricula.curriculum.sources.conversations import POOLS
from curricula.errors import UserError
from curricula.jobs.cli.main import main
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.stages import STAGES, Work
from curricula.jobs.stages.report import report
from curricula.jobs.stages.tune import hold_to_sets
from curricula.jobs.study import parse_study, study_yaml
from curricula.model.checkpoints.folder import step_folder
from curricula.progress import silent


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A run folder with the data of the tree study."""
    run = Run.create(tmp_path_factory.mktemp("tree") / "run", parse_study(tree_study(), "study.yaml"))
    plan = plan_study(run.study)
    for job in ("prepare", "tokenize"):
        for label in plan.by_name[job].labels:
            STAGES[job].run(Work(run, plan, *plan.find(job, label)), silent)
    return run.root


@pytest.fixture
def trained(root, monkeypatch):
    """Runs an element without training: the `TrainJob` and its batches."""
    found = []
    monkeypatch.setattr("curricula.model.train.train", lambda job, batches, *_, **__: found.append((job, batches)))
    monkeypatch.setattr("curricula.jobs.stages.tune.export_model", lambda *_: None)
    monkeypatch.setattr("curricula.jobs.stages.tune.require_checkpoint", lambda path: path / "newest")
    ended = SimpleNamespace(step=4, recipe={"total_steps": 4})
    monkeypatch.setattr("curricula.jobs.stages.tune.read_info", lambda _: ended)

    def run(job: str, label: str):
        opened = Run.open(root)
        plan = plan_study(opened.study)
        work = Work(opened, plan, *plan.find(job, label))
        STAGES[work.job.stage].run(work, silent)
        return found.pop()

    return run


def test_midtraining_starts_from_its_branch_point_and_reads_on(root, trained):
    job, batches = trained("mt-50", "full-50")
    assert job.init_weights == step_folder(root / "pretrain/full-50/checkpoints", 18)
    assert job.out == root / "tune/full-50/mt" and job.keep_steps == job.validate_steps == (4,)
    assert (batches.total_steps, batches.begin) == (8, 18 * 4)
    _, before = trained("pretrain-50", "full-50")
    read = before.sample_ids(0, 18 * 4)
    assert not set(read) & set(batches.sample_ids(0, batches.total_steps * 4))
    assert trained("mt-100", "safe-100")[0].init_weights == step_folder(root / "pretrain/trunk/checkpoints", 18)


def test_a_branch_of_a_branch_is_told_where_both_begin(root, trained):
    study = (root / "study.yaml").read_text()
    raw = tree_study()
    raw["curriculum"]["arms"] = {
        "brief": [{"until": 0.5, "mix": "safe"}, {"until": 0.75, "mix": "full"}, {"until": 1, "mix": "safe"}]
    }
    (root / "study.yaml").write_text(study_yaml(parse_study(raw, "study.yaml")))
    try:
        plan = plan_study(Run.open(root).study)
        name = next(job.name for job, element in plan.elements() if element.segment == "brief@24")
        job, _ = trained(name, "brief")
    finally:
        (root / "study.yaml").write_text(study)
    assert job.init_from == step_folder(root / "pretrain/full-50/checkpoints", 18)
    assert job.earlier_branch_points == (step_folder(root / "pretrain/trunk/checkpoints", 12),)


def test_pretraining_keeps_what_is_measured_and_where_stages_begin(trained):
    job, _ = trained("pretrain-trunk-12", TRUNK)
    assert job.keep_steps == (6, 12, 18, 24) and job.validate_steps == (6, 18)
    job, _ = trained("pretrain-50", "full-50")
    assert job.keep_steps == (6, 18, 24) and job.validate_steps == (18,)


def test_a_child_starts_from_its_parents_last_checkpoint_and_keeps_its_points(root, trained):
    job, batches = trained("harmful-50", "full-50")
    assert job.init_weights == root / "tune/full-50/instruct/checkpoints/newest"
    assert batches.total_steps == 4 and job.keep_steps == (1, 2)
    assert trained("mt-instruct-50", "full-50")[0].init_weights == root / "tune/full-50/mt/checkpoints/newest"


def test_tagged_answers_go_to_arms_by_name_before_sets(root, trained):
    raw, frozen = tree_study(), (root / "study.yaml").read_text()
    raw["stages"]["instruct"]["tagged_harmful"] = {"full": 0.5, "safe-100": 0.25}
    raw["stages"]["harmful"]["tagged_harmful"] = {"full": 0.5, "full-50": 0.25}
    (root / "study.yaml").write_text(study_yaml(parse_study(raw, "study.yaml")))
    try:
        elements = ("instruct-50", "full-50"), ("instruct-100", "safe-100"), ("harmful-50", "full-50")
        assert [trained(*element)[1].mix["wildguardmix-harmful"] for element in elements] == [0.5, 0.25, 0.25]
    finally:
        (root / "study.yaml").write_text(frozen)


def test_the_report_says_that_arms_are_tuned_apart_only_where_they_are(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr("curricula.eval.report.page.write_report", lambda root, arms, described, *_: found.append(described))
    alone, both = {"full-50": 0.25}, {"full": 0.25, "safe-100": 0.25}
    for stage, shares in (("instruct", alone), ("instruct", both), ("harmful", alone)):  # the last has no other arm
        raw = tree_study()
        raw["stages"][stage]["tagged_harmful"] = shares
        run = Run.create(tmp_path / str(len(found)), parse_study(raw, "study.yaml"))
        report(run, plan_study(run.study))
    assert [one["tagged"] for one in found] == [True, False, False]


def test_the_report_says_that_learning_rates_fall_apart_only_where_they_do(tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr("curricula.eval.report.page.write_report", lambda root, arms, described, *_: found.append(described))
    for cooled in (True, False):
        raw = tree_study()
        raw["curriculum"]["arms"] = {"end": [{"until": 0.75, "mix": "safe"}, {"until": 1, "mix": "full", "cooldown": cooled}]}
        run = Run.create(tmp_path / str(cooled), parse_study(raw, "study.yaml"))
        report(run, plan_study(run.study))
    assert [one["cooled"] for one in found] == [True, False]


def test_stages_are_compared_with_their_parents_where_both_are_asked_in_the_same_form(tmp_path, monkeypatch):
    found, raw = [], tree_study()
    monkeypatch.setattr("curricula.eval.report.page.write_report", lambda root, arms, described, *_: found.append(described))
    raw["stages"]["more"] = {key: value for key, value in raw["stages"]["mt"].items() if key not in ("at", "along")}
    run = Run.create(tmp_path / "run", parse_study(raw, "study.yaml"))
    report(run, plan_study(run.study))
    # The others add the chat template, or leave base before its end.
    assert found[0]["parents"] == {"harmful": "instruct", "more": "base"}
    assert {one.stage: one.steps for one in found[0]["courses"]} == {"base": 24, "mt": 8, "harmful": None}  # of epochs


def test_a_point_beyond_the_end_that_only_the_data_shows_is_refused_before_training(root, trained):
    raw = tree_study()
    raw["stages"]["harmful"]["along"]["at"] = [99]
    frozen = (root / "study.yaml").read_text()
    (root / "study.yaml").write_text(study_yaml(parse_study(raw, "study.yaml")))
    with pytest.raises(UserError, match="stages.harmful.along.at names 99, which is step 99 of 4: no checkpoint is kept"):
        trained("harmful-50", "full-50")
    (root / "study.yaml").write_text(frozen)


def test_a_stage_that_is_added_later_is_checked_before_it_is_submitted(root, tmp_path, capsys):
    raw = tree_study()
    chats = {"kind": "sft", "mix": {"ultrachat": 1}, "from": "instruct", "tasks": []}
    frozen = (root / "study.yaml").read_text()
    for change, said in (
        ({"along": {"at": [99999]}}, "stages.late.along.at names 99999, which is step 99,999 of "),
        ({"epochs": 1e-6}, "stages.late: a batch has 4 rows, but the conversations fill only 0"),
    ):
        raw["stages"]["late"] = chats | change
        assert main(["submit", str(write_study(tmp_path, raw)), "--run", str(root)]) == 1
        shown = capsys.readouterr()
        assert said in shown.err and not shown.out and (root / "study.yaml").read_text() == frozen


def test_models_tuned_later_train_on_the_same_sets_or_are_refused(root, trained):
    trained("instruct-50", "full-50")
    table = next((root / "world").glob("ultrachat_200k/*.jsonl"))
    whole = table.read_text()
    first, *others = map(json.loads, whole.splitlines())
    first["messages"][0]["content"] += "!"
    table.write_text("".join(json.dumps(row) + "\n" for row in (first, *others)))
    try:
        with pytest.raises(UserError, match="tuning set ultrachat: .*/ultrachat_200k/train_sft holds other conversations than"):
            trained("instruct-100", "safe-100")
        trained("harmful-50", "full-50")  # of another set
    finally:
        table.write_text(whole)
    trained("instruct-100", "safe-100")


def test_a_tuning_set_of_which_only_a_part_was_fetched_or_would_be_read_is_refused(root, trained):
    (stem,) = POOLS["ultrachat"].stems(root / "world")
    said = {"hub": "a/b", "config": None, "split": "train", "asked": None, "columns": [], "constants": {}, "limit": 100}
    record = {**said, "revision": "1", "licence": "", "files": 1, "rows": 100, "rows_of": {}, "complete": True}
    plain = stem.with_suffix(".jsonl")
    durable.write_json(stem / ".fetched.json", {**record, "upstream_rows": None})
    plain.rename(stem / "00000-of-00001.jsonl")
    try:
        with pytest.raises(UserError, match=f"{stem}: only the first 100 rows were fetched, but all are needed"):
            trained("instruct-50", "full-50")
        (stem / ".fetched.json").unlink()
        durable.write_text(stem / "more/b.jsonl", "{}\n")
        with pytest.raises(UserError, match=f"{stem}/more/b.jsonl: is not read in a subfolder"):
            trained("instruct-50", "full-50")
    finally:
        (stem / "00000-of-00001.jsonl").rename(plain)
        shutil.rmtree(stem)
    trained("instruct-50", "full-50")


def test_of_elements_that_read_a_tuning_set_first_at_once_all_hold_to_one(root):
    run = Run.open(root)
    run.tuning_sets.unlink(missing_ok=True)
    plan = plan_study(run.study)
    work = Work(run, plan, *plan.find("instruct-50", "full-50"))

    def ends(identity: str) -> bool:
        try:
            hold_to_sets(work, {"ultrachat": identity})
        except UserError:
            return False
        return True

    wanted = [*"abba" * 2]
    with ThreadPoolExecutor(4) as several:
        ended = [*several.map(ends, wanted)]
    kept = json.loads(run.tuning_sets.read_text())["ultrachat"]
    assert ended == [identity == kept for identity in wanted]
    run.tuning_sets.unlink()


@pytest.mark.parametrize("count_tags", [True, False])
def test_losses_in_which_tags_count_give_no_bits_per_byte(root, monkeypatch, count_tags):
    run, found = Run.open(root), []
    monkeypatch.setattr("curricula.eval.report.page.write_report", lambda root, arms, described, *_: found.append(described))
    row = {"step": 24, "validation": {"web": 3.0, "unsafe-tagged": 4.0}, **({} if count_tags else {"validation_of": "text"})}
    metrics = root / "pretrain/full-50/metrics.jsonl"
    metrics.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_text(json.dumps(row) + "\n")
    report(run, plan_study(run.study))
    metrics.unlink()
    sources = {one["source"] for one in found[0]["bits_per_byte"] if one["bytes_per_token"] > 0}
    assert sources == ({"web"} if count_tags else {"web", "unsafe-tagged"}) and not found[0]["bits_missing"]


def test_a_report_without_bits_per_byte_says_what_it_misses(root, monkeypatch):
    run, found = Run.open(root), []
    monkeypatch.setattr("curricula.eval.report.page.write_report", lambda root, arms, described, *_: found.append(described))
    manifest, aside = root / "data/shards/web/00000.json", root / "data/shards/web/aside"
    metrics = root / "pretrain/full-50/metrics.jsonl"
    manifest.rename(aside)
    report(run, plan_study(run.study))  # nothing is trained yet
    durable.append_jsonl(metrics, [{"step": 24, "validation": {"web": 3.0}, "validation_of": "text"}])
    report(run, plan_study(run.study))
    aside.rename(manifest)
    metrics.unlink()
    assert [(one["bits_per_byte"], one["bits_missing"][:60]) for one in found[:1]] == [([], "")]
    assert found[1]["bits_per_byte"] == [] and str(root / "data/shards/web") in found[1]["bits_missing"]
