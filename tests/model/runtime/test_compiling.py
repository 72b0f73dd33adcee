"""How torch's compiler is set up beside other processes."""

import json
import os
import runpy
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from curricula.model import megatron
from curricula.model.runtime.distributed import await_compilers, share_compiler, started


@pytest.mark.parametrize(("cores", "threads"), [(128, "8"), (32, "4"), (4, "1")])
def test_the_processes_of_a_node_share_its_cores_and_the_code_compiled_by_an_earlier_start(
    tmp_path, monkeypatch, cores, threads
):
    compiler = SimpleNamespace(compile_threads=32)
    monkeypatch.setitem(sys.modules, "torch._inductor.config", compiler)
    monkeypatch.setattr("socket.gethostname", lambda: "n1")
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    monkeypatch.setattr("os.environ", {})
    share_compiler(tmp_path)
    assert os.environ == {
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "n1" / "inductor"),  # of this node: several would race on a shared disk
        "TRITON_CACHE_DIR": str(tmp_path / "n1" / "triton"),
        "TORCHINDUCTOR_COMPILE_THREADS": threads,
    }
    assert compiler.compile_threads == int(threads)


def test_what_a_site_says_about_compiling_stays(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._inductor.config", SimpleNamespace())
    chosen = {
        "TORCHINDUCTOR_CACHE_DIR": "/local/inductor",
        "TRITON_CACHE_DIR": "/local/triton",
        "TORCHINDUCTOR_COMPILE_THREADS": "2",
    }
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    runpy.run_path(megatron.__file__)
    share_compiler(tmp_path)
    assert {name: os.environ.get(name) for name in chosen} == chosen


@pytest.mark.parametrize("outcome", ["ready", OSError("no process can be started")], ids=["they run", "they cannot run"])
def test_a_training_does_not_end_before_the_processes_that_compile_for_it_run(monkeypatch, outcome):
    running: Future = Future()
    compiler = SimpleNamespace(AsyncCompile=SimpleNamespace(_ready_future=running))
    monkeypatch.setitem(sys.modules, "torch._inductor.async_compile", compiler)
    begun = threading.Timer(0.2, running.set_exception if isinstance(outcome, OSError) else running.set_result, [outcome])
    with started():
        begun.start()
    assert running.done()


def test_a_process_that_is_left_with_its_group_does_not_wait_for_them(monkeypatch):
    waits: list[float] = []
    running = SimpleNamespace(result=lambda timeout: waits.append(timeout))
    compiler = SimpleNamespace(AsyncCompile=SimpleNamespace(_ready_future=running))
    monkeypatch.setitem(sys.modules, "torch._inductor.async_compile", compiler)
    with started():
        await_compilers()
        assert not waits
    assert len(waits) == 1


FOLDERS = """
import json, os, sys, torch
from pathlib import Path
from unittest import mock
with mock.patch.object(torch.cuda, "is_available", lambda: True):  # Megatron-core then loads the compiler
    import curricula.jobs.preload  # and so does transformers
assert "torch._inductor" in sys.modules
from curricula.model.runtime.distributed import share_compiler
with mock.patch.object(torch.cuda, "device_count", lambda: 1):
    share_compiler(Path(sys.argv[1]))
from torch._inductor.codecache import FxGraphCache
from torch._inductor.runtime.cache_dir_utils import cache_dir
torch.compile(lambda x: x + 1, backend="inductor")
print(json.dumps([cache_dir(), FxGraphCache._get_tmp_dir()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [None, "of-the-site"])
def test_what_imports_make_torch_write_is_no_choice_of_the_site(tmp_path, chosen):
    environment = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    if chosen:
        environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / chosen)
    ran = subprocess.run(
        [sys.executable, "-c", FOLDERS, str(tmp_path / "run")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout[-3000:]
    folder = tmp_path / chosen if chosen else tmp_path / "run" / socket.gethostname() / "inductor"
    answers = [line for line in ran.stdout.splitlines() if line.startswith("[")]  # libraries may report leaks after it
    assert json.loads(answers[-1]) == [str(folder), str(folder / "fxgraph")]
