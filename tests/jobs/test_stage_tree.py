"""Stages after pretraining as a tree: its plan, how a run grows by it, and what is refused."""

import contextlib
import copy
import re
from pathlib import Path

import pytest
import yaml
from paths import ROOT, STUDIES
from run_folders import FakeSlurm, make, submitted
from small_studies import by_job, smaller_demo, tree_study, write_study

from curricula.errors import UsageError, UserError
from curricula.jobs.cli.main import main
from curricula.jobs.completion import done_elements, read_done
from curricula.jobs.downloads import read_study
from curricula.jobs.estimates import describe
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.selection import Selection, select
from curricula.jobs.slurm.profile import keep_profile, load_profile
from curricula.jobs.stages import STAGES
from curricula.jobs.study import parse_study, study_yaml


def planned(**changes):
    return plan_study(parse_study(tree_study(**changes), "study.yaml"))


def changed(place: str, value: object) -> dict:
    """The raw tree study with `value` at `place`, such as "stages.mt.at"; None removes the key."""
    raw = tree_study()
    *keys, last = place.split(".")
    holder = raw
    for key in keys:
        holder = holder[key]
    holder[last] = value
    if value is None:
        del holder[last]
    return raw


def needs(plan, job: str) -> list[tuple[str, str]]:
    return [(edge.job, edge.kind) for edge in plan.by_name[job].needs]


def test_each_stage_waits_for_the_one_it_continues_from_element_by_element():
    plan = planned()
    assert needs(plan, "instruct-50") == [("pretrain-50", "aftercorr")]
    assert needs(plan, "harmful-50") == [("instruct-50", "aftercorr")]
    assert needs(plan, "mt-instruct-100") == [("mt-100", "aftercorr")]
    assert plan.by_name["mt-50"].stage == "midtrain" and plan.by_name["mt-50"].request.section == "pretraining"
    assert "harmful-100" not in plan.by_name and "along-harmful-50" in plan.by_name


def test_a_stage_from_a_branch_point_waits_for_the_segment_that_holds_it():
    assert needs(planned(), "mt-50") == [("pretrain-50", "aftercorr")]
    early = plan_study(parse_study(changed("stages.mt.at", 0.4), "study.yaml"))
    assert needs(early, "mt-50") == needs(early, "mt-100") == [("pretrain-trunk-12", "aftercorr")]
    assert early.study.kept_steps("trunk") == {6, 18, 10} and early.study.kept_steps("full-50") == {6, 18}


def test_a_child_of_fewer_arms_waits_for_its_own_arms_alone():
    raw = tree_study()
    raw["curriculum"]["interventions"]["data"] = {"web": 1, "safeweb": 1}
    plan = plan_study(parse_study(raw, "study.yaml"))
    assert needs(plan, "harmful-50") == [("instruct-50", "afterok")]
    assert plan.needs["harmful-50", "full-50"] == [(("instruct-50", "full-50"), True)]


def test_a_checkpoint_of_the_trunk_is_measured_once_for_all_arms_and_seeds_have_their_own():
    raw = tree_study(seed=None, seeds=[42, 43])
    raw["pretraining"]["along"]["at"] = [0.25, 0.5, 0.75]  # at the second the arms leave the trunk
    plan = plan_study(parse_study(raw, "study.yaml"))
    labels = {job.name: job.labels for job in plan.jobs if job.stage == "along"}
    assert labels == {
        "along-trunk-12": ("trunk/25", "trunk/50", "trunk-s43/25", "trunk-s43/50"),
        "along-trunk-24": ("trunk/75", "trunk-s43/75"),
        "along-50": ("full-50/75", "full-50-s43/75"),
        "along-mt-50": ("full-50/50", "full-50-s43/50"),
        "along-harmful-50": ("full-50/25", "full-50/step2", "full-50-s43/25", "full-50-s43/step2"),
        "along-mt-100": ("safe-100/50", "safe-100-s43/50"),
    }
    assert plan.needs["along-trunk-12", "trunk-s43/25"] == [(("pretrain-trunk-12", "trunk-s43"), True)]
    assert {(edge.job, edge.kind) for edge in plan.by_name["report"].needs} >= {(name, "afterany") for name in labels}


def test_stages_are_selected_by_the_name_that_the_study_gives_them():
    plan = planned()
    assert {*by_job(select(plan, Selection(stages=("mt",))))} == {"mt-50", "mt-100"}
    assert {*by_job(select(plan, Selection(stages=("midtrain",))))} == {"mt-50", "mt-100"}
    along = select(plan, Selection(stages=("along",), arms=("trunk",)))
    assert {*by_job(along)} == {"along-trunk-12", "along-trunk-24"}


def test_tuning_is_short_for_two_stages():
    raw = yaml.safe_load((STUDIES / "paper.yaml").read_text())
    short = plan_study(parse_study(copy.deepcopy(raw), "study.yaml"))
    tuning = raw.pop("tuning")
    raw["stages"] = {name: {"kind": "sft", **stage} for name, stage in tuning.items()}
    raw["stages"]["benign"]["from"] = "instruct"
    long = plan_study(parse_study(raw, "study.yaml"))
    assert long.jobs == short.jobs and long.study.tree == short.study.tree


def test_a_stage_and_what_is_measured_wait_for_their_own_data_where_it_is_fetched():
    raw = tree_study(world=None)
    raw["evaluation"]["judge"] = "refusal-phrases"
    plan = plan_study(parse_study(raw, "study.yaml"))
    assert ("fetch", "afterok") in needs(plan, "harmful-50")
    measured = [job.name for job in plan.jobs if job.stage in ("evaluate", "along")]
    assert {"along-trunk-12", "along-50", "along-mt-50"} < {*measured}
    assert all(("fetch-benchmarks", "afterok") in needs(plan, name) for name in measured)


def test_a_tree_survives_being_frozen_and_is_described():
    study = parse_study(tree_study(), "study.yaml")
    assert parse_study(yaml.safe_load(study_yaml(study)), "frozen") == study
    stages = {stage["name"]: stage for stage in describe(plan_study(study))["stages"]}
    assert stages["mt"]["steps"] == 8 and stages["mt-instruct"]["steps"] == 4 and stages["instruct"]["steps"] == 4
    assert stages["harmful"]["from"] == "instruct" and stages["harmful"]["arms"] == ("full-50",)


def test_what_midtraining_reads_counts_into_the_epochs_of_a_source():
    raw = tree_study()
    raw["world"], raw["evaluation"]["judge"] = None, "refusal-phrases"
    raw["sources"]["safeweb"] = {"dataset": "safeweb", "documents": 1, "max_epochs": 0.001}
    warnings = describe(plan_study(parse_study(raw, "study.yaml")))["warnings"]
    assert any("safeweb" in warning and "by mt" in warning for warning in warnings)


def test_a_source_that_only_midtraining_reads_is_warned_of_and_refused_without_tokens(tmp_path):
    raw = tree_study()
    raw["sources"]["late"] = {"dataset": "cosmopedia"}
    assert not any("late" in warning for warning in size_warnings(raw))
    raw["stages"]["mt"]["mix"] = {"late": 1}
    assert any("late" in warning for warning in size_warnings(raw))
    (tmp_path / "late").mkdir()
    (tmp_path / "late/00000.json").write_text('{"shards": 1, "tokens": 0, "sha256": "", "tokenizer": ""}')
    with pytest.raises(UserError, match="source late: its shards in .* hold no tokens"):
        describe(plan_study(parse_study(raw, "study.yaml")), tmp_path)


def test_a_stage_that_would_make_the_same_model_of_two_arms_is_refused_before_anything_is_trained(tmp_path):
    said = "stages.mt.at is 0.4, where full-50 and safe-100 are still the same model; name only one of them in stages.mt.arms"
    for at, arms, is_refused in ((0.4, None, True), (0.4, ["full-50"], False), (0.75, None, False)):
        raw = changed("stages.mt.at", at)
        raw["stages"]["mt"]["arms"] = arms
        del raw["stages"]["mt-instruct"]
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw))
        with pytest.raises(UserError, match=said) if is_refused else contextlib.nullcontext():
            assert read_study(tmp_path / "study.yaml").tree.stages["mt"].at == at


def size_warnings(raw: dict) -> list[str]:
    warnings = describe(plan_study(parse_study(raw, "study.yaml")))["warnings"]
    return [warning for warning in warnings if warning.startswith("size unknown")]


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("stages.mt.from", "mt-instruct", r"stages.mt-instruct: the stages form a circle \(mt from mt-instruct from mt\)"),
        ("stages.instruct.from", "instruct", r"stages.instruct: the stages form a circle \(instruct from instruct\)"),
        (
            "stages.harmful.from",
            "instrct",
            r"stages.harmful.from is 'instrct', which is not a stage; choose one of base, instr",
        ),
        ("stages.harmful.arms", ["full-20"], "stages.harmful.arms names 'full-20', which is not an arm that has instr"),
        ("stages.instruct.arms", ["safe-100"], "stages.harmful.arms names 'full-50', which is not an arm that has instr"),
        ("stages.harmful.at", 0.5, r"stages.harmful.at is 0.5, but it is from instruct; only `from: base` can have it"),
        ("stages.mt.at", 0.01, r"stages.mt.at is 0.01, which is step 0 of 24"),
        ("stages.mt.at", 1, r"stages.mt.at: expected `float` < 1.0; it is 1"),
        ("pretraining.along.at", [24], r"pretraining.along.at names 24, which is step 24 of 24: no checkpoint is kept there"),
        ("pretraining.along.at", [0.5, 12], r"pretraining.along.at names 0.5 and 12, which are both step 12 of 24; name one"),
        ("pretraining.along.at", [1.0], r"pretraining.along: at names 1.0; write a fraction between 0 and 1"),
        ("pretraining.along.at", [0.5, 0.50000001], r"at \[0.5, 0.50000001\] repeats a point; name each once"),
        ("pretraining.along.tasks", ["attack"], r"pretraining.along.tasks names 'attack'; choose from attacks-topk"),
        ("stages.mt.along.at", [9], r"stages.mt.along.at names 9, which is step 9 of 8"),
        ("stages.instruct.along", {"at": [9]}, r"stages.instruct.along.at names 9, which is step 9 of 4"),
        ("stages.mt.tokens", None, r"stages.mt: give tokens or steps"),
        ("stages.mt.tokens", 100, r"stages.mt.tokens 100 is less than one step; raise it"),
        (
            "stages.mt",
            {"kind": "midtrain", "mix": "safe", "steps": 10**9, "global_batch": 10**9, "micro_batch": 1, "lr": 1},
            r"stages.mt would read .* tokens, more than",
        ),
        ("stages.mt.mix", "fll", r"stages.mt.mix is 'fll'; choose from safe, full, or write weights"),
        ("stages.mt.mix", {"webb": 1}, r"stages.mt.mix names 'webb'; choose from"),
        ("stages.mt.kind", "midtraining", r"stages.mt.kind: 'midtraining' is not known; choose one of sft, midtrain"),
        ("stages.mt.kind", ["sft"], r"stages.mt.kind: expected `str`, got `list`; it is \[\"sft\"\]"),
        ("stages.mt.packing", True, r"stages.mt: unknown key `packing`; known keys are"),
        ("stages.instruct.steps", 4, r"stages.instruct: conversations and steps exclude each other; keep one of them"),
        ("stages.harmful.examples", {"gsm8k": 1}, r"stages.harmful: examples names 'gsm8k'; choose from"),
        (
            "stages.harmful.along.tasks",
            ["gcg", "transfer-topk"],
            r"stages.harmful.along.tasks names transfer, which is only tried on finished models; remove it",
        ),
        ("stages.harmful.tasks", ["asr"], r"stages.harmful.tasks names 'asr'; choose from attacks-topk"),
        ("stages.base", {"kind": "sft", "mix": {"gsm8k": 1}}, r"stage 'base' must be at most 100 letters"),
        ("tuning", {"instruct": {"kind": "midtrain"}}, r"tuning.instruct.kind: 'midtrain' is not known; choose one of sft"),
        ("tuning", smaller_demo()["tuning"], r"stages and tuning both define instruct; keep one of them"),
    ],
)
def test_a_tree_that_makes_no_sense_is_refused_in_one_sentence(place, value, said):
    with pytest.raises(UsageError, match=said):
        parse_study(changed(place, value), "study.yaml")


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_with_a_name_that_selects_one_of_the_suites_own_is_refused(name):
    study = parse_study(changed(f"stages.{name}", {"kind": "sft", "mix": {"gsm8k": 1}}), "study.yaml")
    with pytest.raises(UsageError, match=f"stages.{name} has the name of one of the suite's own stages; choose another name"):
        plan_study(study)


def test_a_stage_whose_sources_carry_no_loss_is_refused():
    raw = changed("stages.mt.mix", {"web": 1, "math": 0})
    raw["sources"]["web"]["loss"] = "none"
    with pytest.raises(UsageError, match="stages.mt.mix has only sources with loss: none, so it would train nothing; mix in"):
        parse_study(raw, "study.yaml")


def test_what_only_a_stage_of_the_studys_own_asks_for_is_among_the_benchmarks():
    raw = changed("stages.harmful.tasks", ["attacks-topk", "prefill-topk"])
    raw["evaluation"]["attacks"] = {"benchmarks": ["advbench"]}
    assert "advbench" in parse_study(raw, "study.yaml").used_benchmarks
    assert "advbench" not in planned().study.used_benchmarks


def test_plan_says_it_and_ends_with_a_code(tmp_path, capsys):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(changed("stages.harmful.from", "instrct")))
    assert main(["plan", str(path)]) == 2
    assert "stages.harmful.from is 'instrct'" in capsys.readouterr().err
    path.write_text(yaml.safe_dump(tree_study()))
    assert main(["plan", str(path)]) == 0
    out = capsys.readouterr().out
    assert "mt: midtrain; lr 0.003; from 75% of pretraining; 8 steps; measured at 50" in out and "harmful: sft" in out


def test_midtraining_trains_as_pretraining_does_but_for_what_it_says():
    raw = changed("stages.mt.decay_fraction", 0.5)
    raw["pretraining"].update(optimizer={"lr": 3e-3, "beta2": 0.99, "weight_decay": 0.1}, spike_guard={"window": 16})
    study = parse_study(raw, "study.yaml")
    config, finetuning = study.train_config("mt"), study.train_config("harmful")
    assert (config.optimizer.beta2, config.optimizer.weight_decay, config.optimizer.lr) == (0.99, 0.1, 3e-3)
    assert config.spike_guard and config.schedule.kind == "warmup-stable-decay" and config.schedule.decay_fraction == 0.5
    assert finetuning.schedule.kind == "cosine" and finetuning.optimizer.beta2 == 0.95 and not finetuning.spike_guard
    assert finetuning.optimizer.weight_decay == 0.01


def test_the_stages_that_the_documentation_shows_can_be_planned_at_the_papers_size():
    shown = (ROOT / "docs/studies.md").read_text().partition("## Stages after pretraining")[2]
    raw = yaml.safe_load((STUDIES / "paper.yaml").read_text()) | yaml.safe_load(shown.split("```")[1].removeprefix("yaml"))
    del raw["tuning"]
    plan = plan_study(parse_study(raw, "study.yaml"))
    assert plan.by_name["harmful-100"].labels == ("safe-100",) and plan.study.tree.stages["mt"].steps == 23_842
    hours = plan_study(parse_study(yaml.safe_load((STUDIES / "paper.yaml").read_text()), "paper")).gpu_hours()["pretraining"]
    assert plan.gpu_hours()["pretraining"] == pytest.approx(hours * (3.24 + 7 * 0.05) / 3.24, rel=1e-3)


# A run that grows -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A finished run of the tree without `harmful`."""
    run = Run.create(tmp_path_factory.mktemp("grown") / "run", parse_study(changed("stages.harmful", None), "study.yaml"))
    plan = plan_study(run.study)
    for number, key in enumerate(plan.needs):
        make(run, plan, key, 1.0 + number)
    return run


def test_a_stage_that_is_added_later_makes_nothing_old_stale(grown, monkeypatch):
    monkeypatch.setattr("curricula.jobs.completion.is_complete", lambda *_: True)
    study = parse_study(tree_study(), "study.yaml")
    grown.check(study)
    plan = plan_study(study)
    done = done_elements(Run.create(grown.root, study), plan)
    still = [key for key in plan.needs if key not in done]
    assert {job for job, _ in still} == {"harmful-50", "along-harmful-50", "evaluate-harmful-50", "merge-50", "report"}
    assert [label for job, label in still if job == "merge-50"] == ["full-50/harmful"]


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("stages.mt.lr", 1e-3, "stages.mt.lr was 0.003, now 0.001"),
        ("stages.mt", None, "the new study has no stage mt, mt-instruct"),
        ("pretraining.along.at", [0.25, 0.5], r"pretraining.along.at\[1\] was 0.75, now 0.5"),
        ("stages.late", {"kind": "sft", "mix": {"gsm8k": 1}, "at": 0.6}, "stages.late begins at step 14 of full-50"),
        ("evaluation.judge", "refusal-phrases", "evaluation.judge.*; keep that judge and ask another with .curricula"),
    ],
)
def test_a_past_that_has_changed_is_refused_in_one_sentence(tmp_path, place, value, said):
    run = Run.create(tmp_path / "run", parse_study(tree_study(), "study.yaml"))
    for name in ("mt", "mt-instruct"):
        (run.root / "tune/full-50" / name).mkdir(parents=True)
    raw = changed(place, value)
    if place == "stages.mt":
        del raw["stages"]["mt-instruct"]
    with pytest.raises(UserError, match=f"was created from a different study: {said}"):
        run.check(parse_study(raw, "study.yaml"))


def test_a_stage_that_has_made_nothing_yet_may_change_or_go(tmp_path, monkeypatch, capsys):
    run = Run.create(tmp_path / "run", parse_study(tree_study(), "study.yaml"))
    make(run, plan_study(run.study), ("prepare", "prepare"), 1.0)
    for place, value in (("stages.harmful.along.at", [1]), ("stages.harmful.packing", True), ("stages.harmful", None)):
        run.check(parse_study(changed(place, value), "study.yaml"))
    slurm = FakeSlurm(tmp_path / "bin", monkeypatch)
    keep_profile(run.profile, load_profile(Path("slurm-lab")))
    submitted(run, "harmful-50", "70", ["full-50"])
    slurm.queue(("70", "0", "PENDING", "Dependency", "", 0))
    words = ["submit", str(write_study(tmp_path, changed("stages.harmful.lr", 0.5))), "--cluster", "slurm", "--profile"]
    assert main([*words, "slurm-lab", "--run", str(run.root), "--yes"]) == 1
    assert "it, are queued or running, and stages.harmful.lr was 0.001, now 0.5" in capsys.readouterr().err
    for knows_no_queue in (
        ["render", words[1], str(tmp_path / "out"), "--profile", "slurm-lab"],
        ["submit", words[1], "--yes"],
    ):
        assert main([*knows_no_queue, "--run", str(run.root)]) == 1
        assert "stages.harmful.lr was 0.001, now 0.5, and Slurm may have jobs of that stage" in capsys.readouterr().err
    assert run.study == Run(run.root).study
    (run.root / "tune/full-50/harmful").mkdir(parents=True)
    with pytest.raises(UserError, match="a different study: stages.harmful.lr was 0.001, now 0.5; name another folder"):
        run.check(parse_study(changed("stages.harmful.lr", 0.5), "study.yaml"))


@pytest.mark.parametrize("left", ["jobs/mt-50/full-50/done.json", "tune/safe-100-s43/mt-instruct/checkpoints/latest"])
def test_a_stage_whose_models_were_moved_away_stays_as_it_is(tmp_path, left):
    raw = tree_study()
    raw["seed"], raw["seeds"] = None, [42, 43]
    run = Run.create(tmp_path / "run", parse_study(raw, "study.yaml"))
    (run.root / left).parent.mkdir(parents=True)
    (run.root / left).write_text("{}")
    raw["stages"]["mt"]["lr"] = 1e-3
    with pytest.raises(UserError, match="a different study: stages.mt.lr was 0.003, now 0.001"):
        run.check(parse_study(raw, "study.yaml"))


def test_a_report_does_not_outlive_a_stage_that_goes(tmp_path):
    run = Run.create(tmp_path / "run", parse_study(tree_study(), "study.yaml"))
    for key in (("prepare", "prepare"), ("report", "report")):  # of what was there when `harmful` had failed
        make(run, plan_study(run.study), key, 1.0)
    Run.create(run.root, parse_study(changed("resources.workers", 7), "study.yaml"))
    assert read_done(run.element("report", "report"))
    Run.create(run.root, parse_study(changed("stages.harmful", None), "study.yaml"))
    assert not read_done(run.element("report", "report")) and read_done(run.element("prepare", "prepare"))


def test_what_has_changed_is_shown_as_a_study_writes_it(tmp_path):
    run = Run.create(tmp_path / "run", parse_study(tree_study(), "study.yaml"))
    said = []
    for place, value in {
        "evaluation.tasks.base": [],
        "evaluation.tasks.instruct": ["attacks-topk", "probes"],
        "evaluation.gcg": {"steps": 3},
        "evaluation.overrefusal_benchmark": ["xstest", "alpaca"],
        "evaluation.prompts_per_benchmark": 7,
        "pretraining.along": None,
        "pretraining.spike_guard": {"rewind": {"interval_steps": 500}},
        "curriculum.exposure": "matched",
        "sources.web.name_speakers": True,
        "tokenizer": {"folder": str(tmp_path)},
        "model.tied": False,
    }.items():
        with pytest.raises(UserError) as refused:
            run.check(parse_study(changed(place, value), "study.yaml"))
        said.append(str(refused.value).partition("a different study: ")[2].partition(";")[0])
    assert len(set(said)) == len(said) and not re.search(r"None|True|False|\(|Path|<", " ".join(said)), said


@pytest.mark.parametrize(
    ("before", "now", "seeds", "late"),
    [
        ([0.5, 1], [0.5, 1], [42, 43], {"at": 0.75}),
        ([0.5], [0.5, 0.9], [42], {"at": 0.7, "arms": ["full-90"]}),  # on the trunk, which ended at 50%
    ],
)
def test_a_stage_may_begin_at_a_point_that_nothing_was_trained_to_before(tmp_path, before, now, seeds, late):
    raw = tree_study()
    raw["curriculum"]["starts"] = before
    run = Run.create(tmp_path / "run", parse_study(raw, "study.yaml"))
    raw["curriculum"]["starts"], raw["seed"], raw["seeds"] = now, None, seeds
    raw["stages"]["late"] = {"kind": "sft", "mix": {"gsm8k": 1}, "tasks": ["attacks-topk"], **late}
    grown = parse_study(raw, "study.yaml")
    run.check(grown)
    kept = [
        {(one.branch, step) for one in study.segments for step in study.kept_steps(one.branch)} for study in (run.study, grown)
    ]
    assert grown.budget.step_at(late["at"]) in {step for _, step in kept[1] - kept[0]}


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    """Its study.yaml has neither stages nor the keys that stages have gained since."""
    raw = smaller_demo()
    run = Run.create(tmp_path / "run", parse_study(raw, "study.yaml"))
    frozen = yaml.safe_load((run.root / "study.yaml").read_text())
    del frozen["stages"], frozen["pretraining"]["along"]
    for stage in frozen["tuning"].values():
        if isinstance(stage, dict):
            for key in (
                "kind",
                "from",
                "at",
                "arms",
                "tasks",
                "along",
                "steps",
                "epochs",
                "examples",
                "loss",
                "decay_fraction",
            ):
                del stage[key]
    (run.root / "study.yaml").write_text(yaml.safe_dump(frozen))
    earlier = Run(run.root)
    earlier.check(parse_study(raw, "study.yaml"))
    assert earlier.study == run.study
