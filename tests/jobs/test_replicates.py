"""Several seeds: each trains every arm once, in the arrays that one seed has, and a run can grow by seeds and by arms."""

import json
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import pytest
import yaml
from paths import STUDIES
from run_folders import FakeSlurm, make, new_run, submitted
from small_studies import by_job, demo, smaller_demo
from typed import Typed

from curricula.errors import UsageError, UserError
from curricula.eval.decoding.registry import DECODERS, OWN, Decoder, PluginSettings
from curricula.eval.decoding.settings import Together
from curricula.jobs.cli.main import main
from curricula.jobs.cli.plan import print_plan
from curricula.jobs.completion import done_elements, is_done
from curricula.jobs.element import run_element
from curricula.jobs.estimates import describe
from curricula.jobs.graph import plan_study
from curricula.jobs.monitor.progress import Announced, read_progress
from curricula.jobs.monitor.state import run_status
from curricula.jobs.plan import Plan
from curricula.jobs.run import Run
from curricula.jobs.selection import Selection, select
from curricula.jobs.slurm.profile import Profile, StageOptions, Stages, keep_profile, load_profile
from curricula.jobs.slurm.snapshot import planned_snapshot
from curricula.jobs.slurm.submissions import submissions
from curricula.jobs.slurm.submit import preview
from curricula.jobs.stages import STAGES, Work
from curricula.jobs.study import Study, parse_study, study_yaml
from curricula.progress import silent

REPORT = ("report", "report")


def study(name: str = "paper", **changes) -> Study:
    """A study of the suite with `seeds` or other top-level keys in place of its own."""
    raw = demo() if name == "demo" else yaml.safe_load((STUDIES / f"{name}.yaml").read_text())
    del raw["seed"]
    return parse_study({**raw, **changes}, "study.yaml")


ONE, THREE = plan_study(study(seeds=[42])), plan_study(study(seeds=[42, 43, 44]))


# Names and the plan ---------------------------------------------------------------------------------------------------


def test_one_seed_is_the_same_study_in_each_form_and_all_forms_survive_being_frozen():
    assert study(seeds=[42]) == study(seed=42) == study() and study(seed=42).seed == 42
    for one in (study(), study(seeds=[7, 42], replicate={"tuning": False})):
        assert parse_study(yaml.safe_load(study_yaml(one)), "frozen") == one


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seed": 42, "seeds": [42, 43]}, r"seed and seeds exclude each other; keep one of them"),
        ({"seeds": []}, "seeds: expected `list` of length >= 1"),
        ({"seeds": [42, 43, 42]}, r"seeds \[42, 43, 42\] repeats 42; give each once"),
        ({"seeds": [42, 43], "replicate": {"weights": True}}, "replicate: unknown key `weights`; known keys are init"),
        (
            {"seeds": [42, 43], "replicate": {"init": False, "data": False}},
            "replicate.data is false and replicate.init is false, so all seeds would pretrain the same model",
        ),
    ],
)
def test_seeds_that_make_no_sense_are_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        study(**changes)


def test_an_arm_cannot_bear_the_name_of_a_replicate():
    raw = demo()
    raw["curriculum"]["arms"] = {"full-20-s43": [{"until": 0.5, "mix": "safe"}, {"until": 1, "mix": "full"}]}
    parse_study(raw, "study.yaml")
    del raw["seed"]
    with pytest.raises(UsageError, match="give the name full-20-s43"):
        parse_study({**raw, "seeds": [42, 43]}, "study.yaml")


def test_further_seeds_lengthen_the_arrays_and_add_none():
    assert [job.name for job in THREE.jobs] == [job.name for job in ONE.jobs]
    for job, longer in zip(ONE.jobs, THREE.jobs):
        is_trained = job.stage not in ("fetch", "prepare", "tokenize", "report")
        assert len(longer.elements) == len(job.elements) * (3 if is_trained else 1), job.name
        assert {element.seed for element in longer.elements} == ({42, 43, 44} if is_trained else {None})
        assert longer.request == job.request and [edge.job for edge in longer.needs] == [edge.job for edge in job.needs]


def test_the_first_seed_keeps_its_names_and_what_it_needs():
    assert all(set(job.labels) <= set(THREE.by_name[job.name].labels) for job in ONE.jobs)
    assert {name: THREE.segments[name] for name in ONE.segments} == dict(ONE.segments)
    assert all(THREE.needs[key] == needs for key, needs in ONE.needs.items() if key != REPORT)


def test_names_of_further_seeds_end_in_the_seed_and_fields_say_what_they_are(tmp_path):
    assert THREE.by_name["pretrain-20"].labels == (
        "data-20", "full-20", "data-20-s43", "full-20-s43", "data-20-s44", "full-20-s44",
    )  # fmt: skip
    assert THREE.segments["full-20-s43@286102"].parent == "trunk-s43@57220"
    run = Run(tmp_path)
    for job, label, folder in (
        ("export-base-100", "safe-100-s43", "models/safe-100-s43/base"),
        ("merge-20", "full-20-s44/benign", "models/full-20-s44/benign"),
    ):
        work = Work(run, THREE, *THREE.find(job, label))
        run.__dict__["study"] = THREE.study
        assert run.model(work.arm.key, work.element.kind) == tmp_path / folder
        assert f"{work.element.arm}-s{work.element.seed}" == label.split("/")[0]
    safe = THREE.study.training("safe-100", 43)
    assert run.branch(THREE.study.segment_at(safe, THREE.study.budget.steps).branch) == tmp_path / "pretrain/trunk-s43"


def test_an_element_needs_nothing_of_another_seed():
    elements = {(job.name, element.label): element for job, element in THREE.elements()}
    for key, needs in THREE.needs.items():
        if key != REPORT:
            assert {elements[need].seed for need, _ in needs} <= {None, elements[key].seed}, key
    assert len(THREE.needs[REPORT]) == 3 * len(ONE.needs[REPORT])


def test_slurm_gets_the_same_arrays_with_the_same_dependencies(tmp_path):
    profile = load_profile(STUDIES.parents[1] / "env/profiles/h100-4x8.yaml")

    def waits(plan: Plan) -> dict[str, str]:
        return {one.job: one.waits for one in preview(plan, list(plan.needs), profile, tmp_path)}

    one, three = (waits(plan_study(plan.study, profile)) for plan in (ONE, THREE))
    assert one.keys() == three.keys()
    kept_in_step = {name: value for name, value in three.items() if "aftercorr" in value and "aftercorr" not in one[name]}
    assert kept_in_step == {
        "pretrain-trunk-171661": "aftercorr:pretrain-trunk-57220",
        "pretrain-trunk-286102": "aftercorr:pretrain-trunk-171661",
    }
    assert all(three[name] == one[name] for name in one.keys() - kept_in_step)


def test_the_plan_shows_the_cost_of_each_seed(capsys):
    from rich.console import Console

    value, alone = describe(THREE), describe(ONE)
    assert value["seeds"] == [42, 43, 44] and [arm["name"] for arm in value["arms"]] == [arm.name for arm in ONE.study.arms]
    assert value["gpu_hours"]["pretraining"] == pytest.approx(3 * alone["gpu_hours"]["pretraining"])
    (of_one,) = alone["gpu_hours_by_seed"].values()
    assert value["gpu_hours_by_seed"] == {seed: pytest.approx(of_one) for seed in ("42", "43", "44")}
    assert value["trained_tokens"] == {name: 3 * count for name, count in alone["trained_tokens"].items()}
    print_plan(value, THREE.study, Console(width=200))
    shown = capsys.readouterr().out
    assert "Pretraining tree, once for each of seeds 42, 43, 44; lr 0.0005, warmup-stable-decay" in shown
    assert shown.count("trunk: steps") == 3
    assert "  seed 43: 24,734.6 pretraining, up to 441 for all else" in shown


def test_seeds_are_selected_like_arms():
    later = select(THREE, Selection(seeds=("43", "44")))
    hours, alone = THREE.gpu_hours(later), ONE.gpu_hours()
    assert hours == {section: pytest.approx(2 * alone[section]) for section in hours} and hours["pretraining"] > 0
    chosen = by_job(later)
    assert chosen["pretrain-trunk-57220"] == ["trunk-s43", "trunk-s44"] and "tokenize" not in chosen
    assert chosen["merge-100"][:2] == ["safe-100-s43/base", "safe-100-s44/base"]
    with_needs = by_job(select(THREE, Selection(arms=("full-20",), seeds=("43",)), with_needs=True))
    trained = {name: labels for name, labels in with_needs.items() if name.startswith("pretrain")}
    assert trained == {"pretrain-trunk-57220": ["trunk-s43"], "pretrain-20": ["full-20-s43"]}
    assert "tokenize" in with_needs and with_needs["instruct-20"] == ["full-20-s43"]
    with pytest.raises(UsageError, match="seed '45' is not in this study; choose one of 42, 43, 44"):
        select(THREE, Selection(seeds=("45",)))


# Monitoring -----------------------------------------------------------------------------------------------------------


def test_status_tells_seeds_apart(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    run = Run.create(tmp_path / "run", study("demo", seeds=[42, 43]))
    Announced(run.element("pretrain-20", "full-20-s43") / "progress.json", 43)(0, 10)  # no folder: harmless
    path = run.element("pretrain-20", "full-20-s43") / "progress.json"
    path.parent.mkdir(parents=True)
    Announced(path, 43)(3, 10, loss=2.0)
    assert json.loads(path.read_text())["seed"] == 43
    reading = read_progress(path)
    assert reading is not None and reading.figures == {"loss": 2.0}
    assert main(["status", str(run.root), "--json", "--seeds", "43"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Counter(item["seed"] for item in found) == {43: len(found)}
    (one,) = [item for item in found if item["label"] == "full-20-s43" and item["job"] == "pretrain-20"]
    assert one["arm"] == "full-20" and one["progress"]["done"] == 3
    assert {item["arm"] for item in found if item["job"].startswith("pretrain-trunk")} == {"trunk"}
    assert main(["status", str(run.root), "--seeds", "43", "--arm", "full-20"]) == 0
    shown = capsys.readouterr().out
    assert f"0 of {sum(item['arm'] == 'full-20' for item in found)} done" in shown and "  full-20-s43" in shown
    assert main(["status", str(run.root), "--seeds", "44"]) == 2
    assert "seed '44' is not in this study; choose one of 42, 43" in capsys.readouterr().err


# Growth ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def grown(tmp_path, monkeypatch):
    """Finish a run of one study without doing its work, and give its folder to another: (run, old plan, new plan)."""
    for module in ("completion", "monitor.state"):
        monkeypatch.setattr(f"curricula.jobs.{module}.is_complete", lambda *_: True)
    for stage in STAGES.values():
        monkeypatch.setattr(type(stage), "run", lambda *_: None)

    def grow(old: Study, new: Study) -> tuple[Run, Plan, Plan]:
        run, plan = Run.create(tmp_path / "run", old), plan_study(old)
        for number, key in enumerate(plan.needs):
            make(run, plan, key, 1000.0 + number)
        assert done_elements(run, plan) == set(plan.needs)
        return Run.create(run.root, new), plan, plan_study(new)

    return grow


def little(curriculum: Mapping[str, object] = MappingProxyType({}), **changes) -> Study:
    """The demo with few arms and evaluations."""
    raw = demo()
    tasks = {"base": ["attacks-topk"], "instruct": [], "benign": []}
    few = {"starts": [0, 0.2, 1], "interventions": {"full": raw["curriculum"]["interventions"]["full"]}}
    arms = {**raw["curriculum"], **few, **curriculum}
    return study("demo", evaluation={**raw["evaluation"], "tasks": tasks}, curriculum=arms, **changes)


def curriculum(**changes):
    return {**demo()["curriculum"], **changes}


NEAR = [{"until": 0.1996, "mix": "safe"}, {"until": 1, "mix": {"web": 1}}]
COOLED = [{"until": 0.8, "mix": "full"}, {"until": 1, "mix": "safe", "cooldown": True}]
LATE = [{"until": 0.3, "mix": "safe"}, {"until": 1, "mix": "full"}]


@pytest.mark.parametrize(
    ("old", "new", "added"),
    [
        ({}, {"seeds": [42, 43]}, lambda element: element.seed == 43),
        ({"seeds": [42, 44]}, {"seeds": [42, 43, 44]}, lambda element: element.seed == 43),
        (
            {},
            {"curriculum": {"starts": [0, 0.2, 0.4, 1]}},
            lambda element: element.arm.endswith("-40") or element.segment == "trunk@200",
        ),
        (
            {"seeds": [42, 43]},
            {"seeds": [42, 43], "curriculum": {"arms": {"late": LATE}}},
            lambda element: element.arm == "late" or element.segment in ("trunk@150", "trunk-s43@150"),
        ),
        (
            {},
            {"curriculum": {"arms": {"cooled": COOLED}}},
            lambda element: element.arm == "cooled" or element.segment in ("full-0@400", "full-0@500"),
        ),
    ],
    ids=["seed", "seed between", "start", "arm", "arm that leaves another one"],
)  # fmt: skip
def test_a_finished_run_that_grows_makes_only_what_is_new_and_the_report(grown, old, new, added):
    run, before, plan = grown(little(**old), little(**new))
    assert run.study == plan.study
    left = [key for key in plan.needs if key not in done_elements(run, plan)]
    new_keys = [(job.name, element.label) for job, element in plan.elements() if added(element)]
    assert left == [*new_keys, REPORT] and set(plan.needs) - set(before.needs) == set(new_keys)
    for number, key in enumerate(new_keys):
        make(run, plan, key, 9000.0 + number)
    run_element(run.root, *REPORT)
    assert done_elements(run, plan) == set(plan.needs)
    assert {item.state for item in run_status(run, plan).elements} == {"done"}


def test_what_has_read_something_that_is_made_again_is_stale_though_another_element_lies_between_them_now(grown):
    """The trunk was trained to its end before a new arm's start divided it."""
    run, before, plan = grown(little(), little(curriculum={"starts": [0, 0.2, 0.4, 1]}))
    for number, key in enumerate(plan.needs):
        if key not in before.needs or key == REPORT:
            make(run, plan, key, 9000.0 + number)
    trunk = [key for key in plan.needs if key[0].startswith("pretrain-trunk")]
    assert done_elements(run, plan) == set(plan.needs) and trunk[1] not in before.needs
    make(run, plan, trunk[0], 20_000.0)
    left = set(plan.needs) - done_elements(run, plan)
    assert {*trunk[1:], ("export-base-100", "safe-100"), REPORT} <= left
    assert left == {(item.job, item.label) for item in run_status(run, plan).elements if item.state == "stale"}
    assert not is_done(Work(run, plan, *plan.find(*trunk[2])))


def test_a_report_that_was_written_before_a_new_seed_was_measured_is_stale(grown):
    run, before, plan = grown(little(), little(seeds=[42, 43]))
    for number, key in enumerate(plan.needs):
        if key not in before.needs:
            make(run, plan, key, 9000.0 + number)
    states = {(item.job, item.label): item.state for item in run_status(run, plan).elements}
    assert {key for key, state in states.items() if state != "done"} == {REPORT} and states[REPORT] == "stale"


@pytest.mark.parametrize(
    ("new", "said"),
    [
        ({"seed": 43}, "was created from a different study: the first of seeds was 42, now 43"),
        ({"seeds": [43, 42]}, "was created from a different study: the first of seeds was 42, now 43"),
        ({"seeds": [42]}, "was created from a different study: the new study has no seed 43"),
        ({"seeds": [42, 44]}, "was created from a different study: the new study has no seed 43"),
        ({"seeds": [42, 43], "replicate": {"data": False}}, "replicate.data was true, now false"),
        ({"seeds": [42, 43], "validation_documents": 9}, "validation_documents was 32, now 9"),
        ({"seeds": [42, 43], "curriculum": curriculum(starts=[0, 0.6, 1])}, "the new study has no arm data-20"),
        (
            {"seeds": [42, 43], "curriculum": curriculum(arms={"near": NEAR})},
            "the jobs of arm data-20 were named by 20%, now by 19.96%",
        ),
    ],
)  # fmt: skip
def test_a_run_refuses_every_other_change_and_keeps_its_study(tmp_path, capsys, new, said):
    run = Run.create(tmp_path / "run", study("demo", seeds=[42, 43]))
    frozen = (run.root / "study.yaml").read_bytes()
    (tmp_path / "new.yaml").write_text(study_yaml(study("demo", **new)))
    assert main(["submit", str(tmp_path / "new.yaml"), "--run", str(run.root)]) == 1
    printed = capsys.readouterr()
    assert said in printed.err and not printed.out, "it promises no work before it refuses"
    with pytest.raises(UserError) as caught:
        Run.create(run.root, study("demo", **new))
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert str(caught.value).endswith("; delete the run folder, in which nothing is done yet, or name another with --run")
    assert (run.root / "study.yaml").read_bytes() == frozen
    plan = plan_study(run.study)
    make(run, plan, next(iter(plan.needs)), 1000.0)
    with pytest.raises(UserError, match="; name another folder with --run$"):
        Run.create(run.root, study("demo", **new))


def test_a_run_of_one_seed_may_choose_later_what_further_seeds_draw_anew(tmp_path):
    run, _ = new_run(tmp_path / "run")
    more = study("demo", seeds=[42, 43], replicate={"data": False})
    assert Run.create(run.root, more).study == more


def test_how_the_work_is_done_may_change_in_a_run_that_has_begun(tmp_path, monkeypatch):
    mine = Decoder("mine", "Mine", "mine", 1, lambda *_: [], PluginSettings)
    monkeypatch.setitem(DECODERS, "mine", mine)
    llm = {"name": "llm", "model": "judge", "url": "http://one:8000/v1"}
    old = study("demo", evaluation={**demo()["evaluation"], "judge": llm, "decoders": {"mine": {"samples": 2}}})
    run = Run.create(tmp_path / "run", old)
    changes = {"pretraining": {"hours": 9}, "engine": {"recompute_layers": 1}, "tensor_parallel": 2}
    resources = {**demo()["resources"], **changes}
    pretraining = {**demo()["pretraining"], "micro_batch": 1, "save_interval_steps": 7}
    evaluation = {**demo()["evaluation"], "judge": {**llm, "url": "http://two:8000/v1", "concurrency": 4}}
    evaluation["decoders"] = {"mine": {"samples": 2, "batch_prompts": 1}}
    for part, key in (*((name, "batch_prompts") for name in OWN), ("topk", "rows"), ("gcg", "batch_candidates")):
        evaluation[part] = {**evaluation.get(part, {}), key: 1}
    sources = {name: {**source, "max_epochs": 9} for name, source in demo()["sources"].items()}
    others = {"sources": sources, "tracking": {"tensorboard": False}}
    new = study("demo", resources=resources, pretraining=pretraining, evaluation=evaluation, **others)
    assert Run.create(run.root, new).study == new != old
    fp8 = study("demo", resources={**resources, "engine": {"fp8": "delayed"}}, evaluation=evaluation)
    with pytest.raises(UserError, match="resources.engine.fp8 was null, now 'delayed'"):
        Run.create(run.root, fp8)
    other = study("demo", evaluation={**evaluation, "judge": {**llm, "model": "another"}})
    with pytest.raises(UserError, match="evaluation.judge.model was 'judge', now 'another'"):
        Run.create(run.root, other)


def test_a_decoder_of_another_package_marks_what_a_run_that_has_begun_may_change(tmp_path, monkeypatch):
    class Mine(PluginSettings, frozen=True):
        lanes: Together = 8
        width: int = 2

    monkeypatch.setitem(DECODERS, "mine", Decoder("mine", "Mine", "mine", 1, lambda *_: [], Mine))

    def decoded(**decoders):
        return study("demo", evaluation={**demo()["evaluation"], "decoders": decoders})

    run = Run.create(tmp_path / "run", decoded())
    new = decoded(mine={"batch_prompts": 1, "lanes": 4})
    assert Run.create(run.root, new).study == new
    with pytest.raises(UserError, match='evaluation.decoders.mine was null, now {"width": 3}'):
        Run.create(run.root, decoded(mine={"lanes": 2, "width": 3}))


def test_a_judge_that_was_named_alone_may_get_a_server(tmp_path):
    def judged(**judges):
        return study("demo", evaluation={**demo()["evaluation"], **judges})

    run = Run.create(tmp_path / "run", judged(judge="harmbench", overrefusal_judge="world"))
    new = judged(judge={"name": "harmbench", "url": "http://one:8000/v1"}, overrefusal_judge={"name": "world"})
    assert Run.create(run.root, new).study == new
    with pytest.raises(UserError, match="evaluation.judge.name was 'harmbench', now 'world'"):
        Run.create(run.root, judged(judge="world"))


def test_a_new_start_that_would_change_what_other_arms_read_is_refused(tmp_path):
    old = study("demo", curriculum=curriculum(exposure="matched", starts=[0.1, 0.2, 1]))
    run = Run.create(tmp_path / "run", old)
    with pytest.raises(UserError, match="arm data-10 would read another mix with the new starts"):
        Run.create(run.root, study("demo", curriculum=curriculum(exposure="matched", starts=[0, 0.1, 0.2, 1])))


def test_a_new_start_waits_until_the_trunk_that_it_cuts_is_no_longer_trained(tmp_path, monkeypatch, capsys):
    slurm = FakeSlurm(tmp_path / "bin", monkeypatch)
    run = Run.create(tmp_path / "run", little())
    submitted(run, "pretrain-trunk-500", "70", ["trunk"])
    slurm.queue(("70", "0", "RUNNING", "None", "n1", 0))
    frozen = (run.root / "study.yaml").read_bytes()
    grown = tmp_path / "grown.yaml"
    grown.write_text(study_yaml(little(curriculum={"starts": [0, 0.2, 0.4, 1]})))
    assert main(["submit", str(grown), "--cluster", "slurm", "--profile", "slurm-lab", "--run", str(run.root), "--yes"]) == 1
    said = capsys.readouterr().err
    assert "pretrain-trunk-500/trunk is queued or running, and new arms would branch off before its end" in said
    assert (run.root / "study.yaml").read_bytes() == frozen and not slurm.calls("sbatch")


def test_a_run_whose_growth_is_declined_keeps_its_study(tmp_path, monkeypatch, capsys):
    slurm = FakeSlurm(tmp_path / "bin", monkeypatch)
    run = Run.create(tmp_path / "run", little())
    frozen = (run.root / "study.yaml").read_bytes()
    profile, grown = tmp_path / "profile.yaml", tmp_path / "grown.yaml"
    profile.write_text("gpu_hours_limit: 0.001\n")
    grown.write_text(study_yaml(little(seeds=[42, 43])))
    words = ["submit", str(grown), "--cluster", "slurm", "--profile", str(profile), "--run", str(run.root)]
    assert main(words) == 1 and "more than the profile's gpu_hours_limit" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", Typed("n\n"))
    assert main(words) == 1 and "nothing was submitted" in capsys.readouterr().err and not slurm.calls("sbatch")
    assert (run.root / "study.yaml").read_bytes() == frozen


@pytest.fixture
def growing(tmp_path, monkeypatch):
    """The words that submit a run with a further seed, and its Slurm."""
    slurm = FakeSlurm(tmp_path / "bin", monkeypatch)
    slurm.answer("sbatch", script='echo x >> "$0.n"; echo "Submitted batch job $((70 + $(wc -l < "$0.n")))"; exit 0')
    run = Run.create(tmp_path / "run", little())
    profile, grown = tmp_path / "profile.yaml", tmp_path / "grown.yaml"
    profile.write_text("gpu_hours_limit: 0.001\n")
    grown.write_text(study_yaml(little(seeds=[42, 43])))
    keep_profile(run.profile, Profile())
    return ["submit", str(grown), "--cluster", "slurm", "--profile", str(profile), "--run", str(run.root)], slurm, run


def test_a_run_does_not_grow_while_other_code_reads_its_study(growing, capsys):
    """A queued job of earlier code would end for good at a key that it does not know."""
    words, slurm, run = growing
    submitted(run, "prepare", "70", ["prepare"])
    slurm.queue(("70", "0", "PENDING", "Priority", "", 0))
    slurm.answer("scontrol", script=f"[[ $* = *batch_script* ]] && echo 'code={run.root}/code/0123456789ab'")
    frozen = (run.root / "study.yaml").read_bytes()
    assert main([*words, "--yes"]) == 1
    assert "array 70 is queued or running with another version of the code" in capsys.readouterr().err
    assert (run.root / "study.yaml").read_bytes() == frozen and not slurm.calls("sbatch")
    slurm.queue(("70", "0", "COMPLETED", "None", "", 0))
    slurm.answer("squeue")  # it has ended
    assert main([*words, "--yes", "--stage", "prepare"]) == 0
    slurm.queue(("71", "0", "PENDING", "Priority", "", 0))
    slurm.answer("scontrol")
    assert main([*words, "--yes", "--set", "seeds=[42,43,44]", "--stage", "tokenize"]) == 0  # the same code as before
    assert Run.open(run.root).study.seeds == (42, 43, 44)


def test_a_setting_may_change_when_nothing_is_left_to_submit(growing, capsys):
    words, slurm, run = growing
    words = [*words, "--stage", "prepare", "--set", "seeds=[42]"]
    submitted(run, "prepare", "70", ["prepare"])
    slurm.queue(("70", "0", "PENDING", "Priority", "", 0))
    assert main([*words, "--set", "resources.data_hours=7"]) == 0
    said = capsys.readouterr().out
    assert "its study has changed" in said and "nothing to submit; 1 element queued" in said
    assert "the profile has changed; what is queued keeps its own until you `curricula cancel` it" in said
    assert Run.open(run.root).study.resources.data_hours == 7
    assert main([*words, "--set", "resources.data_hours=7"]) == 0 and "study has changed" not in capsys.readouterr().out


def test_nodes_and_gpus_may_change_once_no_job_is_queued_that_asked_for_others(growing, capsys):
    """It would start with as many processes as it asked for, which may not divide the work of the changed study."""
    words, slurm, run = growing
    words = [*words, "--yes", "--set", "seeds=[42]", "--stage", "prepare", "--set"]
    submitted(run, "pretrain-0", "70", ["full-0"])
    slurm.queue(("70", "0", "PENDING", "Priority", "", 0))
    frozen = (run.root / "study.yaml").read_bytes()
    assert main([*words, "resources.pretraining.gpus_per_node=4"]) == 1
    asked = "pretrain-0 is queued or running, and the changed study or the profile asks for "
    assert f"{asked}1 node of 4 GPUs instead of 1 node of 1 GPU" in capsys.readouterr().err
    keep_profile(run.profile, Profile(stages=Stages(pretraining=StageOptions(nodes=2))))  # of the queued job
    assert main([*words, "resources.pretraining.hours=7"]) == 1
    assert f"{asked}1 node of 1 GPU instead of 2 nodes of 1 GPU" in capsys.readouterr().err
    keep_profile(run.profile, Profile())
    assert (run.root / "study.yaml").read_bytes() == frozen and not slurm.calls("sbatch")
    assert main([*words, "resources.tuning.gpus_per_node=8"]) == 0  # of which none is queued


def test_a_setting_that_the_profile_refuses_may_be_mended(growing):
    words, _, run = growing
    words = [*words, "--yes", "--set", "seeds=[42]", "--stage", "prepare", "--set"]
    Run.create(run.root, little(resources={**demo()["resources"], "data_hours": 0.02}))
    assert main([*words, "resources.data_hours=0.02"]) == 2
    assert main([*words, "resources.data_hours=1"]) == 0 and Run.open(run.root).study.resources.data_hours == 1


def test_what_is_submitted_is_decided_after_the_answer(growing, monkeypatch):
    """And other commands may change the run until then."""
    words, slurm, run = growing
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)

    def think(question):
        with Run.locked(run.root):
            submitted(run, "prepare", "70", ["prepare"])
        slurm.queue(("70", "0", "PENDING", "Priority", "", 0))
        return "y"

    monkeypatch.setattr("builtins.input", think)
    code = f"{run.root}/code/{planned_snapshot(run.root).folder.name}"
    slurm.answer("scontrol", script=f"[[ $* = *batch_script* ]] && echo 'code={code}'")
    assert main(words) == 0
    assert [one.job for one in submissions(run)].count("prepare") == 1
    assert "--dependency=afterok:70" in (run.slurm / "71_submission.sh").read_text()


# What a seed changes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A run folder with the data of a miniature study."""
    raw = smaller_demo()
    raw["pretraining"].update(budget_tokens=24 * 4 * 128, global_batch=4, micro_batch=4)
    run = Run.create(tmp_path_factory.mktemp("data") / "run", parse_study(raw, "study.yaml"))
    plan = plan_study(run.study)
    for job in ("prepare", "tokenize"):
        for label in plan.by_name[job].labels:
            STAGES[job].run(Work(run, plan, *plan.find(job, label)), silent)
    return run.root, raw


def draws(data, monkeypatch, label: str, changes: dict):
    """What decides the pretraining of the trunk `label`, the tuning and the evaluation of the safe-only arm of its seed."""
    root, raw = data
    raw = {**raw, **changes}
    del raw["seed"]
    (root / "study.yaml").write_text(study_yaml(parse_study(raw, "study.yaml")))
    run = Run.open(root)
    plan = plan_study(run.study)
    found = []
    monkeypatch.setattr("curricula.model.train.train", lambda job, batches, *_, **__: found.append((job, batches)))
    monkeypatch.setattr("curricula.jobs.stages.tune.require_checkpoint", lambda path: path)
    for stages in ("tune", "evaluate"):
        monkeypatch.setattr(f"curricula.jobs.stages.{stages}.export_model", lambda *_: None)
    monkeypatch.setattr("curricula.eval.models.load_model", lambda *_, **__: None)
    monkeypatch.setattr("curricula.eval.runner.run_element", lambda *_, **given: found.append(given))
    arm = label.replace("trunk", "safe-100")
    tasks = [one for one in plan.by_name["evaluate-base-100"].labels if one.startswith(f"{arm}/")]
    for job, element in (("pretrain-trunk-12", label), ("instruct-100", arm), ("evaluate-base-100", tasks[0])):
        work = Work(run, plan, *plan.find(job, element))
        STAGES[work.job.stage].run(work, silent)
    (pretraining, pretrained), (tuning, tuned), evaluation = found
    assert evaluation["probe_seed"] == 42  # texts are the same for all
    return {
        "init": pretraining.seed,
        "data": pretrained.sample_ids(0, 8),
        "tuning": (tuning.seed, tuned.sample_ids(0, 8)),
        "evaluation": evaluation["seed"],
    }


def test_the_first_seed_draws_as_it_does_alone(data, monkeypatch):
    alone = draws(data, monkeypatch, "trunk", {"seeds": [42]})
    assert draws(data, monkeypatch, "trunk", {"seeds": [42, 43]}) == alone and alone["init"] == 42


@pytest.mark.parametrize("off", ["", "init", "data", "tuning"])
def test_each_switch_keeps_one_draw_of_a_further_seed_as_the_first_seeds(data, monkeypatch, off):
    changes = {"seeds": [42, 43], "replicate": {off: False} if off else {}}
    first, other = (draws(data, monkeypatch, label, changes) for label in ("trunk", "trunk-s43"))
    assert {name for name in first if first[name] == other[name]} == ({off} if off else set())
    assert other["evaluation"] == 43


def test_the_share_of_tagged_answers_is_fixed_for_the_arms_of_a_run_and_free_for_new_ones(tmp_path):
    def tagging(share, starts):
        tuning = demo()["tuning"]
        tuning["instruct"]["tagged_harmful"] = share
        return study("demo", tuning=tuning, curriculum=curriculum(starts=starts))

    run = Run.create(tmp_path / "run", tagging({"full": 0.1}, [0, 0.2]))
    run.tuning("full-20", "instruct").mkdir(parents=True)
    with pytest.raises(UserError, match="tagged_harmful.full-20 was null, now 0.2"):
        run.check(tagging({"full": 0.1, "full-20": 0.2}, [0, 0.2]))
    run.check(tagging({"full": 0.1, "safe-100": 0.1}, [0, 0.2, 1]))
