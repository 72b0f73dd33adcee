"""The study file: what users write wrong, and what they are told."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import small_studies
import yaml
from paths import STUDIES
from rich.console import Console
from run_folders import new_run

from curricula.curriculum.config import Tokenizer
from curricula.curriculum.sources.hub import HubAway
from curricula.curriculum.tokens.tokenizer import TAG, train_tokenizer
from curricula.errors import UsageError, UserError
from curricula.jobs.cli.main import main
from curricula.jobs.cli.plan import print_plan
from curricula.jobs.estimates import check_epochs, describe
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.stages import STAGES, Work, data
from curricula.jobs.study import load_study, parse_study, study_yaml
from curricula.model.config import ModelConfig
from curricula.progress import silent

OWN = {"layers": 2, "hidden": 96, "heads": 6, "kv_heads": 2, "ffn": 256, "vocabulary": 2048, "sequence_length": 128}
"""A model of no preset."""


def described(study, shards=None):
    return describe(plan_study(study), shards)


def demo(**changes):
    """The full demo's raw YAML with `a__b=value` set at key a.b; a value of None removes the key."""
    raw = small_studies.demo()
    for path, value in changes.items():
        *keys, last = path.split("__")
        holder = raw
        for key in keys:
            holder = holder[key]
        if value is None:
            del holder[last]
        else:
            holder[last] = value
    return raw


@pytest.mark.parametrize("name", ["demo", "demo-full", "smollm2-135m", "paper"])
def test_the_studies_that_come_with_the_suite_are_valid_and_survive_being_frozen(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()  # a folder of that name hides no study
    study = load_study(name)
    assert load_study(Path(name)) == study
    assert parse_study(yaml.safe_load(study_yaml(study)), "frozen") == study


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"tokenizer__train": 4096},
            r"tokenizer.train makes 4096 entries, but the model has a vocabulary of 2048; set tokenizer.train to 2048, or",
        ),
        ({"tokenizer": {"hub": "some/tokenizer", "tuning": True}}, r"tokenizer: tuning is true, which has an effect only with"),
        ({"tuning__benign": {}}, r"tuning.benign: the key `mix` is missing"),
        ({"stages": {"x": {"kind:sft": None}}}, r"stages.x: unknown key `kind:sft`; write a blank after its colon"),
        ({"resources__engine": {"backend": "gpu"}}, r"engine.backend: 'gpu' is not known; choose one of auto, cpu, te, torch"),
        ({"model__init_std": 0}, r"model.init_std: expected `float` > 0"),
        (
            {"resources__engine": {"fp8": "e4m3"}},
            r"resources.engine.fp8: 'e4m3' is not known; choose one of blockwise, delayed, tensorwise",
        ),
        ({"resources__engine": {"backend": "torch", "fp8": "delayed"}}, r'engine.fp8 is "delayed", which needs'),
        (
            {"resources__engine": {"backend": "te", "fp8": "delayed", "attention": "FA3"}},
            r'fp8 is "delayed", which needs the backend "te", and engine.attention is "FA3", which needs "torch"; leave one',
        ),
        ({"pretraining__budget_token": 5}, r"pretraining: unknown key `budget_token`; did you mean `budget_tokens`\?"),
        ({"pretraining__budget_tokens": None}, r"pretraining: give budget_tokens or tokens_per_parameter"),
        (
            {"pretraining__tokens_per_parameter": 20},
            r"pretraining: budget_tokens and tokens_per_parameter exclude each other; keep one of them",
        ),
        (
            {
                "pretraining__schedule__kind": "cosine",
                "curriculum__arms": {"mine": [{"until": 0.5, "mix": "safe"}, {"until": 1, "mix": "full", "cooldown": True}]},
            },
            r"arm mine has a cooldown, but pretraining.schedule.kind is 'cosine'; set that to warmup-stable-decay",
        ),
        (
            {"sources__unsafe-tagged__loss": "none", "curriculum__arms": {"mine": [{"until": 1, "mix": {"unsafe-tagged": 1}}]}},
            r"arm mine: all sources of a phase have loss: none, so it would train nothing",
        ),
        ({"sources__web__loss": "some"}, r"sources.web.loss: 'some' is not known; choose one of all, none, tags"),
        ({"pretraining__budget_tokens": "much"}, r"pretraining.budget_tokens: expected `int \| null`, got `str`; it is 'much'"),
        ({"pretraining__budget_tokens": 10}, r"budget_tokens 10 is less than one step of \d+ tokens"),
        ({"pretraining__along": {"at": [0.5], "tasks": []}}, r"pretraining.along.tasks: expected `list` of length >= 1"),
        (
            {"pretraining__spike_guard": {"rewind": {"interval_steps": 8}}},
            r"spike_guard.rewind.interval_steps is 8, less than the window of 128; raise it",
        ),
        ({"curriculum__starts": [0.2, 1.5]}, r"curriculum.starts.1: expected `float` <= 1.0; it is 1.5"),
        ({"curriculum__arms": {"full": [{"until": 1, "mix": "full"}]}}, r"arm 'full' must .* from those of intervention sets"),
        ({"curriculum__starts": [0.6, 0.2]}, r"curriculum: starts \[0.6, 0.2\] must be distinct and in rising order"),
        ({"curriculum__safe__wbe": 1.0}, r"mix 'safe' names 'wbe'; choose from web"),
        ({"curriculum__safe": {"web": -1}}, r"curriculum: the weights of safe must be non-negative"),
        ({"sources__web__tagrate": 0.1}, r"sources.web: unknown key `tagrate`; did you mean `tag_rate`\?"),
        ({"sources__web__tag_rate": 7}, r"sources.web.tag_rate: expected `float` < 1.0; it is 7"),
        ({"model__preset": "gpt-5"}, r"model: preset 'gpt-5' is not one of smollm2-1.7b"),
        (
            {"model": {"hidden": 64, "layers": 2}},
            r"model: without a preset, heads, kv_heads, ffn must be given; add them, or one of the presets smollm2-1.7b",
        ),
        (
            {"model": {"weights": "there/model.gguf"}},
            r"layers, .*, ffn must be given, and none was read from a config.json in weights 'there/model.gguf'; add",
        ),
        ({"model": {**OWN, "preset": "tiny"}}, r"layers, .* replace all sizes of preset tiny; remove it or one of them"),
        ({"model__hidden": 130}, r"model: hidden 130 is not a multiple of heads 4; change one of them"),
        ({"model__kv_heads": 3}, r"model: heads 4 is not a multiple of kv_heads 3; change one of them"),
        ({"model__hidden": 12}, r"model: hidden / heads is 3; rotary positions need an even head size; change one of them"),
        ({"model__hidden": 400}, r"model: hidden / heads is 100, but attention on GPUs takes multiples of 8 up to 256; change"),
        ({"model__heads": 2, "model__hidden": 528}, r"model: hidden / heads is 264, but attention on GPUs takes"),
        (
            {"model__vocabulary": 128256, "tokenizer": {"folder": "llama-3"}},
            r"model: vocabulary is 128256, but shards hold 16-bit tokens, which allow 65,536 entries; use a smaller",
        ),
        ({"model__ffn": 2**31}, r"model.ffn: expected `int` <= 2147483647; it is 2147483648"),
        (
            {"model": {**OWN, "kv_heads": 1}, "resources__tensor_parallel": 2},
            r"resources.tensor_parallel is 2, which does not divide model.kv_heads 1; choose",
        ),
        (
            {"model__ffn": 400, "resources": {"tensor_parallel": 2, "engine": {"fp8": "delayed"}}},
            r'resources.engine.fp8 is "delayed", which needs model.ffn to be a multiple of 32, not 400; change one of them',
        ),
        (
            {"model__sequence_length": 100, "resources__engine": {"fp8": "delayed"}},
            r'engine.fp8 is "delayed", which needs model.sequence_length to be a multiple of 16, not 100; change one of them',
        ),
        ({"model__layers": 1, "evaluation__probes__layers": [2]}, r"probes.layers names layer 2, but the model has 1"),
        ({"name": "../escape; rm -rf"}, r"name '../escape; rm -rf' must be at most 100 letters, digits"),
        ({"evaluation__topk__samples": 0}, r"evaluation.topk.samples: expected `int` >= 1; it is 0"),
        ({"sources__web__dataset": "fineweb"}, r"sources.web: dataset 'fineweb' is not known; choose one of fineweb-edu"),
        (
            {"tuning__instruct__tagged_harmful": {"ful": 0.1}},
            r"tagged_harmful names 'ful'; choose from data, full, .*data-20, .*safe-100",
        ),
        ({"tuning__instruct__tagged_harmful": {"full": 1.5}}, r"tagged_harmful.full: expected `float` <= 1.0; it is 1.5"),
        ({"tuning__benign__mix": {"gms8k": 1}}, r"tuning.benign.mix names 'gms8k'; choose from"),
        ({"tuning__benign__lr": -1}, r"tuning.benign.lr: expected `float` > 0.0; it is -1"),
        ({"pretraining__micro_batch": 0}, r"pretraining.micro_batch: expected `int` >= 1; it is 0"),
        ({"evaluation__benchmarks": ["harmbnch"]}, r"evaluation: benchmarks names 'harmbnch'"),
        (
            {
                "evaluation__attacks": {"ablation": {"harmless": "alpacca"}},
                "stages": {"more": {"kind": "sft", "mix": {"gsm8k": 1}, "tasks": ["ablation-topk"]}},
            },
            r"attacks names 'alpacca'; choose from",
        ),
        ({"evaluation__accept_changed": ["tcd"]}, r"evaluation: accept_changed names 'tcd'; choose from"),
        ({"sources__unsafe-tagged__parts": ["score_6"]}, r"part 'score_6' is not in dataset fineweb-unsafe; it has score_3"),
        ({"sources__unsafe-tagged__parts": ["score_4", "score_4"]}, r"parts \['score_4', 'score_4'\] repeats 'score_4'"),
        ({"sources__web__shards": 10**9}, r"sources.web.shards: expected `int` <= 99999; it is 1000000000"),
        ({"pretraining__budget_tokens": 10**30}, r"pretraining.budget_tokens: expected `int` <= 10{17}; it is 10{30}"),
        ({"curriculum__safe": {"web": 1e308, "math": 1e308}}, r"curriculum: the weights of safe must be non-negative"),
        ({"sources__web__max_epochs": 0}, r"sources.web.max_epochs: expected `float` > 0.0; it is 0"),
        ({"curriculum__exposure": "equal"}, r"curriculum.exposure: 'equal' is not known; choose one of matched, natural"),
        (
            {"curriculum__exposure": "matched", "curriculum__starts": [0, 0.9]},
            r"exposure: matched is impossible for data-90: the first arm with its interventions sees 153,600 tokens of them, "
            r"but its own phases have room for only 51,200; lower the weights of the first, or leave data-90 out",
        ),
        ({"curriculum__interventions": {}}, r"curriculum: interventions is empty; name at least one set"),
        ({"curriculum__interventions": {"none": {"web": 1}}}, r"intervention set 'none' must be at most 100 letters"),
        ({"curriculum__interventions": {"a/b": {"web": 1}}}, r"intervention set 'a/b' must be at most 100 letters"),
        ({"curriculum__starts": []}, r"curriculum: starts is empty and there are no arms"),
        ({"curriculum__arms": {"late": [{"until": 0.5, "mix": "full"}]}}, r"arm late: `until` must rise .* end at 1"),
        ({"curriculum__arms": {"late": [{"until": 1, "mix": "ful"}]}}, r"arm late: mix 'ful' is not known; choose one of"),
        ({"curriculum__arms": {"late": [{"until": 1, "mix": {"wbe": 1}}]}}, r"arm 'late' names 'wbe'; choose from web"),
        ({"curriculum__arms": {"trunk": [{"until": 1, "mix": "full"}]}}, r"arm 'trunk' must be at most 100 letters"),
        ({"curriculum__arms": {"full-20": [{"until": 1, "mix": "full"}]}}, r"two .* give the name full-20"),
        (
            {
                "pretraining__budget_tokens": 10**14,
                "curriculum__arms": {
                    name: [{"until": until, "mix": "safe"}, {"until": 1, "mix": "full"}]
                    for name, until in (("one", 0.333333331), ("two", 0.333333339))
                },
            },
            r"arm two starts so close to another arm that their job names coincide; move or merge them",
        ),
        ({"world": None}, r"evaluation.judge is 'world', but the study has no world"),
        ({"curriculum__starts": [0.333333331, 0.333333332]}, r"two starts, arms, points or seeds give the name data-33.3333"),
        ({"resources__workers": 0}, r"resources.workers: expected `int` >= 1; it is 0"),
        (
            {"resources__tensor_parallel": 3},
            r"resources.tensor_parallel is 3, which does not divide model.kv_heads \d+; choose",
        ),
        ({"resources__engine": {"recompute_layers": 9}}, r"resources.engine.recompute_layers is 9; the model has 3 layers"),
        (
            {"pretraining__budget_tokens": None, "pretraining__tokens_per_parameter": 1e300},
            r"pretraining.tokens_per_parameter is 1e\+300; give a smaller number",
        ),
        ({"resources__data_hours": 1e308}, r"resources.data_hours: expected `float` <= 1000000.0; it is 1e\+308"),
        ({"pretraining__optimizer__eps": float("nan")}, r"pretraining.optimizer.eps: expected `float` > 0.0; it is nan"),
        ({"pretraining__optimizer__clip_grad": -1}, r"pretraining.optimizer.clip_grad: expected `float` >= 0.0; it is -1"),
        ({"tuning__instruct__weight_decay": float("inf")}, r"tuning.instruct.weight_decay: expected a finite `float`"),
        ({"model__rope_base": -1}, r"model.rope_base: expected `float` > 0.0"),
        ({"evaluation__benchmarks": ["tdc", "tdc"]}, r"evaluation: benchmarks \['tdc', 'tdc'\] repeats 'tdc'; give each once"),
        (
            {"evaluation__overrefusal_benchmark": ["alpaca"] * 2},
            r"overrefusal_benchmark \['alpaca', 'alpaca'\] repeats 'alpaca'",
        ),
        (
            {"evaluation__tasks": {"base": ["attacks-topk", "attacks-topk"]}},
            r"evaluation.tasks.base \['attacks-topk', 'attacks-topk'\] repeats 'attacks-topk'",
        ),
        ({"tuning__instruct__tasks": ["probes", "probes"]}, r"tuning.instruct.tasks \['probes', 'probes'\] repeats 'probes'"),
        ({"evaluation__probes__layers": [1, 4]}, r"evaluation.probes.layers names layer 4, but the model has 3"),
        ({"pretraining__global_batch": 7, "pretraining__micro_batch": 4}, r"global_batch 7 is not a multiple of micro_batch"),
        ({"tuning__benign__refusals": 0.5}, r"tuning.benign.refusals is 0.5, but no set of its mix \(gsm8k\) has labels"),
        ({"tokenizer__reserve": "<x>"}, r"tokenizer: reserve is '<x>', which has an effect only with a published tokenizer"),
        (
            {"pretraining__schedule": {"kind": "cosine", "decay_fraction": 0.2}},
            r"schedule: decay_fraction is 0.2, which has an effect only with kind warmup-stable-decay; leave it out",
        ),
        (
            {"pretraining__validation_interval_steps": 5, "validation_documents": 0},
            r"validation_interval_steps is 5, but validation_documents is 0, so nothing is held out to validate on",
        ),
        (
            {"evaluation__probes": {"texts": {"safe": {"path": "x"}, "unsafe": {"path": "y"}}, "unsafe_score": 3}},
            r"evaluation.probes: unsafe_score is 3, which has an effect only without `texts`",
        ),
        (
            {"tuning__instruct__conversations": None, "tuning__instruct__steps": 2**62},
            r"tuning.instruct.steps: expected `int` <= 10{9}",
        ),
    ],
)
def test_an_error_names_the_key_its_value_and_the_correction(changes, said):
    with pytest.raises(UsageError, match=said) as caught:
        parse_study(demo(**changes), "study.yaml")
    assert str(caught.value).startswith("study.yaml: ") and "\n" not in str(caught.value)


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"nowhere.yaml: no such study file"):
        load_study(tmp_path / "nowhere.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1,\n")
    with pytest.raises(UsageError, match=r"broken.yaml: not valid YAML"):
        load_study(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(UsageError, match=r"the study: expected `mapping`, got `list`"):
        load_study(tmp_path / "list.yaml")


def test_a_source_of_weight_zero_is_planned_as_absent():
    raw = demo()
    raw["curriculum"]["interventions"]["full"]["unsafe-tagged"] = 0
    arms = {arm["name"]: arm for arm in described(parse_study(raw, "study.yaml"))["arms"]}
    assert "unsafe-tagged" not in arms["full-0"]["sources"]


def test_arms_of_any_shape_are_planned_beside_the_papers():
    dose = [{"until": 0.4, "mix": "safe"}, {"until": 0.6, "mix": "full", "ramp": 2}, {"until": 1, "mix": "safe"}]
    value = described(parse_study(demo(curriculum__arms={"dose": dose}), "study.yaml"))
    arm = next(arm for arm in value["arms"] if arm["name"] == "dose")
    steps = value["budget"]["steps"]
    assert [phase["stop_step"] for phase in arm["phases"]] == [steps * tenth // 10 for tenth in (4, 5, 6, 10)]
    assert next(s for s in value["segments"] if s["name"].startswith("dose@"))["parent"] == f"trunk@{steps * 4 // 10}"
    jobs = {job["name"]: job["elements"] for job in value["jobs"]}
    assert jobs["pretrain-40"] == jobs["instruct-40"] == ["dose"]


def test_a_study_without_benign_finetuning_plans_no_such_models():
    raw = demo()
    raw["tuning"]["benign"] = None
    with pytest.raises(UsageError, match=r"tasks.benign names tasks, but tuning.benign is null; set the tasks to \[\]"):
        parse_study(raw, "study.yaml")
    raw["evaluation"]["tasks"] = {"benign": []}
    jobs = [job["name"] for job in described(parse_study(raw, "study.yaml"))["jobs"]]
    assert "instruct-20" in jobs and "merge-20" in jobs and not [name for name in jobs if "benign" in name]


def test_matched_exposure_is_in_the_plan():
    value = described(parse_study(demo(curriculum__exposure="matched"), "study.yaml"))
    for interventions in ("data", "full"):
        seen = [arm["intervention_tokens"] for arm in value["arms"] if arm["interventions"] == interventions]
        assert len(seen) == 3 and max(seen) - min(seen) <= 8 * 128
    added = {arm["name"]: arm["intervention_sources"] for arm in value["arms"]}
    data = ["moral-education", "refuseweb", "safeweb"]
    assert (added["safe-100"], added["data-20"], added["full-20"]) == ([], data, [*data, "unsafe-tagged"])


def test_too_many_epochs_are_warned_of_and_an_empty_source_is_refused(tmp_path):
    study = parse_study(demo(sources__refuseweb__max_epochs=2.5), "study.yaml")
    for name in study.sources:
        (tmp_path / name).mkdir()
        tokens = {"refuseweb": 20_000}.get(name, 10**9)
        manifest = {"shards": 1, "tokens": tokens, "sha256": "", "tokenizer": ""}
        (tmp_path / name / "00000.json").write_text(msgspec.json.encode(manifest).decode())
    assert described(study, tmp_path)["warnings"] == [
        "source refuseweb: 3.1 epochs in arm data-0, more than its max_epochs 2.5; give it more documents or less weight, "
        "or raise its max_epochs"
    ]
    (tmp_path / "refuseweb/00000.json").write_text('{"shards": 1, "tokens": 0, "sha256": "", "tokenizer": ""}')
    with pytest.raises(
        UserError, match="source refuseweb: its shards in .* hold no tokens; give it documents or a weight of 0"
    ):
        described(study, tmp_path)


def test_training_is_refused_beyond_max_epochs_before_its_first_step(tmp_path):
    more = {"kind": "midtrain", "mix": "safe", "steps": 4, "lr": 1e-3}
    run = Run.create(tmp_path / "run", parse_study(demo(stages={"more": more}), "study.yaml"))
    plan = plan_study(run.study)
    for name in run.study.sources:
        (run.shards / name).mkdir(parents=True)
        manifest = {"shards": 1, "tokens": {"refuseweb": 10_000}.get(name, 10**9), "sha256": "", "tokenizer": ""}
        (run.shards / name / "00000.json").write_text(msgspec.json.encode(manifest).decode())
    words = "source refuseweb: 6.1 epochs in arm data-0, more than its max_epochs 4; give it more documents or less weight, or"
    for key in [("pretrain-trunk-100", "trunk"), ("more-100", "safe-100")]:
        work = Work(run, plan, *plan.find(*key))
        with pytest.raises(UserError, match=words):  # it does not read this source, but arms do
            STAGES[work.job.stage].run(work, silent)
    allowed = plan_study(parse_study(demo(sources__refuseweb__max_epochs=6.2), "study.yaml"))
    check_epochs(allowed, run.shards)


def test_what_the_hub_may_change_is_warned_of(monkeypatch, tmp_path):
    monkeypatch.delenv("CURRICULA_DATA", raising=False)
    raw = yaml.safe_load((STUDIES / "paper.yaml").read_text())

    def warnings() -> list[str]:
        return [text for text in described(parse_study(raw, "study.yaml"))["warnings"] if "newest" in text]

    tokenizer, completions = warnings()
    assert "HuggingFaceTB/cosmo2-tokenizer: no tokenizer.revision" in tokenizer and "jb_completions" in completions
    raw["tokenizer"]["revision"] = "0123abc"
    monkeypatch.setenv("CURRICULA_DATA", str(tmp_path))
    assert not warnings()
    raw["tokenizer"] = {"train": 2048, "revision": "0123abc"}
    with pytest.raises(UserError, match="revision is '0123abc', which has an effect only with `hub`"):
        warnings()


def test_the_tokenizer_is_read_at_its_revision_and_the_commit_is_recorded(monkeypatch, tmp_path):
    asked = []

    def snapshot(name, revision=None, **_):
        asked.append((name, revision))
        folder = tmp_path / "snapshots/0123abcdef"
        train_tokenizer(["a few words"], 300, folder)
        path = folder / "tokenizer.json"
        path.write_text(path.read_text().replace(TAG, "<empty_output>"))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    run, _ = new_run(tmp_path / "run")
    choice = Tokenizer(hub="some/tokenizer", revision="0123abc")
    data._make_tokenizer(SimpleNamespace(study=SimpleNamespace(tokenizer=choice), tokenizer=run.tokenizer))
    assert asked == [("some/tokenizer", "0123abc")]
    recorded = json.loads((run.tokenizer / "source.json").read_text())
    assert recorded == {"hub": "some/tokenizer", "asked": "0123abc", "commit": "0123abcdef"}

    def away(*_, **__):
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.snapshot_download", away)
    with pytest.raises(HubAway, match="^tokenizer.hub some/tokenizer: the hub at .* cannot be reached"):
        data._make_tokenizer(SimpleNamespace(study=SimpleNamespace(tokenizer=choice), tokenizer=run.tokenizer))


def test_a_size_that_is_unknown_is_said_and_a_published_one_is_scaled_to_its_documents(capsys):
    raw = yaml.safe_load((STUDIES / "paper.yaml").read_text())
    raw["sources"]["refuseweb"].update(documents=100_000)
    study = parse_study(raw, "study.yaml")
    value = described(study)
    assert value["source_sizes"]["refuseweb"] == {
        "tokens": round(4_150_000_000 * 100_000 / 1_650_000),
        "origin": "published, scaled to its documents",
    }
    assert value["source_sizes"]["fineweb-edu"] == {"tokens": None, "origin": "unknown"}
    epochs, unknown, *_ = value["warnings"]
    assert epochs.startswith("source refuseweb: 103.7 epochs") and "more than its max_epochs 6.5" in epochs
    assert (
        unknown == "size unknown: fineweb-edu, stackoverflow, unsafe-tagged; their epochs are checked when pretraining starts"
    )
    print_plan(value, study, Console(width=200))
    shown = capsys.readouterr().out
    assert len(re.findall(r"^ \S+ \* ", shown, re.MULTILINE)) == 3 and "*: size unknown" in shown


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2\n", "the key 'seed' appears twice"),
        ("a: !!int x\n", "'x' is not of the type !!int"),
        ("[" * 5000, "not valid YAML"),
    ],
)
def test_what_the_parser_rejects_is_reported_in_a_sentence(tmp_path, text, said):
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UsageError, match="s.yaml: not valid YAML") as caught:
        load_study(tmp_path / "s.yaml")
    assert said in str(caught.value)


def test_numbers_may_be_written_as_people_write_them():
    study = parse_study(demo(pretraining__optimizer={"lr": "5e-4"}), "study.yaml")
    assert study.pretraining.optimizer.lr == 5e-4


def test_planning_imports_nothing_heavy_and_takes_little_processor_time():
    code = (
        "import sys, time; from curricula.jobs.cli.main import main; main(['plan', sys.argv[1], '--json']);"
        "heavy = {'torch', 'transformers', 'megatron', 'datasets', 'scipy', 'sklearn', 'asyncio'};"
        "assert not heavy & set(sys.modules), 'heavy import';"
        "print(time.process_time(), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(STUDIES / "paper.yaml")], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stderr) < 3.0  # about 1 s; torch alone would take 3
    plan = msgspec.json.decode(ran.stdout)
    assert len(plan["arms"]) == 7
    assert plan["model"]["parameters"] == 1_711_376_384
    assert plan["trained_tokens"]["with_trunk_sharing"] == pytest.approx(3.24e12, rel=1e-5)
    assert plan["trained_tokens"]["without"] == pytest.approx(4.2e12, rel=1e-5)
    assert [s["stop_step"] for s in plan["segments"] if s["branch"] == "trunk"] == [57_220, 171_661, 286_102]


def test_the_plan_warns_of_a_micro_batch_that_does_not_fit_the_gpu():
    raw = yaml.safe_load((STUDIES / "paper.yaml").read_text())
    assert not any("GPU" in warning for warning in described(parse_study(raw, "study.yaml"))["warnings"])
    raw["pretraining"]["micro_batch"] = 64  # of which a GPU's share of the global batch is half
    value = described(parse_study(raw, "study.yaml"))
    assert 140 < value["gpu_memory"]["needed_gib"] < 160
    assert any("which has 79; use micro_batch 8 or engine.recompute_layers" in warning for warning in value["warnings"])


def test_the_plan_warns_of_a_stage_after_pretraining_that_does_not_fit_its_gpus():
    raw = yaml.safe_load((STUDIES / "deep-ignorance.yaml").read_text())
    assert not any("GPU" in warning for warning in described(parse_study(raw, "study.yaml"))["warnings"])
    raw["resources"]["tuning"] = {"gpus_per_node": 2}  # among which the optimizer's state is split, not among pretraining's 128
    (warning,) = (one for one in described(parse_study(raw, "study.yaml"))["warnings"] if "GPU" in one)
    assert warning.startswith("instruct with micro_batch 1 needs about 90 GiB of each GPU, which has 79; use more GPUs")


def test_the_plan_warns_of_what_nothing_uses():
    own = {"dataset": "gsm8k", "prompt": "question", "response": "answer"}
    raw = demo(tuning_sets={"mine": own}, evaluation__shards={"gcg": 4, "best-of-n": 2})
    raw["evaluation"]["attacks"] = {"artifacts": {"pair": "pair.json"}, "suffixes_of": ["full-0"]}
    found = [warning for warning in described(parse_study(raw, "study.yaml"))["warnings"] if "uses" in warning]
    keys = {"tuning_sets": "mine", "attacks.artifacts": "pair", "attacks.suffixes_of": "full-0", "shards": "best-of-n"}
    assert len(found) == len(keys)
    for warning, (key, name) in zip(found, keys.items()):
        assert f"{key}: no stage and no task uses {name}; " in warning


def test_the_plan_warns_of_a_learning_rate_that_falls_before_it_has_risen():
    schedule = {"kind": "warmup-stable-decay", "warmup_fraction": 0.9, "decay_fraction": 0.1}
    changes = {"pretraining__budget_tokens": 100 * 8 * 128, "pretraining__schedule": schedule}
    assert not any("learning rate" in warning for warning in described(parse_study(demo(**changes), "s"))["warnings"])
    schedule["warmup_fraction"] = 0.91
    warnings = described(parse_study(demo(**changes), "s"))["warnings"]
    assert any("learning rate rises for 91 steps, but only 90 of 100 steps precede the decay" in one for one in warnings)


@pytest.mark.parametrize(
    ("warmup", "decay", "left"), [(0.02, 1.0, None), (0.5, 0.5, None), (0.5, 1.0, "50%"), (0.9, 0.4, "25%")]
)
def test_the_plan_warns_of_a_stage_whose_warm_up_ends_far_down_the_decay(warmup, decay, left):
    raw = small_studies.tree_study()
    raw["stages"]["mt"] |= {"warmup_fraction": warmup, "decay_fraction": decay}
    found = [one for one in described(parse_study(raw, "s"))["warnings"] if "learning rate" in one]
    assert [one.partition(" of its peak")[0] for one in found] == ([f"mt's learning rate drops to {left}"] if left else [])


def test_a_stage_whose_jobs_would_have_the_names_of_others_is_refused():
    tuned = {"kind": "sft", "mix": {"gsm8k": 1}, "tasks": ["gcg", "transfer-topk"]}
    changes = {"evaluation__attacks": {"suffixes_of": ["full-20"]}, "stages": {"sft": tuned}}
    plan_study(parse_study(demo(**changes), "s"))
    changes["stages"]["sft-transfer"] = tuned
    with pytest.raises(UsageError, match="two jobs would have the name evaluate-sft-transfer-0; rename a stage"):
        plan_study(parse_study(demo(**changes), "s"))


def test_estimates_follow_what_is_said_of_the_gpus():
    def planned(**resources):
        return described(parse_study(demo(**{f"resources__{name}": value for name, value in resources.items()}), "study.yaml"))

    usual = planned(expected_mfu=0.4, peak_tflops=900)
    hours = usual["gpu_hours"]["pretraining"]
    assert planned(expected_mfu=0.1, peak_tflops=900)["gpu_hours"]["pretraining"] == pytest.approx(4 * hours)
    slower = planned(expected_mfu=0.4, peak_tflops=300)
    assert slower["gpu_hours"]["pretraining"] == pytest.approx(3 * hours)
    assert slower["evaluation_gpu_hours"]["probes"] == pytest.approx(3 * usual["evaluation_gpu_hours"]["probes"])
    smaller = planned(gpu_memory_gib=0.25)
    assert smaller["gpu_memory"]["available_gib"] == 0.25 and any("which has 0.25" in one for one in smaller["warnings"])


def test_a_budget_can_be_a_multiple_of_the_models_parameters():
    study = parse_study(demo(pretraining__budget_tokens=None, pretraining__tokens_per_parameter=0.5), "study.yaml")
    assert study.budget.requested_tokens == round(0.5 * study.model.resolve().parameters)
    assert parse_study(yaml.safe_load(study_yaml(study)), "frozen") == study


def test_a_model_may_have_sizes_of_its_own():
    study = parse_study(demo(model={**OWN, "rms_norm_eps": 1e-6, "init_std": 0.1}), "study.yaml")
    assert study.model.resolve() == ModelConfig(**OWN, rms_norm_eps=1e-6, init_std=0.1)
    assert parse_study(yaml.safe_load(study_yaml(study)), "frozen") == study
    value = described(study)
    attention, mlp = 96 * 96 * 2 + 96 * 32 * 2, 3 * 96 * 256
    assert value["model"]["parameters"] == 2 * (attention + mlp + 2 * 96) + 96 + 2048 * 96
    preset = described(parse_study(demo(), "study.yaml"))
    hours, flops = (one["gpu_hours"]["pretraining"] / one["model"]["flops_per_token"] for one in (value, preset))
    assert hours == pytest.approx(flops)
    assert value["gpu_memory"]["needed_gib"] < preset["gpu_memory"]["needed_gib"]


def test_the_plan_names_a_model_by_its_preset_and_the_sizes_that_are_not_its_own(tmp_path, capsys):
    path = small_studies.demo_file(tmp_path)
    assert main(["plan", str(path), "--set", "model.layers=2"]) == 0
    assert "demo: tiny, layers 2, 656," in capsys.readouterr().out
    assert main(["plan", str(path), "--set", f"model={OWN}"]) == 0
    assert "demo: layers 2, hidden 96, heads 6, kv_heads 2, ffn 256, 393," in " ".join(capsys.readouterr().out.split())


def test_a_plan_of_a_model_with_absurdly_many_layers_is_quick():
    assert any("GPU, which has" in one for one in described(parse_study(demo(model__layers=10**9), "s"))["warnings"])


def test_a_run_is_refused_by_the_models_size_however_it_is_written(tmp_path):
    run = Run.create(tmp_path / "run", parse_study(demo(), "study.yaml"))
    run.check(parse_study(demo(model__layers=3, model__rope_base=1e4), "study.yaml"))
    with pytest.raises(UserError, match=r"a different study: model\.hidden was 128, now 160"):
        run.check(parse_study(demo(model__hidden=160), "study.yaml"))


def test_a_run_is_refused_where_the_model_of_one_point_alone_is_another(tmp_path):
    sweep = {"sweep": {"model.preset": ["tiny", "smollm2-135m"]}, "tokenizer": {"folder": "tokens"}}
    run = Run.create(tmp_path / "run", parse_study(demo(**sweep), "study.yaml"))
    run.check(parse_study(demo(**sweep, model__rope_base=1e4), "study.yaml"))
    with pytest.raises(UserError, match=r"points\.preset-smollm2-135m\.model\.sequence_length was 2048, now 128"):
        run.check(parse_study(demo(**sweep, model__sequence_length=128), "study.yaml"))


# curricula ... --set --------------------------------------------------------------------------------------------------


def test_settings_of_the_command_line_replace_those_of_the_file_and_are_typed_like_them(tmp_path):
    path = small_studies.demo_file(tmp_path)
    changes = [
        "pretraining.optimizer.lr=1e-3",
        "curriculum.starts.1=0.3",
        "seed=null",
        "seeds=[1, 2]",
        "tracking.tensorboard=no",
    ]
    with pytest.raises(UsageError, match=r"tracking.tensorboard=no: tracking.tensorboard: expected `bool`, got `str`"):
        load_study(path, changes)
    study = load_study(path, [*changes[:-1], "tracking.tensorboard=false"])
    assert (study.pretraining.optimizer.lr, study.curriculum.starts[1], study.seeds) == (1e-3, 0.3, (1, 2))
    assert not study.tracking.tensorboard
    assert parse_study(yaml.safe_load(study_yaml(study)), "frozen") == study != load_study(path)  # so a run records them


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("seed", "--set seed: not KEY=VALUE, such as optimizer.lr=3e-4"),
        ("a..b=1", "--set a..b=1: not KEY=VALUE"),
        ("pretraining.optimiser.lr=1", "pretraining: unknown key `optimiser`; did you mean `optimizer`?"),
        ("pretraining.optimizer.lr=fast", "pretraining.optimizer.lr: expected `float`, got `str`; it is 'fast'"),
        ("name.of=1", "--set name.of=1: the key 'of' does not exist in 'demo'; give keys of the study with dots"),
        ("curriculum.starts.4=1", "the key '4' does not exist in [0, 0.2, 0.6, 1]"),
        (f"curriculum.starts.{'9' * 5000}=1", "does not exist in [0, 0.2, 0.6, 1]"),
        ("seed=[1", "--set seed=[1: the value is not valid YAML"),
        ("seed=!!python/object:os.system 1", "the value is not valid YAML"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_in_one_sentence(tmp_path, capsys, change, said):
    path = small_studies.demo_file(tmp_path)
    for arguments in (["plan", str(path)], ["submit", str(path), "--run", str(tmp_path / "run")]):
        assert main([*arguments, "--set", change]) == 2
        error = capsys.readouterr().err
        assert said in error and str(path) in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()
