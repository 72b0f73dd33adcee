"""What a person sees while a study runs on this machine: the whole, the stages, and what runs, on 80 columns."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from run_folders import fail, finish, new_run, report_progress

from curricula.durable import write_text
from curricula.jobs.cli import local
from curricula.jobs.cli.local import Display
from curricula.jobs.estimates import seconds_here
from curricula.jobs.graph import plan_study
from curricula.terminal import clock


@pytest.fixture
def display(tmp_path) -> Display:
    run, _ = new_run(tmp_path / "run")
    plan, console = plan_study(run.study), Console(file=io.StringIO(), width=80, color_system=None)
    return Display(run, plan, console, list(plan.needs), set(), workers=2)


def shown(display: Display) -> str:
    with display.console.capture() as captured:
        display.console.print(display._render())
    text = captured.get()
    assert max(map(len, text.splitlines())) <= display.console.width and "…" not in text
    return text


def test_before_the_first_element_it_says_what_takes_so_long(display):
    assert "loading PyTorch and Megatron-core (0 s)" in shown(display) and "0%" in shown(display)
    display.update([("prepare", "prepare")])
    assert "loading" not in shown(display) and "prepare/prepare" in shown(display)
    without_torch = Display(display.run, plan_study(display.run.study), display.console, [("prepare", "prepare")], set(), 2)
    assert "starting (0 s)" in shown(without_torch)


def test_what_runs_is_shown_as_in_the_status_and_the_longest_names_stay_whole(display):
    plan = plan_study(display.run.study)
    longest = max(plan.needs, key=lambda key: len("/".join(key)))
    report_progress(display.run, *longest, done=3, total=25, loss=2.345, tokens_per_second=1.2e6)
    display.update([longest, ("prepare", "prepare")])
    names = re.findall(r"[^\s/]+", shown(display))
    assert {*longest[0].split("/"), *longest[1].split("/"), "3", "25", "2.345", "tok", "1.20M", "starting"} <= set(names)
    display.console.width = 160
    display.update([longest])
    assert re.search(rf"^{'/'.join(longest)} +running +3/25 +2.345 +1.20M", shown(display), re.MULTILINE)


def test_the_whole_is_counted_by_estimated_time_and_so_is_what_is_left(display):
    plan = plan_study(display.run.study)
    seconds = seconds_here(plan)
    trunk = next(key for key in plan.needs if key[0].startswith("pretrain-trunk"))
    report_progress(display.run, *trunk, done=50, total=100)
    display.update([trunk])
    assert f"{seconds[trunk] / 2 / sum(seconds.values()):.0%}" in shown(display)
    finish(display.run, *trunk)
    display.update([], trunk)
    assert f"{seconds[trunk] / sum(seconds.values()):.0%}" in shown(display) and "left" in shown(display)


def test_what_is_left_is_at_the_plans_pace_at_first_and_then_more_and_more_at_this_machines(display, monkeypatch):
    plan, last, odd = plan_study(display.run.study), ("pretrain-0", "full-0"), [("prepare", "prepare"), ("report", "report")]
    half = seconds_here(plan)[last] / 2
    resumed = Display(display.run, plan, display.console, list(plan.needs), {*plan.needs} - {last}, workers=2)
    report_progress(display.run, *last, done=50, total=100)
    for key, total in zip(odd, (0, 3)):  # how much it is remains to be seen, or was underestimated
        report_progress(display.run, *key, done=3 * total, total=total)
    for running, elapsed_s, left_s in ([], 0.0, half), ([], local.TRUSTED_S, 2 * half), ([last], half / 2, half / 2):
        monkeypatch.setattr(local.time, "monotonic", lambda now=resumed.started + elapsed_s: now)
        resumed.update([*running, *odd])
        assert f"about {clock(left_s)} left" in shown(resumed)


def test_a_line_says_how_an_element_ended(display, monkeypatch):
    run = display.run
    ended = [("tokenize", "web/00000"), ("tokenize", "web/validation"), ("prepare", "prepare"), ("report", "report")]
    report_progress(run, *ended[0], loss=2.3456)
    finish(run, *ended[0], seconds=5)
    fail(run, *ended[1], "the lamp\nfell over")
    write_text(run.element(*ended[2]) / "done.json", "{")
    run.element(*ended[3]).mkdir(parents=True)
    for key in ended:
        display.update([], key)
    monkeypatch.setattr(local, "FULL_BYTES", sys.maxsize)
    display.update([], ended[3])
    total = len(plan_study(run.study).needs)
    finish(run, *ended[2])
    display.update([], ended[2])
    damaged = run.element(*ended[2]) / "done.json"
    assert [" ".join(line.split()) for line in display.console.file.getvalue().splitlines()] == [
        f"1/{total} tokenize/web/00000 done in 5.0 s, loss 2.346",
        "tokenize/web/validation failed: the lamp fell over",
        f"prepare/prepare failed: {damaged}: not an element's mark (Input data was truncated); delete it and run the same "
        "command again",
        f"report/report ended without finishing; see {run.element(*ended[3]) / 'log.txt'}",
        "report/report ended without finishing; the disk is full",
        f"2/{total} prepare/prepare done in 2.0 s",
    ]


def test_what_libraries_say_at_their_import_goes_to_a_file(tmp_path):
    """The server that elements are forked from says nothing on the terminal."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'forkserver' in ' '.join(sys.orig_argv):\n    os.write(2, b'a warning\\n')\n"
    )
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\nfrom curricula.jobs.local import _forkserver\n"
        "if __name__ == '__main__':\n"
        f"    process = _forkserver(1, False, Path({str(tmp_path / 'log')!r})).Process(target=print)\n"
        "    process.start()\n    process.join()\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert (ran.returncode, ran.stderr) == (0, "") and "a warning" in (tmp_path / "log").read_text()
