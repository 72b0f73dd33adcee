"""What a person sees while a study runs on this machine: the whole, the stages, and what runs, on 80 columns."""

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from run_folders import finish, new_run, report_progress

from curricula.jobs.cli.local import Display
from curricula.jobs.estimates import seconds_here
from curricula.jobs.graph import plan_study


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
