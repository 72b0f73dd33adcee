"""The command line as a person meets it: help, exit codes, one sentence for each mistake."""

import argparse
import contextlib
import hashlib
import io
import json
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from paths import STUDIES
from run_folders import fail, finish, new_run
from small_studies import small_study

from curricula import __version__
from curricula.curriculum.tokens.shards import Shard, write_shard
from curricula.curriculum.tokens.tokenizer import TAG, load_tokenizer, tokenizer_hash, train_tokenizer
from curricula.curriculum.world.fiction import World, WorldConfig
from curricula.errors import UserError
from curricula.jobs.cli.main import build_parser, main
from curricula.jobs.local import Outcome
from curricula.jobs.run import Run
from curricula.jobs.study import load_study

VERBS = [
    "demo",
    "plan",
    "submit",
    "status",
    "logs",
    "retry",
    "cancel",
    "report",
    "export",
    "import",
    "eval",
    "data world",
    "data fetch",
    "data synthesize",
    "data tokenize",
    "data inspect",
    "data check",
]


INPUT = ("score", "--input", "x", "--out", "out", "--model", "m")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    assert stop.value.code == 0
    assert re.search(rf"examples?:\n  curricula {verb}", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["plan", "nowhere.yaml"], 2, "nowhere.yaml: no such study file"),
        (["plan", "demo", "--run", "nowhere"], 2, "nowhere: no such run folder"),
        (["submit", "demo", "--from", ""], 2, "stage or job '' is not in this study; choose one of prepare, "),
        (["status", "nowhere"], 2, "nowhere: not a run folder"),
        (["logs", "nowhere", "prepare"], 2, "nowhere: not a run folder"),
        (["report", "nowhere"], 2, "nowhere: not a run folder"),
        (["data", "inspect", "nowhere"], 1, "nowhere.idx: no such file"),
        (
            ["import", "no-such-package", "out"],
            1,
            "no-such-package: not a file, folder or installed package; check the path, or download",
        ),
        (["eval", "--model", "nowhere", "--benchmark", "advbench", "--data", "."], 1, "harmful_behaviors: no such table"),
        (["data", "world", "/proc/nowhere"], 1, "/proc/nowhere: No such file or directory; use another path"),
        (["data", "world", "/proc"], 2, "/proc: is not empty and holds no fictional world"),
        (["eval", "--model", "nowhere", "--decoder", "beam"], 2, "--decoder beam: not known"),
        (["eval", "--model", "nowhere", "--suffixes", "full=out"], 2, "--suffixes full: not named in attacks.suffixes_of"),
        (["status", "--interval", "9"], 2, "--interval has an effect only with --watch; give that as well, or leave"),
        (["data", "inspect", "x", "--sequence-length", "9"], 2, "--sequence-length has an effect only with --sample"),
        (["data", "synthesize", *INPUT, "--data", "x"], 2, "--data has an effect only with --dataset"),
        (["eval", "--model", "x", "--decoder", "greedy", "--samples", "2"], 2, "--samples 2: only topk draws several answers"),
        (["eval", "rejudge", "x", "--judge", "refusal-phrases", "--world", "x"], 2, "--world x: only the judge world reads it"),
        (["eval", "--json", "rejudge", "x", "--judge", "world"], 2, "--json: comes before rejudge, where"),
    ],
)
def test_a_mistake_is_one_sentence_and_an_exit_code(words, code, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code
    *before, last = capsys.readouterr().err.splitlines()
    assert last.startswith("curricula: ") and said in last
    assert not any("Traceback" in line for line in before)


def test_a_world_is_not_written_over_another(tmp_path, capsys):
    World.generate(WorldConfig(seed=1)).save(tmp_path)
    assert main(["data", "world", str(tmp_path)]) == 2
    assert f"{tmp_path}: holds another fictional world; name a new folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["world.json"]


def test_the_command_alone_shows_its_help(capsys):
    assert main([]) == 0
    assert "usage: curricula" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"curricula {__version__}\n"


def test_what_cannot_be_submitted_or_rendered_leaves_no_run_folder(tmp_path, monkeypatch, capsys):
    study, run = str(Path("jobs/studies/demo.yaml").resolve()), tmp_path / "run"
    monkeypatch.setenv("PATH", str(tmp_path))
    words = [study, "--profile", "slurm-lab", "--run", str(run)]
    assert main(["submit", "--cluster", "slurm", "--yes", *words]) == 1
    assert "sbatch is not on this machine's PATH" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["render", study, str(tmp_path / "file" / "out"), *words[1:]]) == 1
    assert not run.exists()


def test_a_run_folder_that_its_records_cannot_name_is_refused(tmp_path, capsys):
    run = tmp_path / os.fsdecode(b"l\xe4uf")  # in Latin-1
    assert main(["render", "paper", str(tmp_path / "out"), "--profile", "slurm-lab", "--run", str(run)]) == 2
    assert "is not UTF-8 in this locale" in capsys.readouterr().err and not run.exists()


def test_the_script_that_submits_all_is_named_so_that_a_shell_runs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["render", "paper", ".", "--profile", "slurm-lab", "--run", "run"]) == 0
    assert "Submit all with ./submit_all.sh" in capsys.readouterr().out


def test_a_selection_whose_needs_are_not_done_is_refused(tmp_path, capsys):
    study, run = "jobs/studies/demo.yaml", tmp_path / "run"
    assert main(["submit", study, "--run", str(run), "--stage", "tokenize"]) == 2
    said = capsys.readouterr().err
    assert "tokenize needs prepare/prepare, which is not done, queued or selected; select prepare too, or give --from" in said
    assert not run.exists()


def test_a_study_that_would_take_months_here_is_not_begun_unasked(tmp_path, monkeypatch, capsys):
    words = ["submit", "paper", "--run", str(tmp_path / "run")]
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(words) == 1
    said = capsys.readouterr().err
    assert re.search(r"about [\d,]+ days on this machine; submit it to a cluster with --cluster slurm --profile P, ", said)
    begun: list[Path] = []

    def run_elements(root, plan, console, chosen):
        begun.append(root)
        return Run(root)

    monkeypatch.setattr("curricula.jobs.cli.local.run_elements", run_elements)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert main(words) == 1 and "nothing was started" in capsys.readouterr().err
    assert not begun and not (tmp_path / "run").exists()
    monkeypatch.setattr("builtins.input", lambda question: "y")
    assert main(words) == 0
    monkeypatch.setattr("builtins.input", pytest.fail)
    assert main([*words, "--yes"]) == 0 == main(["submit", "demo", "--run", str(tmp_path / "demo")])
    assert begun == [tmp_path / "run", tmp_path / "run", tmp_path / "demo"]


def test_a_training_that_needs_several_processes_is_refused_here_before_anything_is_made(tmp_path, capsys):
    words = ["submit", "demo", "--run", str(tmp_path / "run"), "--set", "resources.tensor_parallel=2"]
    assert main(words) == 2
    assert "resources.tensor_parallel is 2, but a training here is a single process; set it to 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "skipped, said_of_them", [(0, "; see"), (1, ", and 1 that needs them was not"), (2, ", and 2 that need them were not")]
)
def test_of_many_failures_here_eight_are_named(tmp_path, monkeypatch, capsys, skipped, said_of_them):
    failed = [("evaluate-base-20", f"full-20/task{number}") for number in range(11)]
    outcome = Outcome(failed=failed, skipped=[("report", "report")] * skipped)
    monkeypatch.setattr("curricula.jobs.cli.local.run_plan", lambda *_: outcome)
    assert main(["submit", "demo", "--run", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err
    assert "11 elements failed (evaluate-base-20/full-20/task0, " in said and f"full-20/task7 and 3 more){said_of_them}" in said


@pytest.mark.parametrize("words", [
    ["submit", "demo", "--stage", ""], ["status", "--job", ","], ["retry", "run", "--arm", "full-20,"],
    ["eval", "--model", "m", "--benchmark", "advbench,"], ["eval", "--model", "m", "--accept-changed", ""],
    ["data", "synthesize", "score", "--scores", "4,,5"],
])  # fmt: skip
def test_an_empty_name_is_refused_and_not_taken_for_everything(words, capsys):
    with pytest.raises(SystemExit) as raised:
        main(words)
    said = " ".join(capsys.readouterr().err.split())
    assert raised.value.code == 2 and f"argument {words[-2]}: {words[-1]!r} holds an empty name; separate names" in said


@pytest.mark.parametrize("words", [
    ["plan", ""], ["submit", "demo", "--run", ""], ["eval", "rejudge", "", "--judge", "world"], ["data", "world", ""],
])  # fmt: skip
def test_an_empty_path_is_refused_and_not_taken_for_the_current_folder(words, capsys):
    with pytest.raises(SystemExit) as raised:
        main(words)
    assert raised.value.code == 2 and "is empty; name a file or folder, or leave it out" in capsys.readouterr().err


def test_names_may_be_given_in_several_options(tmp_path, capsys):
    run, _ = new_run(tmp_path / "run")
    words = ["--job", "export-base-0,export-base-20", "--arm", "full-0", "--arm", "data-20"]
    assert main(["status", str(run.root), "--json", *words]) == 0
    assert [element["label"] for element in json.loads(capsys.readouterr().out)] == ["full-0", "data-20"]


@pytest.mark.parametrize("words", ["submit demo --clutser slurm", "data fetch --lits", "eval rejudge run --judge rules --no"])
def test_an_unknown_option_is_reported_by_its_verb(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    verb = words.partition(" -")[0].removesuffix(" demo").removesuffix(" run")
    assert stop.value.code == 2 and f"curricula {verb}: error: unrecognized arguments: --" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("logs runs/demo -n 0", "argument -n/--lines: 0: give 1 or more"),
        ("status --stage=--", "argument --stage: '--' is not a value"),
        ("status --watch --interval inf", "argument --interval: inf: give 0.1 to 86400"),
        ("status --watch --json", "argument --json: not allowed with argument --watch"),
        ("eval --model m --samples -1", "argument --samples: -1: give 1 or more"),
        ("data synthesize score --concurrency 0", "argument --concurrency: 0: give 1 to 1000"),
        ("data synthesize score --temperature 2.5", "argument --temperature: 2.5: give 0 to 2"),
        ("data synthesize score --temperature nan", "argument --temperature: nan: give 0 to 2"),
        ("data fetch --rows some", "argument --rows: invalid int value: 'some'"),
    ],
)
def test_a_number_out_of_bounds_is_reported_with_its_option(words, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 2 and capsys.readouterr().err.splitlines()[-1].endswith(f": error: {said}")


def test_a_plan_for_this_machine_has_no_words_of_slurm(capsys):
    assert main(["plan", "demo"]) == 0
    assert not re.search("afterok|aftercorr|afterany|partition|GPU|node", capsys.readouterr().out)


@pytest.mark.parametrize("verb", ["status", "logs", "retry", "cancel", "submit"])
def test_help_is_wrapped_keeps_its_examples_and_names_the_same_options_for_elements(verb, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    description, _, examples = capsys.readouterr().out.partition("example")
    assert max(map(len, description.splitlines())) <= 80 and f"\n  curricula {verb} " in examples
    assert {"--stage", "--job", "--arm", "--from"} <= set(description.split())


def test_status_without_a_run_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["status"]) == 2
    assert "curricula submit" in capsys.readouterr().err


def test_inspect_decodes_a_document_with_its_tags(tmp_path, capsys):
    train_tokenizer(["the lamp is lit"], 300, tmp_path / "tokenizer")
    tokenizer = load_tokenizer(tmp_path / "tokenizer")
    ids = tokenizer.encode("the lamp", add_special_tokens=False).ids
    tagged = [*ids, tokenizer.token_to_id(TAG)]
    write_shard(tmp_path / "shards" / "s", [np.array(ids), np.array(tagged)])
    words = [str(tmp_path / "shards" / "s.bin"), "--tokenizer", str(tmp_path / "tokenizer"), "--document", "1", "--json"]
    assert main(["data", "inspect", *words]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["documents"], facts["tokens"], facts["text"]) == (2, 2 * len(ids) + 1, f"the lamp{TAG}")
    assert facts["tag_rate"] == pytest.approx(1 / (2 * len(ids) + 1))

    manifest = {"shards": 1, "tokens": 2 * len(ids) + 1, "sha256": "", "tokenizer": "another one's hash"}
    (tmp_path / "shards" / "s.json").write_text(json.dumps(manifest))
    assert main(["data", "inspect", *words]) == 1
    assert "is not the tokenizer that" in capsys.readouterr().err
    assert main(["data", "inspect", words[0]]) == 2
    assert "shards/s: lies in no run folder with a tokenizer; name one with --tokenizer" in capsys.readouterr().err


@pytest.fixture
def shard(tmp_path) -> Path:
    """A shard of two documents in a run folder, with its tokenizer and its manifest."""
    (tmp_path / "study.yaml").touch()
    train_tokenizer(["the lamp is lit"], 300, tmp_path / "data/tokenizer")
    made_by = tokenizer_hash(load_tokenizer(tmp_path / "data/tokenizer"))
    prefix = tmp_path / "data/shards/web/00000"
    tokens = np.array([65, 66, 67, 68, 69, 70, 71], dtype=np.uint16)
    write_shard(prefix, [tokens[:3], tokens[3:]])
    digest = hashlib.sha256(Shard.open(prefix).tokens.tobytes()).hexdigest()
    manifest = {"shards": 1, "tokens": 7, "sha256": digest, "tokenizer": made_by}
    prefix.with_suffix(".json").write_text(json.dumps(manifest))
    return prefix


def test_inspect_shows_a_table_and_a_sample_and_verifies_the_tokens(shard, capsys):
    assert main(["data", "inspect", str(shard.parent), "--verify", "--document", "1"]) == 0  # a source: its first shard
    shown = capsys.readouterr().out
    text = [load_tokenizer(shard.parents[2] / "tokenizer").decode([number]) for number in range(65, 72)]
    assert "2 documents, 7 tokens" in shown and "tags: 0, 0.00%" in shown and "verified: the tokens match" in shown
    assert re.search(r"1 to 3 +1 .*\n *4 to 9 +1 ", shown) and f"document 1: {''.join(text[3:])}" in shown
    words = ["data", "inspect", str(shard), "--json", "--sequence-length", "2", "--sample"]
    assert main([*words, "1"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["shown"], facts["text"], facts["length_quantiles"]) == ("sample 1", "".join(text[2:5]), [3, 3, 3, 3, 4])
    assert main([*words, "3"]) == 2
    assert "has 3 samples of 2 tokens, counted from 0; choose one of them" in capsys.readouterr().err


def test_inspect_refuses_tokens_that_are_not_what_the_shard_says(shard, capsys):
    words, manifest = ["data", "inspect", str(shard), "--verify"], shard.with_suffix(".json")
    tokens = shard.with_suffix(".bin").read_bytes()
    shard.with_suffix(".bin").write_bytes(tokens[:-2] + b"\x50\x00")
    assert main(words) == 1
    assert f"{shard}.bin: its tokens do not match its manifest" in capsys.readouterr().err
    shard.with_suffix(".bin").write_bytes(tokens[:-2] + b"\x00\x20")
    assert main(words[:-1]) == 1
    assert "00000.bin: holds id 8192, but the tokenizer has 300 entries" in capsys.readouterr().err
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "tokens": 8}))
    assert main(words) == 1
    assert "00000.bin: 7 tokens, but its manifest says 8" in capsys.readouterr().err
    shard.with_suffix(".bin").write_bytes(tokens)
    manifest.unlink()
    assert main(words) == 1
    assert "00000.json: no such file" in capsys.readouterr().err


@contextlib.contextmanager
def unread():
    """A pipe whose reader has left."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("words", ["plan jobs/studies/paper.yaml --json", "plan demo", "--version", "submit demo --run RUN"])
def test_when_the_reader_leaves_a_command_ends_quietly_with_the_code_of_sigpipe(words, tmp_path):
    command = [sys.executable, "-m", "curricula.jobs.cli.main", *words.replace("RUN", str(tmp_path / "run")).split()]
    with unread() as pipe:
        process = subprocess.Popen(command, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert process.stderr.read() == "" and process.wait() == 141


def test_an_error_that_nobody_reads_keeps_its_exit_code():
    with unread() as pipe:
        plan = subprocess.Popen([sys.executable, "-m", "curricula.jobs.cli.main", "plan", "nowhere"], stderr=pipe)
    assert plan.wait() == 2


def test_output_that_is_closed_or_of_no_width_is_no_error(tmp_path, monkeypatch, capsys):
    run, _ = new_run(tmp_path / "run")
    monkeypatch.setenv("COLUMNS", "0")
    assert main(["status", str(run.root)]) == 0 and "prepare" in capsys.readouterr().out
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["status", str(run.root)]) == 0 and main(["submit", "paper", "--run", str(tmp_path / "paper")]) == 1


def test_help_and_mistakes_need_no_package_that_takes_long_to_import():
    heavy = {"numpy", "torch", "megatron", "rich", "yaml", "msgspec", "submitit", "jinja2", "datasets", "tokenizers"}
    code = "import sys; from curricula.jobs.cli.main import build_parser; build_parser([])\n"
    code += f"print(sorted({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_leads_to_a_function(verb):
    """Verbs are looked up by name when they are called: a wrong name would be found by its first user."""
    parser = build_parser(verb.split())
    for word in verb.split():
        (choices,) = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
        parser = choices[word]
    assert callable(pkgutil.resolve_name(f"curricula.jobs.cli.{parser.get_default('verb')}"))


def lines_of(capsys, *words: str) -> list[str]:
    assert main(list(words)) == 0
    return capsys.readouterr().out.splitlines()


def test_a_plan_breaks_no_name_on_a_terminal_of_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    described = json.loads("\n".join(lines_of(capsys, "plan", "paper", "--json")))
    shown = lines_of(capsys, "plan", "paper")
    assert max(map(len, shown)) <= 80 and not any("…" in line for line in shown)
    words = set(" ".join(shown).split())
    assert {job["name"] for job in described["jobs"]} | {arm["name"] for arm in described["arms"]} <= words
    assert described["source_sizes"].keys() | {"171,661", "286,102"} <= words
    of_arms = [line for line in shown if line.startswith(" cosmopedia") and "B (3.5)" in line]
    assert sum(line.count("97.8B (3.5)") for line in of_arms) == len(described["arms"])  # each cell whole, in some table


def test_a_name_longer_than_the_terminal_is_still_whole(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    text, name = (STUDIES / "demo.yaml").read_text(), "a" * 100
    (tmp_path / "study.yaml").write_text(re.sub(r"\bmoral-education\b(?! })", name, text))
    assert name in " ".join(lines_of(capsys, "plan", str(tmp_path / "study.yaml"))).split()


def test_a_plan_speaks_of_minutes_here_or_of_days_on_the_nodes(capsys):
    demo = " ".join(lines_of(capsys, "plan", "demo", "--set", "resources.workers=1"))
    paper, ladder = (" ".join(lines_of(capsys, "plan", name)) for name in ("paper", "ladder"))
    assert re.search(r"On this machine: about \d+ minutes, 1 element at once", demo) and "GPU" not in demo
    assert "Pretraining on 4 nodes of 8 GPUs: 6.0 days an arm" in paper and "On this machine" not in paper
    assert "up to 1.7 days an arm" in ladder and "weights 3.2" in ladder  # of its largest model


def test_the_demo_is_run_by_its_own_verb_and_found_beside_a_folder_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    started = []

    def run_here(root, plan, chosen):
        started.append((root, plan.study))
        assert chosen == list(plan.needs)

    monkeypatch.setattr("curricula.jobs.cli.submit.run_here", run_here)
    assert main(["demo"]) == 0 and main(["demo", "--full"]) == 0
    assert started == [(Path("runs") / name, load_study(Path(name))) for name in ("demo", "demo-full")]


@pytest.mark.parametrize(("typed", "offered"), [("pl", "plan"), ("data tok", "tokenize"), ("eval --ben", "--benchmark")])
def test_bash_completes_verbs_and_options(typed, offered, tmp_path, capsys):
    assert main(["--print-completion", "bash"]) == 0
    (tmp_path / "curricula.bash").write_text(capsys.readouterr().out)
    words = f"curricula {typed}".split()
    ask = (
        f"source {tmp_path}/curricula.bash; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
        '_shtab_curricula; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    answered = subprocess.run(["bash", "-c", ask], capture_output=True, text=True)
    assert offered in answered.stdout.split(), answered.stderr


def test_a_checkpoint_outside_a_run_has_no_tokenizer_to_find(tmp_path, capsys):
    (tmp_path / "data/tokenizer").mkdir(parents=True)  # somebody's, but no run's
    (tmp_path / "step_10").mkdir()
    (tmp_path / "step_10/checkpoint.json").write_text("{}")
    assert main(["export", str(tmp_path / "step_10"), str(tmp_path / "out")]) == 2
    assert "lies in no run folder with a tokenizer; name one with --tokenizer" in capsys.readouterr().err


def test_logs_finds_the_newest_run_and_takes_a_job_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run, jobs = new_run(Path("runs/demo"))
    label = jobs["prepare"].elements[0].label
    run.element("prepare", label).mkdir(parents=True)
    (run.element("prepare", label) / "log.txt").write_text("the lamp is lit\n")
    fail(run, "prepare", label)
    for words in ([], ["prepare"], ["prepare", label], ["runs/demo", "prepare"]):
        assert "the lamp is lit" in lines_of(capsys, "logs", *words)
    assert main(["logs", "nowhere"]) == 2
    assert "nowhere: not a run folder" in capsys.readouterr().err


def test_a_run_that_has_made_nothing_of_its_data_may_read_another_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("CURRICULA_DATA", raising=False)
    (tmp_path / "data").mkdir()
    study = load_study(small_study(tmp_path, world=None))
    run = Run.create(tmp_path / "run", study)
    finish(run, "prepare", "prepare")
    monkeypatch.setenv("CURRICULA_DATA", str(tmp_path / "data"))
    run = Run.create(tmp_path / "run", study)
    assert run.data_folder == tmp_path / "data" and not (run.element("prepare", "prepare") / "done.json").exists()
    (run.shards / "web").mkdir(parents=True)
    (run.shards / "web" / "00000.json").write_text("{}")
    monkeypatch.setenv("CURRICULA_DATA", str(tmp_path))
    with pytest.raises(UserError, match="restore that, delete the run folder, or name another with --run"):
        Run.create(tmp_path / "run", study)
