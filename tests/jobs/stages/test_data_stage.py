"""The data jobs of a study: from the hub, or a folder, to shards, in real processes."""

import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pyarrow
import pyarrow.parquet
import pytest
import yaml
from fake_hub import FakeHub
from run_folders import finish, make
from small_studies import small_study, smaller_demo
from tiny_llama import save_tiny_llama
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from curricula.curriculum.sources.declared import DATASETS
from curricula.curriculum.sources.hub import require_whole
from curricula.curriculum.sources.tables import Table
from curricula.curriculum.tokens.tokenizer import SPECIALS, load_tokenizer
from curricula.curriculum.world.datasets import write_world
from curricula.errors import UserError
from curricula.jobs.cli.main import main
from curricula.jobs.completion import Done, done_elements, is_complete
from curricula.jobs.downloads import READERS, study_downloads
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run
from curricula.jobs.stages import Work
from curricula.jobs.stages.data import Prepare, prepare
from curricula.jobs.study import load_study
from curricula.model.checkpoints.folder import latest_checkpoint, read_info, set_aside


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    study = load_study(small_study(folder))
    write_world(folder / "data", study.world)
    return folder / "data"


@pytest.fixture
def study(tmp_path):
    """Pretraining data in parts, tags, several shards; read from outside, since the study has no world."""
    path = small_study(tmp_path, world=None)
    raw = yaml.safe_load(path.read_text())
    raw["sources"] = {
        "web": {"dataset": "fineweb-edu", "shards": 3, "documents": 500},
        "unsafe": {"dataset": "fineweb-unsafe", "tag_rate": 0.05, "shards": 2},
    }
    raw["evaluation"].update(benchmarks=["advbench"], probes=None)
    raw["curriculum"].update(safe={"web": 1}, interventions={"full": {"web": 1, "unsafe": 1}})
    path.write_text(yaml.safe_dump(raw))
    return path


def curricula(*words, **environment):
    return subprocess.run(
        [sys.executable, "-m", "curricula.jobs.cli.main", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


@pytest.fixture
def here(monkeypatch, capsys):
    """The same in this process, which has imported what a process of its own would take seconds for."""

    def call(*words, **environment):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        capsys.readouterr()
        status = main([*map(str, words)])
        return subprocess.CompletedProcess(words, status, *capsys.readouterr())

    return call


def test_weights_beside_the_study_file_are_found_and_those_of_other_sizes_refused(tmp_path):
    save_tiny_llama(tmp_path / "hf", tied=True)
    model = {"preset": "tiny", "weights": "hf", "vocabulary": 400}
    study = load_study(small_study(tmp_path, tokenizer={"folder": "hf"}, model=model))
    run = Run.create(tmp_path / "run", study)
    for _ in range(2):  # imported, and when they are there already
        with pytest.raises(UserError, match=r"hf: is not the study's model \(layers 2, not 3, hidden 32, not 128, .*set these"):
            prepare(run)


def test_weights_in_a_folder_say_the_models_sizes_once_for_the_run(tmp_path):
    def beside(**model):
        return load_study(small_study(tmp_path, tokenizer={"folder": "hf"}, model={"weights": "hf", **model}))

    save_tiny_llama(tmp_path / "hf", tied=True)
    model = beside().model.resolve()
    assert (model.layers, model.hidden, model.kv_heads, model.ffn, model.vocabulary) == (2, 32, 2, 64, 400)
    assert model.tied and model.rms_norm_eps == 1e-6
    assert (model.sequence_length, model.init_std) == (2048, 0.02)  # of training, not of the weights
    run = Run.create(tmp_path / "run", beside(sequence_length=128))
    prepare(run)
    imported = read_info(latest_checkpoint(run.initial_checkpoint)).model
    assert msgspec.structs.replace(imported, init_std=0.02) == run.study.model.resolve()
    with pytest.raises(UserError, match=r"is not the study's model \(layers 2, not 4\); set these keys of model to what the"):
        prepare(Run.create(tmp_path / "deeper", beside(layers=4)))
    (tmp_path / "hf").rename(tmp_path / "away")
    assert Run.open(run.root).study.model.resolve().hidden == 32
    with pytest.raises(UserError, match="ffn must be given, and none was read from a config.json in weights 'hf'"):
        beside()


def test_imported_weights_that_were_set_aside_as_damaged_are_imported_again(tmp_path):
    save_tiny_llama(tmp_path / "hf", tied=True)
    model = {"weights": "hf", "sequence_length": 128}
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path, tokenizer={"folder": "hf"}, model=model)))
    prepare(run)
    plan = plan_study(run.study)
    work = Work(run, plan, *plan.find("prepare", "prepare"))
    assert Prepare().is_complete(work, None)
    set_aside(latest_checkpoint(run.initial_checkpoint))
    assert not Prepare().is_complete(work, None)
    prepare(run)
    assert Prepare().is_complete(work, None) and read_info(latest_checkpoint(run.initial_checkpoint)).step == 0
    set_aside(latest_checkpoint(run.initial_checkpoint))
    for job, element in plan.elements():
        if element.segment:
            assert not Prepare().is_complete(work, None)
            finish(run, job.name, element.label)
    assert Prepare().is_complete(work, None)  # else all of a finished run would be stale


def test_weights_that_come_later_change_no_run_of_sizes_that_the_study_gave(tmp_path):
    sizes = {"layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "ffn": 64, "vocabulary": 400, "sequence_length": 128}
    path = small_study(tmp_path, tokenizer={"folder": "hf"}, model={"weights": f"{tmp_path}/hf", **sizes})
    run = Run.create(tmp_path / "run", load_study(path))
    save_tiny_llama(tmp_path / "hf", tied=False)
    assert Run.open(run.root).study.model.resolve().tied
    with pytest.raises(UserError, match=r"a different study: model.rms_norm_eps was 1e-05, now 1e-06"):
        run.check(load_study(path))


def test_a_run_knows_its_weights_and_tokenizer_again_when_they_came_or_were_moved_away(tmp_path):
    def beside(words: str = "hf"):
        model = {"preset": "tiny", "weights": words, "vocabulary": 400}
        return load_study(small_study(tmp_path, tokenizer={"folder": words}, model=model))

    lacking = beside()
    save_tiny_llama(tmp_path / "hf", tied=True)
    found = beside()
    assert (lacking.model.weights, found.model.weights) == ("hf", f"{tmp_path}/hf")
    for frozen, now in ((lacking, found), (found, lacking)):
        Run.create(tmp_path / frozen.model.weights.replace("/", "_"), frozen).check(now)
    with pytest.raises(UserError, match="tokenizer.folder was '.*, now 'fh'"):
        Run.create(tmp_path / "run", found).check(beside("fh"))


def test_models_of_an_evaluation_lie_beside_the_study_file_unless_their_names_are_others(tmp_path):
    def evaluation(served="guard"):
        raw = smaller_demo()["evaluation"]
        judges = {"judge": {"name": "local", "model": "guard"}, "overrefusal_judge": {"name": "llm", "model": served}}
        raw.update(judges, gcg={"probe_sampling": {"draft": "guard"}})
        study = load_study(small_study(tmp_path, evaluation=raw))
        found = study.evaluation
        return study, (found.judge.model, found.overrefusal_judge.model, found.gcg.probe_sampling.draft)

    lacking, names = evaluation()
    (tmp_path / "guard").mkdir()
    found, places = evaluation()
    here = str(tmp_path / "guard")
    assert names == ("guard", "guard", "guard") and places == (here, "guard", here)
    Run.create(tmp_path / "run", lacking).check(found)
    for other in ("theirs/guard", "/theirs/guard"):  # on a server, which has names of its own
        with pytest.raises(UserError, match=f"overrefusal_judge.model was 'guard', now '{other}'"):
            Run(tmp_path / "run").check(evaluation(other)[0])


def test_weights_at_a_place_where_nothing_can_be_looked_at_have_no_sizes(tmp_path):
    with pytest.raises(UserError, match=r"ffn must be given, and none was read from a config.json in weights 'nnn"):
        load_study(small_study(tmp_path, model={"weights": "n" * 300}))  # longer than any file's name


def test_the_home_of_nobody_is_a_name_like_any_other(tmp_path):
    assert load_study(small_study(tmp_path, tokenizer={"folder": "~nobody-there/x"})).tokenizer.folder == "~nobody-there/x"


@pytest.mark.parametrize("tuning", [False, True])
def test_a_tokenizer_learns_the_words_of_tuning_where_the_study_asks_for_it(tmp_path, tuning):
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path, tokenizer={"train": 2048, "tuning": tuning})))
    prepare(run)
    pieces = load_tokenizer(run.tokenizer).encode("<|im_start|>assistant\n").tokens
    assert (pieces[1] == "assistant") is tuning


def test_the_set_that_tagged_examples_come_from_is_missed_before_anything_is_trained(tmp_path, world):
    tuning = smaller_demo()["tuning"]
    tuning["instruct"].update(mix={"ultrachat": 1}, tagged_harmful={"full": 0.1})
    tuning["benign"].update(mix={"gsm8k": 1})
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path, tuning=tuning)))
    shutil.copytree(world, run.world)
    shutil.rmtree(run.world / DATASETS["wildguardmix"].folder)
    with pytest.raises(UserError, match=r"tuning_sets\.wildguardmix-harmful: .*no such table"):
        prepare(run)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"along": {"at": [9999]}}, r"tuning\.benign\.along\.at names 9999, which is step 9,999 of "),
        ({"along": {"at": [1, 1e-6]}}, r"tuning\.benign\.along\.at names 1e-06, which is step 0 of "),
        ({"epochs": 1e-6}, r"tuning\.benign: a batch has 4 rows, but the conversations fill only 0"),
    ],
)
def test_a_point_or_a_step_that_a_stage_lacks_is_missed_before_anything_is_trained(tmp_path, world, changes, said):
    tuning = smaller_demo()["tuning"]
    tuning["benign"] = {"mix": {"gsm8k": 1}, **changes}
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path, tuning=tuning)))
    shutil.copytree(world, run.world)
    with pytest.raises(UserError, match=said):
        prepare(run)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mix": {"mine": 1}, "refusals": 0.5}, "tuning.benign.refusals is 0.5, but mine hold no refusals"),
        ({"mix": {"mine": 1}, "packing": True}, "tuning.benign: a batch has 4 rows, but the conversations fill only 2"),
        ({"mix": {"long": 1}}, "tuning.benign: in none of the first 9 conversations does an answer begin within"),
    ],
)
def test_conversations_from_which_a_stage_could_not_train_are_missed_before_anything_is_trained(tmp_path, world, changes, said):
    for name, words in (("mine", 1), ("long", 4000)):
        row = {"asked": "lamp " * words, "said": "It is lit.", "label": "harmless"}
        (tmp_path / f"{name}.jsonl").write_text((json.dumps(row) + "\n") * 9)
    sets = {name: {"path": f"{name}.jsonl", "prompt": "asked", "response": "said"} for name in ("mine", "long")}
    sets["mine"]["harmful_prompt"] = {"label": "harmful"}
    tuning = smaller_demo()["tuning"] | {"benign": changes}
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path, tuning=tuning, tuning_sets=sets)))
    shutil.copytree(world, run.world)
    with pytest.raises(UserError, match=said):
        prepare(run)


def test_points_that_draw_the_same_conversations_are_looked_at_once(tmp_path, world, monkeypatch):
    begun = []

    def begin(stage, *_, **__):
        begun.append(f"{next(iter(stage.mix))} {stage.epochs}")
        return SimpleNamespace(total_steps=6)

    monkeypatch.setattr("curricula.curriculum.stream.tuning.TuningBatches", begin)
    sweep = {"tuning.benign.lr": [1e-5, 2e-5], "tuning.benign.epochs": [1, 2]}
    tuning = smaller_demo()["tuning"]
    del tuning["benign"]["conversations"]
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path, tuning=tuning, sweep=sweep)))
    shutil.copytree(world, run.world)
    prepare(run)
    assert sorted(begun) == ["gsm8k 1.0", "gsm8k 2.0", "ultrachat None", "ultrachat None"]  # with and without tagged answers


def test_benchmarks_that_another_job_is_fetching_are_not_looked_at(tmp_path, world, monkeypatch):
    monkeypatch.delenv("CURRICULA_DATA", raising=False)
    evaluation = smaller_demo()["evaluation"] | {"judge": "refusal-phrases", "probes": None}
    evaluation["prompts"] = {"ours": {"hub": "org/ours"}}
    evaluation["benchmarks"] = ["harmbench", "ours"]
    evaluation["tasks"] = {"base": [], "instruct": ["attacks-topk", "ablation-topk"], "benign": []}
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path, world=None, evaluation=evaluation)))
    shutil.copytree(world, run.data_root)
    for item in study_downloads(run.study, run.data_root):
        if item.readers == READERS["evaluation"]:
            shutil.rmtree(item.download.out, ignore_errors=True)
            item.download.out.mkdir(parents=True)  # its files have yet to come
    prepare(run)
    assert (run.tokenizer / "tokenizer.json").exists()


def test_probe_texts_that_nothing_fetches_are_missed_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.delenv("CURRICULA_DATA", raising=False)
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path, world=None)))
    with pytest.raises(UserError, match="the probe texts are not on the Hugging Face hub; write probes/train.jsonl"):
        prepare(run)


def test_jailbreaks_to_replay_are_missed_before_anything_is_trained(tmp_path):
    evaluation = smaller_demo()["evaluation"]
    evaluation |= {"attacks": {"artifacts": {"pair": "pair.json"}}, "tasks": {"instruct": ["artifacts-topk"]}}
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path, evaluation=evaluation)))
    with pytest.raises(UserError, match=r"pair\.json: cannot be read .* correct evaluation\.attacks\.artifacts\.pair"):
        prepare(run)


def test_too_few_prompts_for_the_refusal_direction_are_missed_before_anything_is_trained(tmp_path, world):
    evaluation = smaller_demo()["evaluation"]
    evaluation["tasks"] = {"base": [], "instruct": ["ablation-topk"], "benign": []}
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path, evaluation=evaluation)))
    shutil.copytree(world, run.world)
    with pytest.raises(
        UserError, match=r"advbench has \d prompts that are not attacked .* asks for 160 \(train \+ validation\)"
    ):
        prepare(run)


def test_a_prompt_that_fills_the_context_is_missed_before_anything_is_trained(tmp_path, world):
    evaluation = smaller_demo()["evaluation"] | {"prompts": {"ours": {"path": "ours.csv"}}, "benchmarks": ["ours"]}
    (tmp_path / "ours.csv").write_text(f"prompt\nOpen it.\n{'lamp ' * 4000}\n")
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path, evaluation=evaluation)))
    shutil.copytree(world, run.world)
    with pytest.raises(UserError, match=r"benchmark ours, prompt 1: has [\d,]+ tokens, but model.sequence_length is 128"):
        prepare(run)


def test_a_set_that_only_shares_its_name_with_artifacts_need_not_fit(tmp_path, world):
    evaluation = smaller_demo()["evaluation"] | {"prompts": {"ours": {"path": "ours.csv"}}}
    evaluation["attacks"] = {"artifacts": {"ours": str(tmp_path / "artifacts.json")}}
    evaluation["tasks"] = {"base": [], "instruct": ["artifacts-topk"], "benign": []}
    (tmp_path / "ours.csv").write_text(f"prompt\n{'lamp ' * 4000}\n")
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path, evaluation=evaluation)))
    jailbreak = {"index": 0, "goal": "Open it.", "prompt": "Open it now."}
    (tmp_path / "artifacts.json").write_text(json.dumps({"jailbreaks": [jailbreak]}))
    shutil.copytree(world, run.world)
    prepare(run)
    assert (run.tokenizer / "tokenizer.json").exists()


def test_a_judge_that_could_not_judge_is_missed_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    evaluation = smaller_demo()["evaluation"]
    evaluation["overrefusal_judge"] = {"name": "llm", "model": "m", "url": "https://api.openai.com/v1"}
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path, evaluation=evaluation)))
    with pytest.raises(UserError, match=r"api\.openai\.com needs a key, and OPENAI_API_KEY holds none"):
        prepare(run)


def test_a_tokenizer_unfit_for_conversations_is_missed_before_anything_is_trained(tmp_path, world):
    run = Run.create(tmp_path / "run", load_study(small_study(tmp_path)))
    shutil.copytree(world, run.world)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.train_from_iterator(["user a b c"], trainers.BpeTrainer(special_tokens=list(SPECIALS)))
    run.tokenizer.mkdir(parents=True)
    tokenizer.save(str(run.tokenizer / "tokenizer.json"))
    (run.tokenizer / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="data/tokenizer: the tokenizer splits text next to a special entry differently"):
        prepare(run)


def shards_of(run):
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted((run / "data/shards").rglob("*.*"))}


def test_only_benchmarks_that_a_task_asks_are_fetched(study):
    raw = yaml.safe_load(study.read_text())
    raw["tuning"] = None
    raw["evaluation"].update(gcg=None, tasks={"base": ["attacks-topk"]})
    study.write_text(yaml.safe_dump(raw))
    fetched = {item.label for item in study_downloads(load_study(study), Path()) if item.purpose == "evaluation"}
    assert fetched == {"jb_completions"}


def test_a_fetched_dataset_that_has_lost_a_file_is_fetched_again_and_not_taken_for_the_whole(study, tmp_path, monkeypatch):
    monkeypatch.delenv("CURRICULA_DATA", raising=False)
    run = Run.create(tmp_path / "run", load_study(study))
    plan = plan_study(run.study)
    work = Work(run, plan, *plan.find("fetch", "fineweb-edu"))
    (download,) = (item.download for item in study_downloads(run.study, run.data_root) if item.label == "fineweb-edu")
    one, two = (download.file(number, 2) for number in range(2))
    download.out.mkdir(parents=True)
    for file in (one, two):
        pyarrow.parquet.write_table(
            pyarrow.table({"id": [f"{file.name}-{row}" for row in range(300)], "text": ["a"] * 300}), file
        )
    said = {"hub": download.hub, "config": None, "split": "train", "asked": None, "columns": [], "constants": {}, "limit": None}
    rows = {"files": 2, "rows": 600, "rows_of": {one.name: 300, two.name: 300}, "complete": True}
    download.finished.write_text(json.dumps({**said, **rows, "revision": "1", "licence": ""}))
    assert is_complete(work, Done(seconds=1.0))
    one.unlink()
    assert not is_complete(work, Done(seconds=1.0))
    with pytest.raises(UserError, match=f"{one}: was fetched and is gone; fetch the dataset again, which transfers only"):
        require_whole(download.out, None)
    download.finished.write_text("nonsense")
    assert not is_complete(work, Done(seconds=1.0))


def fill(hub: FakeHub, study: Path, world: Path) -> None:
    """What the study asks of the hub, made of the world's tables."""
    repositories = defaultdict(dict)
    for item in study_downloads(load_study(study), Path()):
        download = item.download
        local = world / download.out
        if not any(local.parent.glob(f"{local.name}*")):
            local = next(entry.stems(world)[0] for entry in DATASETS.values() if entry.hub == download.hub)
        rows = [dict.fromkeys(download.columns) | row for row in Table.open(local).rows()]
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        repositories[download.hub, download.revision][f"{download.config}-{download.split}"] = (download, content)
    for (name, revision), files in repositories.items():
        configs = [
            {"config_name": download.config or "default", "data_files": [{"split": download.split, "path": f"{file}.jsonl"}]}
            for file, (download, _) in files.items()
        ]
        card = f"---\n{yaml.safe_dump({'configs': configs})}---\n".encode()
        contents = {f"{file}.jsonl": content for file, (_, content) in files.items()}
        hub.commit(name, {"README.md": card, **contents}, begins=revision or "")


def test_a_study_fetches_what_it_reads_and_tokenises_it_as_if_it_had_been_there(here, study, world, tmp_path):
    with FakeHub() as hub:
        fill(hub, study, world)
        home = hub.environment(tmp_path / "home")
        home["CURRICULA_DATA"] = ""
        # A process of its own, since the libraries read the hub's address when they are imported.
        ran = curricula("data", "tokenize", study, "--run", tmp_path / "fetched", **home)
        assert ran.returncode == 0, ran.stderr
        asked = len(hub.requests)
        again = here("data", "tokenize", study, "--run", tmp_path / "fetched", CURRICULA_DATA="")
        assert again.returncode == 0 and len(hub.requests) == asked
    web = tmp_path / "fetched/data/fetched/fineweb_annotated/score_0"
    assert len(Table.open(web)) == 500  # no more than the study's documents
    local = here("data", "tokenize", study, "--run", tmp_path / "local", CURRICULA_DATA=str(world))
    assert local.returncode == 0, local.stderr
    fetched, there = shards_of(tmp_path / "fetched"), shards_of(tmp_path / "local")
    assert len(there) == 3 * (1 + 3 + 1 + 2)
    bins = [name for name in there if name.endswith((".bin", ".idx"))]
    assert {name: fetched[name] for name in bins} == {name: there[name] for name in bins}


def test_a_hub_that_cannot_be_reached_is_reported_in_a_sentence(study, tmp_path):
    ran = curricula("data", "fetch", "--study", study, "--out", tmp_path / "data", HF_ENDPOINT="http://127.0.0.1:9")
    assert ran.returncode == 1
    said = " ".join(ran.stderr.split())
    assert "dataset locuslab/fineweb_annotated: " in said and "Traceback" not in said
    assert "the hub at http://127.0.0.1:9 cannot be reached (ConnectError); run this where" in said


def test_one_source_alone_can_be_tokenised_and_submit_finds_it_done(here, study, world, tmp_path):
    ran = here("data", "tokenize", study, "--run", tmp_path / "run", "--source", "unsafe", CURRICULA_DATA=str(world))
    assert ran.returncode == 0, ran.stderr
    assert {path.name for path in (tmp_path / "run/data/shards").iterdir()} == {"unsafe"}
    states = json.loads(here("status", tmp_path / "run", "--json").stdout)
    done = {element["label"] for element in states if element["state"] == "done" and element["job"] == "tokenize"}
    assert done == {"unsafe/validation", "unsafe/00000", "unsafe/00001"}
    plan = json.loads(here("plan", study, "--run", tmp_path / "run", "--json").stdout)
    full = next(arm for arm in plan["arms"] if arm["interventions"] == "full")
    assert full["sources"]["unsafe"]["epochs"] > 0 and full["sources"]["web"]["epochs"] is None


def test_what_is_deleted_or_cut_short_is_made_again_by_the_same_command(here, study, world, tmp_path):
    words = ("data", "tokenize", study, "--run", tmp_path / "run")
    assert here(*words, CURRICULA_DATA=str(world)).returncode == 0
    whole = shards_of(tmp_path / "run")
    folder = tmp_path / "run/data/shards"
    for name, damage in {"web/00001.bin": b"", "unsafe/00000.idx": None, "web/00002.json": None}.items():
        (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
    inspected = here("data", "inspect", folder / "web/00001")
    assert inspected.returncode == 1 and "web/00001.bin: 0 bytes, but its index says" in inspected.stderr
    again = here(*words, CURRICULA_DATA="")  # the run knows its data folder
    assert again.returncode == 0, again.stderr
    assert shards_of(tmp_path / "run") == whole
    assert "lost" not in again.stdout


def test_lost_shards_that_every_training_has_read_are_not_made_again_but_named(here, study, world, tmp_path):
    words = ("data", "tokenize", study, "--run", tmp_path / "run")
    assert here(*words, CURRICULA_DATA=str(world)).returncode == 0
    run = Run.open(tmp_path / "run")
    plan = plan_study(run.study)
    for key in plan.needs:
        if not (run.element(*key) / "done.json").exists():
            make(run, plan, key, 1000.0)
    done = done_elements(run, plan)
    (run.shards / "web/00001.bin").unlink()
    again = here(*words, CURRICULA_DATA="")
    assert again.returncode == 0, again.stderr
    assert "\n1 lost shard not made again: nothing has yet to read them, and all that has read them" in again.stdout
    assert done_elements(run, plan) == done and any(job.startswith("pretrain") for job, _ in done)
    assert here(*words[:-1], tmp_path / "other", CURRICULA_DATA=str(world)).returncode == 0
    assert (tmp_path / "other/data/shards/web/00001.bin").exists()


def test_a_run_goes_on_with_the_data_it_began_with(here, study, world, tmp_path):
    words = ("data", "tokenize", study, "--run", tmp_path / "run", "--source")
    assert here(*words, "unsafe", CURRICULA_DATA=str(world)).returncode == 0
    (tmp_path / "other").mkdir()
    ran = here(*words, "web", CURRICULA_DATA=str(tmp_path / "other"))
    assert ran.returncode == 1
    assert f"CURRICULA_DATA={tmp_path}/other: {tmp_path}/run was begun with CURRICULA_DATA={world}; restore that" in ran.stderr


def test_a_world_that_was_deleted_comes_back_as_it_was(here, study, tmp_path):
    study.write_text(yaml.safe_dump({**yaml.safe_load(study.read_text()), "world": smaller_demo()["world"]}))
    words = ("data", "tokenize", study, "--run", tmp_path / "run")
    assert here(*words).returncode == 0
    whole = shards_of(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/world")
    shutil.rmtree(tmp_path / "run/data/shards/web")
    again = here(*words)
    assert again.returncode == 0, again.stderr
    assert shards_of(tmp_path / "run") == whole


def test_a_benchmark_that_is_not_the_published_one_stops_the_study_before_anything_is_trained(here, study, world, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(world, data)
    (data / "world.json").unlink()
    ran = here("data", "tokenize", study, "--run", tmp_path / "run", CURRICULA_DATA=str(data))
    assert ran.returncode == 1 and " prompts, where 990 were published; fetch it again, or accept it" in ran.stderr
    raw = yaml.safe_load(study.read_text())
    raw["evaluation"]["accept_changed"] = ["advbench", "jb_completions", "jailbreakbench", "alpaca"]
    study.write_text(yaml.safe_dump(raw))
    ran = here("data", "tokenize", study, "--run", tmp_path / "accepted", CURRICULA_DATA=str(data))
    assert ran.returncode == 0, ran.stderr


def test_a_run_whose_shards_were_moved_away_goes_on_with_the_data_that_they_were_made_from(tmp_path, monkeypatch):
    began = load_study(small_study(tmp_path, world=None))
    monkeypatch.setenv("CURRICULA_DATA", str(tmp_path))
    run = Run.create(tmp_path / "run", began)
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.setenv("CURRICULA_DATA", str(other))
    run.check(began)
    finish(run, "tokenize", "web/00000")
    with pytest.raises(UserError, match=f"CURRICULA_DATA={other}: .* was begun with CURRICULA_DATA={tmp_path}; restore that"):
        run.check(began)
