"""How torch's compiler is set up beside other processes."""

import sys
from types import SimpleNamespace

import pytest

from curricula.model.runtime.compiling import share_compiler


@pytest.mark.parametrize(("cores", "threads"), [(128, "8"), (32, "4"), (4, "1")])
def test_the_processes_of_a_node_share_its_cores_and_the_code_compiled_by_an_earlier_start(
    tmp_path, monkeypatch, cores, threads
):
    compiler = SimpleNamespace(compile_threads=32)
    monkeypatch.setitem(sys.modules, "torch._inductor.config", compiler)
    environment: dict[str, str] = {}
    share_compiler(tmp_path, processes=8, cores=cores, environment=environment)
    assert environment == {
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
        "TORCHINDUCTOR_COMPILE_THREADS": threads,
    }
    assert compiler.compile_threads == int(threads)


def test_what_a_site_says_about_compiling_stays(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._inductor.config", SimpleNamespace())
    environment = {"TRITON_CACHE_DIR": "/local/triton", "TORCHINDUCTOR_COMPILE_THREADS": "2"}
    share_compiler(tmp_path, processes=8, cores=64, environment=environment)
    assert environment["TRITON_CACHE_DIR"] == "/local/triton"
    assert environment["TORCHINDUCTOR_COMPILE_THREADS"] == "2"
