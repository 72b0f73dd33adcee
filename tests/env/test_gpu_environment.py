"""The environment for GPUs: what `env/gpu/check` finds, and what `env/gpu/install` does and refuses."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

GPU = ROOT / "env" / "gpu"
SETS = {cuda: GPU / f"constraints-cu{cuda}.txt" for cuda in (12, 13)}


@pytest.fixture(scope="module")
def check():
    loader = importlib.machinery.SourceFileLoader("gpu_check", str(GPU / "check"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("gpu_check", loader))
    sys.modules["gpu_check"] = module  # dataclasses look there
    loader.exec_module(module)
    return module


def pinned(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


class Node:
    """A GPU node of eight H100s whose environment holds the tested set for CUDA 13; its packages are stubs."""

    def __init__(self, folder: Path):
        self.folder, self.packages = folder, folder / "packages"
        self.environment = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "NCCL_IB_HCA": "mlx5", "NCCL_SOCKET_IFNAME": "ib0"}
        self.versions = {name: version for name, version in pinned(SETS[13]).items() if name != "numpy"}
        self.modules = {"megatron/core": "", "transformer_engine/pytorch": ""}
        self.torch = {"version": "2.13.0+cu130", "cuda": "13.0", "sees": 8, "cudnn": 92000, "nccl": (2, 29, 7)}
        self.smi = "580.95.05, NVIDIA H100 80GB HBM3, 9.0, 81559 MiB\n" * 8
        self.ports = {"mlx5_0": "4: ACTIVE", "mlx5_1": "4: ACTIVE"}
        self.locked = resource.RLIM_INFINITY

    def write(self) -> None:
        facts = self.torch
        self.modules["torch"] = (
            "from types import SimpleNamespace as N\n"
            f"__version__, version = {facts['version']!r}, N(cuda={facts['cuda']!r})\n"
            f"cuda = N(device_count=lambda: {facts['sees']}, nccl=N(version=lambda: {facts['nccl']}))\n"
            f"backends = N(cudnn=N(version=lambda: {facts['cudnn']}))\n"
        ) + facts.get("raises", "")
        for name, text in self.modules.items():
            module = self.packages / name / "__init__.py"
            module.parent.mkdir(parents=True, exist_ok=True)
            module.write_text(text)
        for name, version in self.versions.items():
            about = self.packages / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
            about.parent.mkdir(parents=True)
            about.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        for device, state in self.ports.items():
            port = self.folder / "sys/class/infiniband" / device / "ports/1/state"
            port.parent.mkdir(parents=True)
            port.write_text(state)
        for folder in ("dev/shm", "sys/class/net/ib0", "sys/class/net/lo", "bin"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        self.program("python", f'PYTHONPATH="{self.packages}" exec "{sys.executable}" -S "$@"')
        self.program("nvidia-smi", f"printf '%s' '{self.smi}'")
        self.program("gcc", "")

    def program(self, name: str, text: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def wrong(self, check, gpu: bool = True) -> dict[str, str]:
        """What does not fit; the tests' own interpreter may be too old or lack its headers."""
        self.write()
        found = check.findings(str(self.folder / "bin" / "python"), gpu, self.environment, self.folder)
        return {it.what: f"{it.found} -> {it.mend}" for it in found if it.mend and it.what not in ("Python", "C compiler")}


@pytest.fixture
def node(tmp_path, check, monkeypatch):
    node = Node(tmp_path)
    monkeypatch.setattr(check.resource, "getrlimit", lambda kind: (node.locked, resource.RLIM_INFINITY))
    return node


def test_an_environment_that_fits_is_found_to_fit(node, check):
    assert node.wrong(check) == {}


def older_driver(node):
    node.smi = node.smi.replace("580.95.05", "570.172.08")


def no_driver(node):
    node.smi = "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver"


def old_cards(node):
    node.smi = "580.95.05, Tesla V100-SXM2-32GB, 7.0, 32768 MiB\n"


def torch_without_cuda(node):
    node.torch |= {"version": "2.13.0+cpu", "cuda": None}


def torch_without_a_library(node):
    node.torch["raises"] = "raise OSError('libcudnn.so.9: cannot open shared object file')"


def no_device(node):
    node.torch["sees"] = 0


def another_nccl(node):
    node.torch["nccl"] = (2, 21, 5)


def another_cudnn(node):
    node.torch["cudnn"] = 91002


def a_module_of_the_site(node):
    (node.folder / "module").mkdir()
    (node.folder / "module" / "libnccl.so.2").touch()
    node.environment["LD_LIBRARY_PATH"] = f"/nowhere:{node.folder}/module"


def a_toolkit_of_another_cuda(node):
    (node.folder / "usr/local/cuda/lib64").mkdir(parents=True)
    (node.folder / "usr/local/cuda/lib64/libnvrtc.so.12").touch()


def core_of_another_cuda(node):
    node.versions["transformer-engine-cu12"] = node.versions.pop("transformer-engine-cu13")


def parts_of_two_versions(node):
    node.versions["transformer-engine-torch"] = "2.20.2"


def no_extension(node):
    del node.versions["transformer-engine-torch"]


def extension_for_another_torch(node):
    node.modules["transformer_engine/pytorch"] = "raise ImportError('te.so: undefined symbol: _ZN3c105Error')"


def newer_megatron(node):
    node.versions["megatron-core"] = "0.20.0"


def no_library_of_the_driver(node):
    node.modules["megatron/core"] = "raise OSError('libcuda.so.1: cannot open shared object file')"


def no_such_device(node):
    node.environment["NCCL_IB_HCA"] = "=mlx5_0,mlx5_7"


def no_such_interface(node):
    node.environment["NCCL_SOCKET_IFNAME"] = "bond"


def ports_down(node):
    node.environment.pop("NCCL_IB_HCA")
    node.ports = dict.fromkeys(node.ports, "1: DOWN")


def little_locked_memory(node):
    node.locked = 65536


@pytest.mark.parametrize(
    "fault, what, said",
    [
        (older_driver, "torch", "CUDA 13.0, but the driver serves CUDA 12 -> env/gpu/install VENV --cuda 12"),
        (no_driver, "driver", "could not communicate .* -> ask the site, or ask Slurm for a GPU"),
        (old_cards, "GPUs", "1 x Tesla V100-SXM2-32GB, capability 7.0 -> use GPUs that compute in bfloat16"),
        (torch_without_cuda, "torch", "2.13.0.cpu, a build without CUDA -> uninstall it and run env/gpu/install again"),
        (torch_without_a_library, "torch", "libcudnn.so.9: cannot open shared object file -> run env/gpu/install again"),
        (no_device, "torch", "sees no device -> ask Slurm for a GPU"),
        (another_nccl, "NCCL", "2.21.5, installed is 2.29.7 -> something puts another NCCL before torch's"),
        (another_cudnn, "cuDNN", "9.10.2, installed is 9.20.0.48 -> something puts another cuDNN before torch's"),
        (a_module_of_the_site, "library path", "module/libnccl.so.2 -> drop the module that sets LD_LIBRARY_PATH"),
        (core_of_another_cuda, "Transformer Engine", "cu12, but torch has CUDA 13 -> pip uninstall transformer-engine-cu12"),
        (parts_of_two_versions, "Transformer Engine", "do not fit together: .*torch 2.20.2 -> pip uninstall"),
        (no_extension, "Transformer Engine", "only a part: .* -> run env/gpu/install again"),
        (extension_for_another_torch, "Transformer Engine", "compiled for another torch: .* -> env/gpu/install VENV --rebuild"),
        (no_library_of_the_driver, "Megatron-core", "not imported: there is no driver here -> run this on a GPU node"),
        (newer_megatron, "tested set", r"megatron-core 0.20.0 \(tested: 0.19.2\) -> run env/gpu/install again"),
        (no_such_device, "fabric", "2 of 2 devices active: .*names mlx5_7 -> correct NCCL_IB_HCA"),
        (no_such_interface, "network", "ib0, lo; NCCL_SOCKET_IFNAME is bond -> correct NCCL_SOCKET_IFNAME"),
        (ports_down, "fabric", "0 of 2 devices active: .*-> ask the site: no port is active"),
        (little_locked_memory, "locked memory", "at most 64 KiB -> .* say `stages: {all: {options: {propagate: NONE}}}`"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_does_not_fit_is_named_with_what_to_do(node, check, fault, what, said):
    fault(node)
    wrong = node.wrong(check)
    assert re.search(said, wrong[what]), wrong
    assert all("\n" not in line for line in wrong.values())


def test_without_a_gpu_the_packages_are_checked_though_the_driver_is_missing(node, check):
    error = "raise OSError('libcuda.so.1: cannot open shared object file: No such file or directory')"
    node.modules |= {"megatron/core": error, "transformer_engine/pytorch": error}
    node.torch["sees"], node.smi = 0, ""
    assert node.wrong(check, gpu=False) == {}


def test_the_command_prints_a_line_for_each_thing_and_fails_where_one_does_not_fit(node):
    another_nccl(node)
    node.write()
    node.program("python3", "exit 1")  # too old
    command = [str(GPU / "check"), str(node.folder), "--no-gpu"]
    ran = subprocess.run(command, env=node.environment, capture_output=True, text=True)
    assert ran.returncode == 1 and re.search("^WRONG NCCL +2.21.5, installed is 2.29.7 -> ", ran.stdout, re.MULTILINE)
    assert re.search("^ok    cuDNN +9.20.0$", ran.stdout, re.MULTILINE)
    ran = subprocess.run([*command, "--json"], env=node.environment, capture_output=True, text=True)
    assert ran.returncode == 1 and {"what": "cuDNN", "found": "9.20.0", "mend": None} in json.loads(ran.stdout)


@pytest.mark.parametrize("cuda", SETS)
def test_a_tested_set_is_within_the_ranges_of_setup_cfg_and_of_one_cuda(cuda):
    pins = pinned(SETS[cuda])
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = [*config["options"]["install_requires"].splitlines(), *config["options.extras_require"]["gpu"].splitlines()]
    for wanted in (Requirement(line) for line in lines if line.strip() and not line.startswith("#")):
        if wanted.marker is None or wanted.marker.evaluate({"python_version": "3.12"}):
            assert wanted.specifier.contains(pins[canonicalize_name(wanted.name)]), wanted
    parts = {version for name, version in pins.items() if name.startswith("transformer-engine")}
    assert len(parts) == 1 and pins[f"transformer-engine-cu{cuda}"] and pins[f"nvidia-nccl-cu{cuda}"]
    assert not [name for name in pins if name.endswith(f"-cu{25 - cuda}")]


@pytest.mark.parametrize("cuda", SETS)
def test_a_tested_set_holds_what_the_gpu_tests_import(cuda):
    holders = importlib.metadata.packages_distributions()
    programs = [ROOT / "tests" / "conftest.py", *(ROOT / "tests" / "gpu").glob("test_*.py")]
    text = "\n".join(program.read_text() for program in programs)
    imported = {name for name in re.findall(r"^ *(?:import|from) (\w+)", text, re.MULTILINE) if name in holders}
    wanted = {canonicalize_name(holders[name][0]) for name in imported} - {"safety-curricula"}
    assert {"pytest", "hypothesis", "torch"} <= wanted and not wanted - pinned(SETS[cuda]).keys()


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "give the folder of the virtual environment"),
        (["VENV", "--cuda", "11"], "--cuda is 11; there are tested sets for 12 and 13"),
        (["VENV", "--cuda"], "--cuda needs a value"),
        (["VENV", "--fast"], "the option --fast is not known"),
        (["VENV", "--python", "no-such-python"], "no-such-python is not Python 3.12 or 3.13"),
    ],
)
def test_an_installation_that_cannot_begin_says_so_in_one_sentence(tmp_path, arguments, said):
    ran = subprocess.run([GPU / "install", *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 1 and not ran.stdout
    assert len(ran.stderr.splitlines()) == 1 and ran.stderr.startswith("env/gpu/install: ") and said in ran.stderr


def test_an_environment_for_another_cuda_is_left_as_it_is(tmp_path):
    (tmp_path / "lib/python3.12/site-packages/transformer_engine_cu13-2.17.1.dist-info").mkdir(parents=True)
    ran = subprocess.run([GPU / "install", tmp_path, "--cuda", "12"], capture_output=True, text=True)
    assert ran.returncode == 1 and "holds the set for CUDA 13; choose a new folder, or say --cuda 13" in ran.stderr


def test_another_python_than_that_of_the_environment_is_refused(tmp_path):
    python, other = tmp_path / "venv/bin/python", tmp_path / "other"
    python.parent.mkdir(parents=True)
    for program, version in ((python, "3.12"), (other, "3.13")):
        program.write_text(f"#!/bin/sh\necho {version}\n")
        program.chmod(0o755)
    command = [GPU / "install", tmp_path / "venv", "--cuda", "13", "--python"]
    ran = subprocess.run([*command, other], capture_output=True, text=True)
    assert ran.returncode == 1 and not ran.stdout
    assert f"venv has Python 3.12, but --python is {other}; choose a new folder, or leave out --python" in ran.stderr
    again = subprocess.run([*command, python], capture_output=True, text=True)
    assert "has Python" not in again.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info[:2] not in ((3, 12), (3, 13)), reason="the tested sets are for Python 3.12 and 3.13")
@pytest.mark.parametrize("cuda", SETS)
def test_a_tested_set_installs_compiles_and_is_complete(tmp_path, cuda):
    command = [GPU / "install", tmp_path / "venv", "--cuda", str(cuda), "--python", sys.executable]
    for _ in range(2):  # the second finds all done
        ran = subprocess.run(command, env={**os.environ, "MAX_JOBS": "2"}, capture_output=True, text=True, timeout=3600)
        assert ran.returncode == 0, ran.stderr[-3000:] + ran.stdout[-1000:]
    assert "compiling Transformer Engine" not in ran.stdout
    imported = subprocess.run(
        [GPU / "check", tmp_path / "venv", "--no-gpu"],
        env={**os.environ, "LD_LIBRARY_PATH": str(stub_of_the_driver(tmp_path))},
        capture_output=True,
        text=True,
    )
    assert imported.returncode == 0 and "not imported" not in imported.stdout, imported.stdout
    compiled = subprocess.run([tmp_path / "venv/bin/python", "-c", COMPILE], capture_output=True, text=True)
    assert compiled.returncode == 0 and compiled.stdout == "STACK:0 SHARED:0\n" * 2, compiled.stdout + compiled.stderr


COMPILE = """
import re, subprocess, tempfile, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from curricula.model.network.swiglu import COLUMNS, swiglu_gradient_kernel
types = dict(gradient="*bf16", gate_up="*bf16", result="*bf16", width="i32", COLUMNS="constexpr")
for capability in (90, 100):
    source = ASTSource(swiglu_gradient_kernel, types, constexprs={"COLUMNS": COLUMNS})
    kernel = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        used = subprocess.check_output([triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name], text=True)
    print(*re.findall(r"(?:STACK|SHARED):\\d+", used))
"""
"""Compiles the kernel of SwiGLU's gradient for an H100 and a B200: nothing may spill to memory, which counts as STACK."""


def stub_of_the_driver(folder: Path) -> Path:
    """A folder with a libcuda.so.1 that has the functions that Transformer Engine asks for, all of which fail."""
    (core,) = folder.glob("venv/lib/python*/site-packages/transformer_engine/wheel_lib/libtransformer_engine.so")
    symbols = subprocess.run(["nm", "-D", "--undefined-only", core], check=True, capture_output=True, text=True).stdout
    names = re.findall(r" U (cu(?!blas|dnn|da|rand|solver)[A-Z]\w+)", symbols)
    source = folder / "stub.c"
    source.write_text("".join(f"int {name}(void) {{ return 100; }}\n" for name in names))
    library = ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1"]
    subprocess.run(["gcc", *library, source], check=True)
    return folder
