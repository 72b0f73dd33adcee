"""Studies over data of one's own: what `curricula plan` says of wrong tables, and a whole run."""

import csv
import json
import random
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from docs_examples import example
from small_studies import small_study, smaller_demo

from curricula.curriculum.world.datasets import write_world
from curricula.durable import read_json, write_json
from curricula.errors import UserError
from curricula.eval.benchmarks import load_prompts
from curricula.eval.data_check import shard_documents
from curricula.jobs.cli.main import main
from curricula.jobs.downloads import named_downloads, once, study_downloads
from curricula.jobs.element import run_element
from curricula.jobs.estimates import describe
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run, read_contamination
from curricula.jobs.stages.data import prepare
from curricula.jobs.study import load_study

pytestmark = pytest.mark.usefixtures("svg_alone")


def write_rows(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def planned(tmp_path, capsys, sources, **changes):
    """What `curricula plan` says of the small study with these sources more, all of them in its safe mix."""
    raw = {"web": {"dataset": "fineweb-edu"}, **sources}
    weights = dict.fromkeys(raw, 1)
    curriculum = {"starts": [0.5, 1], "safe": {"web": 1}, "interventions": {"full": weights}}
    path = small_study(tmp_path, sources=raw, curriculum=curriculum, **changes)
    status = main(["plan", str(path)])
    out, err = capsys.readouterr()
    return status, " ".join((out + err).split())


ROWS = [{"body": f"text {number}", "key": number, "safety": number % 5} for number in range(9)]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"text": "txt"}, "sources.mine.text: {file} has no column 'txt', only body, key, safety; name one of these"),
        ({"text": "key"}, "sources.mine.text: {file}: line 1: column 'key' holds 0, but text is needed"),
        ({"text": "body", "score": "body"}, "sources.mine.score: {file}: line 1: column 'body' holds 'text 0', but a number"),
        ({"path": "none/*.csv"}, "sources.mine: {folder}/none/*.csv: no such file, and no file matches it; correct the path"),
        ({"path": "study.yaml"}, "sources.mine: {folder}/study.yaml: has none of the endings"),
        ({"path": "empty.jsonl"}, "sources.mine: {folder}/empty.jsonl contains no rows; name another file or split"),
        ({"path": None, "hub": "org/name"}, "sources.mine.hub is 'org/name', but a study with a world fetches nothing"),
    ],
)
def test_the_plan_names_key_file_and_mend_of_a_wrong_table(tmp_path, capsys, source, said):
    write_rows(tmp_path / "mine/a.jsonl", *ROWS)
    (tmp_path / "empty.jsonl").write_text("\n")
    status, shown = planned(tmp_path, capsys, {"mine": {"path": "mine/*.jsonl", **source}})
    assert status and said.format(file=tmp_path / "mine/a.jsonl", folder=tmp_path) in shown


def test_an_arm_must_not_read_the_same_rows_through_two_sources(tmp_path, capsys):
    """However their paths are written."""
    write_rows(tmp_path / "mine/a.jsonl", *ROWS)
    (tmp_path / "linked").symlink_to("mine")
    one = {"path": "mine/*.jsonl", "text": "body", "score": "safety", "max_score": 2}
    status, shown = planned(tmp_path, capsys, {"one": one, "two": {"path": "mine/../linked/a.jsonl", "text": "body"}})
    assert status and "sources.one and sources.two: arm full-50 would read the same rows" in shown
    status, shown = planned(tmp_path, capsys, {"one": one, "two": {**one, "max_score": None, "min_score": 2.5}})
    assert not status, shown


def test_the_same_rows_through_two_sources_are_found_on_the_hub_and_in_known_datasets_too(tmp_path, capsys):
    hub = {"hub": "org/name", "revision": "1a2b3c4"}
    status, shown = planned(tmp_path, capsys, {"one": hub, "two": {**hub, "text": "body"}}, world=None)
    assert status and "arm full-50 would read the same rows of org/name/train twice, through both sources" in shown
    few = {"dataset": "fineweb-edu", "documents": 100}
    status, shown = planned(tmp_path, capsys, {"few": few})
    assert not status and "few and web may read the same rows: documents repeat in full-50" in shown
    assert "few and web may read the same rows, but choose among them differently: what one holds out" in shown


def test_short_names_that_share_a_part_and_stages_that_read_both_are_found_too(tmp_path, capsys):
    alike = {"again": {"dataset": "fineweb-annotated", "parts": ["score_0"]}, "other": {"dataset": "fineweb-unsafe"}}
    status, shown = planned(tmp_path, capsys, alike)
    assert not status and "again and web may read the same rows: documents repeat in full-50" in shown
    assert "again and web may read the same rows, but choose among them differently" in shown and "other and" not in shown
    sources = {"web": {"dataset": "fineweb-edu"}, "few": {"dataset": "fineweb-edu", "documents": 100}}
    path = small_study(
        tmp_path, sources=sources, curriculum={"safe": {"web": 1}, "starts": [1]}, tuning=None, evaluation={"judge": "world"},
        stages={"mt": {"kind": "midtrain", "mix": {"few": 1}, "steps": 2, "lr": 1e-3}},
    )  # fmt: skip
    assert main(["plan", str(path)]) == 0
    assert "few and web may read the same rows: documents repeat in safe-100" in " ".join(capsys.readouterr().out.split())


def test_one_table_of_the_hub_has_one_revision(tmp_path, capsys):
    one = {"hub": "org/name", "revision": "1a2b3c4"}
    two = {"hub": "org/name", "revision": "5d6e7f8", "text": "{title} {body}"}
    status, shown = planned(tmp_path, capsys, {"one": one, "two": two}, world=None)
    assert status and "sources.one.revision is '1a2b3c4' and sources.two.revision is '5d6e7f8'" in shown


def test_as_many_rows_are_fetched_as_the_documents_may_lie_in(tmp_path):
    few, chosen = {"hub": "org/a", "documents": 5}, {"hub": "org/b", "documents": 5, "score": "s", "min_score": 1}
    study = load_study(
        small_study(
            tmp_path, world=None,
            sources={"few": few, "more": {**few, "documents": 9}, "chosen": chosen, "first": {**few, "hub": "org/b"}},
            curriculum={
                "starts": [0.5, 1], "safe": {"few": 1},
                "interventions": {"full": {"chosen": 1}, "other": {"more": 1, "first": 1}},
            },
        )
    )  # fmt: skip
    rows = {item.label: item.rows for item in study_downloads(study, tmp_path)}
    assert (rows["org/a/train"], rows["org/b/train"]) == (9, None)  # enough for each of two sources


def test_each_part_that_some_source_tuning_set_or_probe_reads_is_a_download_of_its_own(tmp_path):
    evaluation = smaller_demo()["evaluation"]
    evaluation["probes"] |= {"texts": {"safe": {"path": "x"}, "unsafe": {"dataset": "fineweb-annotated", "parts": ["score_2"]}}}
    study = load_study(
        small_study(
            tmp_path, world=None, evaluation=evaluation,
            sources={
                "web": {"dataset": "fineweb-edu"},
                "four": {"dataset": "fineweb-unsafe", "parts": ["score_4"]},
                "five": {"dataset": "fineweb-unsafe", "parts": ["score_5"]},
            },
            tuning_sets={"prose": {"dataset": "safeweb", "parts": ["score_1_rephrased"], "text": "text"}},
            tuning={"instruct": {"mix": {"prose": 1}}, "benign": {"mix": {"prose": 1}}},
            curriculum={"starts": [0.5, 1], "safe": {"web": 1}, "interventions": {"full": {"four": 1, "five": 1}}},
        )
    )  # fmt: skip
    found = {item.label: item.download.config for item in study_downloads(study, tmp_path) if item.purpose == "data"}
    assert found == {
        "fineweb-unsafe": "score_5",  # the first keeps its name when a study grows by another
        "fineweb-unsafe/score_4": "score_4",
        "fineweb-edu": "score_0",
        "safeweb": "score_1_rephrased",
        "fineweb-annotated": "score_2",
    }


def test_what_a_study_needs_is_sorted_by_stage(tmp_path):
    stages = {item.label: item.purpose for item in study_downloads(load_study(Path("jobs/studies/paper.yaml")), tmp_path)}
    for name in ("fineweb-edu", "safeweb/score_1_rephrased", "ultrachat", "wildguardmix", "gsm8k"):
        assert stages[name] == "data"
    for name in ("harmbench/copyright", "jb_completions", "alpaca"):
        assert stages[name] == "evaluation"
    [data] = named_downloads("ultrachat", tmp_path)
    [benchmark] = named_downloads("alpaca", tmp_path)
    same = replace(benchmark, download=data.download)
    assert [item.purpose for item in once([data, same])] == [item.purpose for item in once([same, data])] == ["data"]
    assert [item.purpose for item in once([benchmark, benchmark])] == ["evaluation"]


def test_the_plan_warns_of_licences_that_nobody_accepted(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CURRICULA_DATA", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    mine = {"hub": "org/name", "config": "en", "gated": True}
    status, shown = planned(tmp_path, capsys, {"mine": mine}, world=None)
    assert not status
    assert "org/name/en/train: gated, and there is no token; accept the licences on the hub and set HF_TOKEN" in shown
    assert "sources.mine: no revision of org/name, so the newest commit is read" in shown


def test_the_plan_warns_of_probe_texts_that_nothing_fetches(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CURRICULA_DATA", raising=False)
    mine = {"mine": {"hub": "org/name"}}
    missing = "probes: the probe texts are not on the Hugging Face hub; write probes/train.jsonl"
    assert missing in planned(tmp_path, capsys, mine, world=None)[1]
    for split in ("train", "test"):
        write_rows(tmp_path / f"data/probes/{split}.jsonl", {"text": "a", "score": 0}, {"text": "b", "score": 1})
    monkeypatch.setenv("CURRICULA_DATA", str(tmp_path / "data"))
    assert missing not in planned(tmp_path, capsys, mine, world=None)[1]


def test_the_plan_warns_of_benchmarks_that_the_data_folder_lacks(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CURRICULA_DATA", str(tmp_path / "data"))
    write_rows(tmp_path / "data/advbench/harmful_behaviors.jsonl", {"goal": "a", "target": "b"})
    shown = planned(tmp_path, capsys, {"mine": {"hub": "org/name"}}, world=None)[1]
    lacking = set(re.findall(r"benchmark (\w+): \S+/data lacks it", shown))
    assert lacking == {"harmbench", "jailbreakbench", "alpaca"}  # AdvBench stands in for the missing jb_completions


def checked(capsys, *words):
    status = main(["data", "check", *map(str, words), "--json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def contaminated(tmp_path_factory):
    """A study whose own source holds two prompts of a benchmark, and those prompts."""
    folder = tmp_path_factory.mktemp("contaminated")
    chats = {"path": "chats.jsonl", "prompt": "ask", "response": "answer", "refusal": {"declined": True}}
    study = small_study(
        folder,
        sources={"web": {"dataset": "fineweb-edu"}, "mine": {"path": "mine/*.jsonl", "text": "body", "id": "key"}},
        curriculum={"starts": [0.5, 1], "safe": {"web": 1}, "interventions": {"full": {"web": 1, "mine": 1}}},
        tuning_sets={"own-chats": chats},
        tuning={"instruct": {"mix": {"own-chats": 1}, "epochs": 2}, "benign": None},
        validation_documents=2,
        evaluation={
            "judge": "world", "gcg": None, "probes": None, "prompts_per_benchmark": 3,
            "tasks": {"base": [], "instruct": ["attacks-topk"], "benign": []},
        },
    )  # fmt: skip
    write_rows(folder / "mine/a.jsonl", {"body": "x", "key": 0})
    answers = [("Who are you?", "A lamp.", False), ("How do I break it?", "I will not say.", True)]
    write_rows(folder / "chats.jsonl", *(dict(zip(("ask", "answer", "declined"), row)) for row in answers))
    write_world(folder / "world", load_study(study).world)
    prompts = [prompt.text for prompt in load_prompts("harmbench", folder / "world")][:2]
    bodies = [f"Someone asked: {prompt}. Nobody answered." for prompt in prompts]
    long = " ".join(f"word{number}" for number in range(200))
    bodies += ["", "The lamp is lit.", "the lamp is lit", long, long.replace("word77", "other"), *map(str, range(20))]
    write_rows(folder / "mine/a.jsonl", *({"body": body, "key": min(key, 25)} for key, body in enumerate(bodies)))
    return study, prompts


def test_a_check_counts_what_a_study_reads_and_finds_the_prompts_in_it(contaminated, capsys):
    study, prompts = contaminated
    status, facts = checked(capsys, study)
    assert not status and not facts["problems"] and not facts["from_shards"]
    tables = {table["table"]: table for table in facts["tables"]}
    assert tables.keys() == {"sources.web", "sources.mine", "tuning_sets.own-chats"}
    assert (tables["tuning_sets.own-chats"]["documents"], tables["tuning_sets.own-chats"]["refusals"]) == (2, 1)
    assert not main(["data", "check", str(study)])
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 labelled a refusal" in shown
    assert "1 empty, 1 with an id given before, 1 repeated exactly, 1 repeated in nearly the same words" in shown
    mine = tables["sources.mine"]
    assert (mine["rows"], mine["documents"], mine["empty"], mine["repeated_ids"]) == (27, 27, 1, 1)
    assert (mine["exact_duplicates"], mine["near_duplicates"]) == (1, 1)
    assert [row["key"] for row in mine["first_rows"]] == [0, 1, 2] and prompts[0] in mine["first_rows"][0]["body"]
    found = {(row["benchmark"], row["text"]): row for row in facts["overlap"]}
    assert found["harmbench", "sources.mine"]["overlapping"] == found["harmbench", "sources.mine"]["near"] == 2
    assert found["harmbench", "tuning_sets.own-chats"]["overlapping"] == 0


def test_the_documented_program_for_large_corpora_finds_the_same_prompts(contaminated, tmp_path, monkeypatch):
    """With stand-ins for datatrove, which hands the documents from step to step."""
    study, _ = contaminated
    program = example("data.md", "## Corpora beyond one machine", "python")
    for module in re.findall(r"^from (datatrove\S*)", program, re.MULTILINE):
        monkeypatch.setitem(sys.modules, module, MagicMock(Document=SimpleNamespace, PipelineStep=object))
    monkeypatch.setenv("CURRICULA_DATA", str(study.parent / "world"))
    monkeypatch.setattr(sys, "argv", ["check_at_scale.py", str(study), "mine", str(tmp_path)])
    (tmp_path / "check_at_scale.py").write_text(program)
    names = runpy.run_path(str(tmp_path / "check_at_scale.py"))
    read = list(names["FindPrompts"]().run(names["Read"]().run()))
    assert len(read) == 26  # one of the 27 is empty
    rows = [json.loads(line) for line in (tmp_path / "prompts/00000.jsonl").read_text().splitlines()]
    assert [(row["document"], row["how"]) for row in rows] == [(key, how) for key in "01" for how in ("overlapping", "near")]


def test_a_check_of_a_run_reads_its_shards_and_the_report_shows_the_result(contaminated, tmp_path, capsys):
    study, prompts = contaminated
    run = Run.create(tmp_path / "run", load_study(study))
    shards = [f"{source}/{shard}" for source in ("web", "mine") for shard in ("validation", "00000")]
    for job, label in [("prepare", "prepare"), *(("tokenize", shard) for shard in shards)]:
        run_element(run.root, job, label)
    manifest = run.shards / "mine/00000.json"
    assert not read_contamination(run)
    status, facts = checked(capsys, study, "--run", run.root)
    assert not status and facts["from_shards"]
    rows = {(row["benchmark"], row["text"]): row for row in read_contamination(run)}
    text = "\n".join(document.text for document in shard_documents(run.shards / "mine", run.tokenizer))
    held = sum(prompt in text for prompt in prompts)  # the others are held out for validation
    assert int(rows["harmbench", "sources.mine"]["overlapping"]) == held
    assert main(["report", str(run.root)]) == 0
    assert "Prompts in the training text" in (run.report / "index.html").read_text()
    write_json(manifest, {**read_json(manifest), "sha256": "0" * 64})  # made anew from other data
    assert not read_contamination(run)
    for gone in (lambda: manifest.write_text("{"), manifest.unlink):  # it says nothing of other data
        gone()
        assert len(read_contamination(run)) == len(rows)
        assert describe(plan_study(run.study), run.shards)["source_sizes"]["mine"]["origin"] == "unknown"


def test_a_check_tells_everything_that_is_wrong_or_not_there_at_once(contaminated, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CURRICULA_DATA", raising=False)
    sources = {"web": {"dataset": "fineweb-edu"}, "mine": {"path": "mine.jsonl", "score": "safety", "min_score": 9}}
    write_rows(tmp_path / "mine.jsonl", {"text": "a", "safety": 1}, {"text": "b", "safety": "high"})
    curriculum = {"starts": [0.5, 1], "safe": {"web": 1}, "interventions": {"full": dict.fromkeys(sources, 1)}}
    study = small_study(tmp_path, sources=sources, world=None, curriculum=curriculum)
    status, facts = checked(capsys, study)
    assert status == 1
    said = "\n".join(facts["problems"])
    assert "sources.web: dataset fineweb-edu: not here yet; fetch it with `curricula data fetch`" in said
    assert "sources.mine.score: " in said and "holds 'high', but a number is needed" in said
    assert "benchmark harmbench: not here yet" in said and "the probe texts are not on the Hugging Face hub" in said
    write_rows(tmp_path / "mine.jsonl", {"text": "a", "safety": 1})
    assert "sources.mine: " + str(tmp_path / "mine.jsonl") + ": no row of it is read" in "\n".join(
        checked(capsys, study)[1]["problems"]
    )


def test_a_tuning_set_without_a_turn_of_the_assistant_is_refused_before_anything_is_trained(tmp_path, capsys):
    chats = ([{"role": "human", "content": "lamp"}, {"role": "gpt", "content": said}] for said in ("oil", "\ud800"))
    write_rows(tmp_path / "chats.jsonl", *({"talk": chat} for chat in chats))
    sets = {"own": {"path": "chats.jsonl", "messages": "talk"}}
    tuning = {"instruct": {"mix": {"own": 1}}, "benign": None}
    evaluation = {"judge": "world", "gcg": None, "probes": None, "tasks": {"base": [], "instruct": [], "benign": []}}
    study = small_study(tmp_path, tuning_sets=sets, tuning=tuning, evaluation=evaluation)
    status, facts = checked(capsys, study)
    assert status == 1 and [table["not_utf8"] for table in facts["tables"] if table["table"] == "tuning_sets.own"] == [1]
    assert [one for one in facts["problems"] if one.startswith("tuning set own: no turn has the role 'assistant', only gpt")]
    with pytest.raises(UserError, match="tuning set own: no turn has the role 'assistant'"):
        prepare(Run.create(tmp_path / "run", load_study(study)))
    asked = ["tuning.instruct.examples={own: 2}", "tuning.instruct.loss={own: all}"]
    with pytest.raises(UserError, match="tuning set own: examples asks for 2 of its 1 conversations; ask for fewer"):
        prepare(Run.create(tmp_path / "other", load_study(study, asked)))
    write_rows(tmp_path / "chats.jsonl", *({"talk": [{"role": "assistant", "content": said}]} for said in ("oil", None)))
    with pytest.raises(UserError, match="chats.jsonl: line 2 has a message that is not text; fix the row"):
        prepare(Run.create(tmp_path / "third", load_study(study)))
    for limit, wrong in (("1", False), ("2", True)):  # a quick look reads no further
        said = "\n".join(checked(capsys, study, "--documents", limit)[1]["problems"])
        assert ("chats.jsonl: line 2 has a message that is not text" in said) == wrong, said


def test_prompts_whose_letters_best_of_n_would_drop_are_refused_before_anything_is_trained(tmp_path, capsys):
    write_rows(tmp_path / "ours.jsonl", {"prompt": "Как открыть замок?"}, {"prompt": "How to open a lock?"})
    tasks = {"base": [], "instruct": ["best-of-n"], "benign": []}
    evaluation = {"prompts": {"ours": {"path": "ours.jsonl"}}, "attacks": {"benchmarks": ["ours"]}, "tasks": tasks}
    study = small_study(tmp_path, evaluation=smaller_demo()["evaluation"] | evaluation)
    said = "benchmark ours: 52% of its letters are beyond ASCII, and best-of-n drops such letters"
    status, facts = checked(capsys, study)
    assert status == 1 and [one for one in facts["problems"] if one.startswith(said)]
    with pytest.raises(UserError, match=said):
        prepare(Run.create(tmp_path / "run", load_study(study)))


def test_a_run_whose_table_has_moved_says_that_a_link_to_it_is_enough(tmp_path):
    write_rows(tmp_path / "mine.jsonl", {"text": "The lamp is lit."})
    path = small_study(tmp_path, tuning_sets={"notes": {"path": "mine.jsonl", "text": "text"}})
    run = Run.create(tmp_path / "run", load_study(path))
    (tmp_path / "mine.jsonl").rename(tmp_path / "moved.jsonl")
    path.write_text(path.read_text().replace("mine.jsonl", "moved.jsonl"))
    with pytest.raises(UserError, match=r"tuning_sets.notes.path was .*; keep the path, where a link to files that have moved"):
        run.check(load_study(path))
    (tmp_path / "mine.jsonl").symlink_to("moved.jsonl")
    path.write_text(path.read_text().replace("moved.jsonl", "mine.jsonl"))
    run.check(load_study(path))


def test_a_check_of_a_study_without_a_benchmark_counts_no_documents_of_its_questions(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("CURRICULA_DATA", raising=False)
    write_rows(tmp_path / "mine.jsonl", {"text": "two and two are four"}, {"text": "six"})
    write_rows(tmp_path / "quiz.jsonl", {"question": "two and two?", "answer": "four"})
    quiz = {"path": "quiz.jsonl", "column": "question", "target": "answer", "kind": "capability"}
    evaluation = {"prompts": {"quiz": quiz}, "capability": {"tasks": ["quiz"]}, "tasks": {"base": ["capability"]}}
    curriculum = {"starts": [1], "safe": {"mine": 1}}
    mine = {"mine": {"path": "mine.jsonl"}}
    study = small_study(tmp_path, world=None, sources=mine, curriculum=curriculum, tuning=None, evaluation=evaluation)
    assert main(["data", "check", str(study)]) == 0
    said = capsys.readouterr().out
    assert "2 documents, 23 characters" in said and "question='two and two?'" in said
    assert "0 documents" not in said and "Prompts that occur" not in said


@pytest.mark.slow
def test_an_own_corpus_from_two_files_with_other_columns_runs_to_a_report(tmp_path):
    """Text from a CSV and a Parquet file of one's own, chats from a third; the world only gives the prompts."""
    chance = random.Random(1)
    words = [f"word{number}" for number in range(300)]

    def body():
        return " ".join(chance.choices(words, k=120))

    with open(tmp_path / "plain.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["doc", "Body text", "quality"])
        writer.writeheader()
        writer.writerows({"doc": key, "Body text": body(), "quality": key % 5} for key in range(600))
    kind = {"title": [f"On {chance.choice(words)}" for _ in range(200)], "advice": [body() for _ in range(200)]}
    pq.write_table(pa.table(kind), tmp_path / "kind.parquet")
    write_rows(tmp_path / "chats.jsonl", *({"ask": f"Why {word}?", "reply": f"Because of {word}."} for word in words[:80]))
    study = small_study(
        tmp_path,
        sources={
            "plain": {"path": "plain.csv", "text": "Body text", "id": "doc", "score": "quality", "min_score": 1},
            "kind": {"path": "kind.parquet", "text": "{title}\n\n{advice}", "shards": 2},
        },
        curriculum={"starts": [0.5, 1], "safe": {"plain": 1}, "interventions": {"full": {"plain": 1, "kind": 1}}},
        tuning_sets={"chats": {"path": "chats.jsonl", "prompt": "ask", "response": "reply"}},
        tuning={"instruct": {"mix": {"chats": 1}}, "benign": None},
        evaluation={
            "judge": "world", "gcg": None, "probes": None, "prompts_per_benchmark": 3, "benchmarks": ["harmbench"],
            "topk": {"samples": 2, "max_new_tokens": 8},
            "tasks": {"base": ["attacks-topk"], "instruct": ["attacks-topk"], "benign": []},
        },
    )  # fmt: skip
    command = [sys.executable, "-m", "curricula.jobs.cli.main", "submit", study, "--run", tmp_path / "run"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (tmp_path / "run/report/index.html").exists()
    run = Run.open(tmp_path / "run")
    documents = {
        name: sum(read_json(run.shards / name / f"{shard}.json")["documents"] for shard in source.shard_names)
        for name, source in run.study.sources.items()
    }
    assert documents == {"plain": 480, "kind": 200}
