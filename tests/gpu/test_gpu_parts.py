"""The program that runs the GPU checks part by part, on this machine: its plumbing, not what it measures."""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from paths import BENCHMARKS, ROOT

PROGRAM = ROOT / "tests" / "gpu" / "run.py"


def loaded(file):
    """A program as a module of its own name."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location(f"program_{Path(file).stem}", file)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


program = loaded(PROGRAM)


needs_data = pytest.mark.skipif("CURRICULA_DATA" not in os.environ, reason="no CURRICULA_DATA")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["engine", "sizes", pytest.param("decoding", marks=needs_data)])
def test_a_part_leaves_its_record_and_a_row_in_the_table(tmp_path, part):
    ran = subprocess.run([sys.executable, PROGRAM, part, "--out", tmp_path, "--smoke"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    record = json.loads((tmp_path / f"{part}.json").read_text())
    assert record["part"] == part and all(one["code"] == 0 for one in record["commands"])
    assert f"| {part} | " in (tmp_path / "table.md").read_text()


@pytest.mark.parametrize(
    ("words", "broken", "sentence"),
    [
        ([], "", "sees no CUDA device; --smoke tries the program without one"),
        (["--smoke"], "raise ImportError('built for another Python')", "ImportError: built for another Python"),
    ],
    ids=["no card", "broken package"],
)
def test_a_part_that_cannot_run_here_says_why_in_a_sentence_before_it_begins(tmp_path, words, broken, sentence):
    (tmp_path / "megatron.py").write_text(broken)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, PROGRAM, "step-bf16", "--out", tmp_path / "out", *words]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ran.returncode == 1 and not ran.stdout
    assert ran.stderr.startswith(f"step-bf16 was not run by {sys.executable}: ") and ran.stderr.endswith(f"{sentence}\n")


def test_the_record_of_a_command_is_written_before_the_next_one_begins(tmp_path, no_handlers, monkeypatch):
    look = f"import json; print(len(json.load(open({str(tmp_path / 'engine.json')!r}))['commands']))"
    monkeypatch.setattr(program, "commands", lambda *_: [["-c", "print('measured')"], ["-c", look]])
    monkeypatch.setattr(program, "device", lambda args: "a card")
    monkeypatch.setattr(sys, "argv", ["run.py", "engine", "--out", str(tmp_path)])
    assert program.main() == 0
    first, second = json.loads((tmp_path / "engine.json").read_text())["commands"]
    assert (first["output"], second["output"]) == (["measured"], ["1"])


@pytest.fixture
def no_handlers(monkeypatch):
    """The programs' handlers of signals are not for this process."""
    monkeypatch.setattr(signal, "signal", lambda *_: None)


@pytest.mark.parametrize("smoke", [[], ["--smoke"]], ids=["whole", "smoke"])
@pytest.mark.parametrize("part", program.PARTS)
def test_the_programs_of_a_part_take_the_words_that_it_gives_them(tmp_path, no_handlers, part, smoke):
    args = program.options().parse_args([part, "--text", "texts", "--tokenizer", "folder", *smoke])
    commands = program.commands(program.PARTS[part], args, tmp_path, tmp_path)
    assert commands
    for words in commands:
        if words[0].endswith(".py"):
            loaded(words[0]).options().parse_args(words[1:])
    assert (part == "decoding") == any("gcg.py" in words[0] for words in commands)


def test_commands_get_absolute_paths_since_they_run_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["decoding", "--out", "a", "--text", "b", "--tokenizer", "c", "--litgpt-python", "env/bin/python"]
    args = program.options().parse_args(words)
    assert [args.out, args.text, args.tokenizer] == [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    assert args.litgpt_python == str(tmp_path / "env/bin/python")


def test_commands_find_the_suite_of_this_checkout_first(tmp_path):
    say = "import os, pathlib, curricula; print(pathlib.Path(curricula.__file__).parents[1], os.environ['PYTHONPATH'])"
    assert program.run_limited([sys.executable, "-c", say], 60.0, tmp_path / "output.txt") == 0
    package, path = (tmp_path / "output.txt").read_text().split()
    assert package == str(ROOT) and path.split(os.pathsep)[0] == str(ROOT)


def test_a_command_that_outlasts_its_part_is_ended_with_its_children_and_its_results_are_kept(tmp_path, monkeypatch):
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(3600)"
    script = tmp_path / "slow.py"
    script.write_text(
        "import json, pathlib, subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "rows = [{'name': 'first', 'median_seconds': child.pid}]\n"
        "pathlib.Path(sys.argv[2]).write_text(json.dumps({'rows': rows}))\n"
        "time.sleep(3600)\n"
    )
    found = tmp_path / "found.json"

    class Process(subprocess.Popen):
        """Its time begins when it has results."""

        def wait(self, timeout=None):
            while self.poll() is None and not (found.exists() and found.stat().st_size):
                time.sleep(0.05)
            return super().wait(timeout)

    monkeypatch.setattr(program.subprocess, "Popen", Process)
    words = [str(script), "--json", str(found)]
    record = program.run(words, time.monotonic() + 1, tmp_path / "output-1.txt")
    assert record["code"] == 124
    number = record["results"]["rows"][0]["median_seconds"]
    deadline = time.monotonic() + 120
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    assert [what for what, _ in program.summary(record)][1:] == ["first"]


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal: a shell has what it starts with `&` ignore it, and so would what that starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_tests_that_are_interrupted_keep_the_outcomes_of_those_before(tmp_path, interruptible, monkeypatch):
    monkeypatch.setattr(program, "GRACE_S", 120.0)
    script, begun, found = tmp_path / "test_slow.py", tmp_path / "begun", tmp_path / "tests.xml"
    script.write_text(
        "import pathlib, pytest, time\n"
        "def test_first(): pass\n"
        "def test_without_a_reason(): pytest.skip('')\n"
        f"def test_slow(): pathlib.Path({str(begun)!r}).touch(); time.sleep(3600)\n"
    )
    words = ["-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", tmp_path, script, f"--junitxml={found}"]
    process = subprocess.Popen([sys.executable, *words], cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    program.end_group(process)
    outcomes = program.outcomes(found)
    assert outcomes["test_first"] == "passed" and outcomes["test_without_a_reason"].startswith("skipped")


def test_commands_can_be_interrupted_though_a_shell_runs_the_program_in_the_background(tmp_path, monkeypatch):
    ask = "import signal, sys; sys.exit(signal.getsignal(signal.SIGINT) == signal.SIG_IGN)"
    monkeypatch.setattr(program, "commands", lambda *_: [["-c", ask]])
    monkeypatch.setattr(program, "device", lambda args: "no card")
    monkeypatch.setattr(sys, "argv", ["run.py", "engine", "--out", str(tmp_path)])
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it starts with `&`
    try:
        assert program.main() == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("error", [RuntimeError("the task\nmany lines\nno kernel image"), ValueError("no JSON")])
def test_a_row_that_fails_leaves_its_whole_error_in_the_output(monkeypatch, capsys, error):
    from curricula.model.config import PRESETS

    benchmark = loaded(BENCHMARKS / "training_step.py")

    def fresh(task, *_):
        assert not task["profiled"], "a row of the sweep has no loss curve and needs no profile"
        raise error

    monkeypatch.setattr(benchmark.machine, "fresh", fresh)
    asked = argparse.Namespace(litgpt_python=sys.executable, micro_batch=8, timed=1)
    row = benchmark.measured(benchmark.Variant("broken", "ours", {}), PRESETS["tiny"], asked, "tokens", "weights", steps=0)
    assert row["failed"] == str(error).splitlines()[-1] and str(error) in capsys.readouterr().err


def test_the_training_benchmark_keeps_each_row_as_it_is_measured(tmp_path, no_handlers, monkeypatch):
    benchmark = loaded(BENCHMARKS / "training_step.py")

    def measured(variant, *_):
        if "loop" in variant.name:
            raise SystemExit(143)
        return {"name": variant.name, "failed": "not tried"}

    monkeypatch.setattr(benchmark, "measured", measured)
    monkeypatch.setattr(benchmark, "installed", lambda *_: False)
    monkeypatch.setattr(benchmark, "write_tokens", lambda *_: "no text")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["training_step.py", "--smoke", "--out", str(tmp_path)])
    with pytest.raises(SystemExit):
        benchmark.main()
    kept = json.loads((tmp_path / "results.json").read_text())
    assert [row["name"] for row in kept["rows"]] == ["LitGPT fp32", "ours cpu fp32"]


def test_each_part_measures_its_own_variants_and_a_plain_run_no_ablations():
    benchmark = loaded(BENCHMARKS / "training_step.py")
    assert benchmark.choose(benchmark.FULL, benchmark.OTHERS, None) == list(benchmark.FULL)
    parts = {"ablations": benchmark.ABLATIONS, "compilations": benchmark.COMPILATIONS, "fusions": benchmark.FUSIONS}
    for part, own in parts.items():
        assert benchmark.choose(benchmark.FULL, benchmark.OTHERS, program.PARTS[part].variants) == list(own)
    for part in ("step-bf16", "step-te", "sizes", "losses-bf16", "losses-fp8"):
        chosen = benchmark.choose(benchmark.FULL, benchmark.OTHERS, program.PARTS[part].variants)
        assert all(each in benchmark.FULL for each in chosen)


def test_every_change_to_the_backend_is_measured_and_can_be_made():
    benchmark, changes = (loaded(BENCHMARKS / f"{name}.py") for name in ("training_step", "training_changes"))
    asked = [each.settings["change"] for each in benchmark.OTHERS]
    assert set(asked) == set(changes.CHANGES)
    for change in changes.CHANGES.values():
        with change():
            pass


def test_no_size_is_measured_twice():
    from curricula.model.config import PRESETS

    asked = argparse.Namespace(smoke=False, micro_batch=8)
    sizes = loaded(BENCHMARKS / "training_step.py").sizes(PRESETS["smollm2-1.7b"], asked)
    assert len(sizes) == 7 and sizes[8, 2048] == "micro_batch 8" and (4, 4096) in sizes and (16, 2048) in sizes
