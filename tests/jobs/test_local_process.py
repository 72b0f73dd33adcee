"""What a forked element finds in its process, an interrupt while there is none yet, and signals to all processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
from multiprocessing.context import ForkServerProcess

import pytest
import torch
from paths import SUPPORT
from run_folders import new_run

from curricula.errors import UserError
from curricula.jobs import local
from curricula.jobs.graph import plan_study
from curricula.jobs.run import Run


def _say_whether_there_is_cuda(root, answers):
    local._begin(root, "prepare", "prepare")
    answers.put(torch.cuda.is_available())


@pytest.mark.parametrize("usable", [0, 1], ids=["old driver", "usable"])
def test_an_element_uses_the_cards_that_cuda_can_use_not_those_that_nvml_counts(tmp_path, monkeypatch, usable):
    monkeypatch.setattr(torch.cuda, "_is_compiled", lambda: True)
    monkeypatch.setattr(torch.cuda, "_device_count_nvml", lambda: 1)
    monkeypatch.setattr(torch._C, "_cuda_getDeviceCount", lambda: usable, raising=False)
    monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as `_forkserver` sets it
    assert torch.cuda.is_available()
    Run(tmp_path).element("prepare", "prepare").mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    element = context.Process(target=_say_whether_there_is_cuda, args=(tmp_path, answers))
    element.start()
    element.join(timeout=60)
    assert answers.get() is bool(usable)
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"


@pytest.mark.parametrize(
    ("happens", "raised", "said"),
    [(KeyboardInterrupt, KeyboardInterrupt, ""), (EOFError, UserError, "/run/imports.log says why")],
)
def test_an_interrupt_or_the_server_s_end_while_it_imports_is_no_other_error(tmp_path, monkeypatch, happens, raised, said):
    def start(_):
        raise happens

    monkeypatch.setattr(ForkServerProcess, "start", start)
    monkeypatch.setattr(local, "_forkserver", lambda *_: multiprocessing.get_context("forkserver"))
    run, _ = new_run(tmp_path / "run")
    with pytest.raises(raised, match=said):
        local.run_plan(run, plan_study(run.study), None, [("prepare", "prepare")], set(), 1)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="Python 3.10 always looks for modules in the current folder first")
def test_a_file_in_the_current_folder_is_no_module_of_the_server(tmp_path):
    (tmp_path / "selectors.py").write_text("raise SystemExit('not the library')")
    launcher = [sys.executable, SUPPORT / "stopped_group.py", tmp_path, "SIGTERM"]
    ended = subprocess.run(launcher, cwd=tmp_path, start_new_session=True, timeout=300)
    assert ended.returncode == 0 and (tmp_path / "saved").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_an_element_saves_if_the_whole_group_is_asked_to_stop(tmp_path, name):
    launcher = [sys.executable, SUPPORT / "stopped_group.py", tmp_path, name]
    ended = subprocess.run(
        launcher, start_new_session=True, timeout=300, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL)
    )
    assert ended.returncode == 0 and (tmp_path / "saved").exists()


def test_a_run_under_nohup_outlives_its_terminal():
    heeded = (signal.SIGHUP, signal.SIGTERM)
    before = [signal.getsignal(number) for number in heeded]
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        local.stop_on_signals()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        for number, handler in zip(heeded, before):
            signal.signal(number, handler)
