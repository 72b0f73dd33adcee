"""Trains on a machine without a GPU: what does a step need, compile and wait for, if kernels do nothing?

    gpu-env/bin/python tests/gpu/dry_run.py                                   # SmolLM2-1.7B; made by env/gpu/install gpu-env
    gpu-env/bin/python tests/gpu/dry_run.py --micro-batch 16 --recompute-layers 3 --data-parallel 32 --json dry.json
    gpu-env/bin/python tests/gpu/dry_run.py --layers 2 --tensor-parallel 2 --packed
    gpu-env/bin/python tests/gpu/dry_run.py --backend te --fp8 delayed

The suite, Megatron-core, Transformer Engine, torch with its CUDA allocator and its compiler, Triton and ptxas are the real
ones. CUDA's runtime and driver, cuBLAS and NCCL are replaced by functions that report an H100, give out addresses and do
nothing (cuda_stub.c), and so is cuDNN's attention (attention_stub.cpp). This process is the first of all ranks; the others do
not exist. So allocated memory, compiled kernels and waits are those of a training, but numbers and times mean nothing, and what
cuBLAS, cuDNN, NCCL and the driver take is not seen.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import ctypes
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STUBS = [Path(__file__).with_name(name) for name in ("cuda_stub.c", "attention_stub.cpp")]
LIBRARY = "libcuda.so.1"
FOLDER = "CURRICULA_DRY_RUN"
"""Names the folder of the stubs to the process that trains."""
GIB = 2**30


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-1.7b", help="a preset of curricula.model.config")
    parser.add_argument("--backend", default="auto", help="as in EngineConfig")
    parser.add_argument("--fp8", help="the scaling recipe, as in EngineConfig")
    parser.add_argument("--layers", type=int, help="of the model, if not all")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=4, help="micro-batches of a step")
    parser.add_argument("--sequence-length", type=int, default=2048)
    parser.add_argument("--data-parallel", type=int, default=1)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--recompute-layers", type=int, default=0)
    parser.add_argument("--packed", action="store_true", help="several texts in a row")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there as well")
    return parser


def main() -> int:
    args = options().parse_args()
    if folder := os.environ.get(FOLDER):
        report(trained(args, Path(folder)), args.json)
        sys.stdout.flush()
        os._exit(0)  # as after any error under NCCL: the group would wait for ranks that do not exist
    with tempfile.TemporaryDirectory() as made:
        library = build(Path(made))
        path = [str(ROOT), str(ROOT / "tests" / "support"), *filter(None, [os.environ.get("PYTHONPATH")])]
        changed = {
            FOLDER: made,
            "LD_PRELOAD": str(library),
            "TRITON_LIBCUDA_PATH": made,
            "CUDA_VISIBLE_DEVICES": "0",
            "TORCHINDUCTOR_CACHE_DIR": f"{made}/inductor",
            "TRITON_CACHE_DIR": f"{made}/triton",  # whose kernels are counted: all must be compiled now
            "PYTHONFAULTHANDLER": "1",
            "PYTHONPATH": os.pathsep.join(path),
        }
        return subprocess.run([sys.executable, *sys.argv], env={**os.environ, **changed}, check=False).returncode


def build(folder: Path) -> Path:
    """Compile the stubs, and a function that returns 0 for each other that is called or that the driver's header names.

    Of cuBLASLt only what needs a GPU is replaced: the real library checks the descriptions of products.
    """
    packages = Path(sysconfig.get_path("purelib"))
    driver = next(packages.glob("nvidia/*/include/cuda.h"), None)
    if driver is None:
        sys.exit(f"{sys.executable} has no CUDA build of torch; use the python of an environment made by env/gpu/install")
    headers = [*packages.glob("nvidia/*/include"), packages / "transformer_engine" / "common" / "include"]
    compiler = ["cc", "-fPIC", "-O1", *(f"-I{each}" for each in headers)]  # of C++ too, by a file's name
    stubs = [folder / f"{source.stem}.o" for source in STUBS]
    for source, compiled in zip(STUBS, stubs):
        subprocess.run([*compiler, "-c", source, "-o", compiled], check=True)
    wanted = set(re.findall(r"\bcu[A-Z]\w+", driver.read_text()))
    called = r" U ((?:(?:__)?cuda[A-Z]|cublas(?!Lt(?:GetVersion|Matrix|MatmulDesc|MatmulPreference))|nccl[A-Z])\w*)"
    for each in [*packages.glob("torch/lib/*.so"), *packages.glob("transformer_engine/wheel_lib/*.so")]:
        wanted.update(re.findall(called, symbols("-D", each)))
    missing = wanted - set(re.findall(r" T (\w+)", symbols(*stubs)))
    (folder / "rest.c").write_text("".join(f"long {name}(void) {{ return 0; }}\n" for name in sorted(missing)))
    library = folder / LIBRARY
    # Lazy: Transformer Engine's library, in which the stub of attention calls functions, is loaded later.
    linked = ["-shared", "-Wl,-z,lazy", f"-Wl,-soname,{LIBRARY}", *stubs, folder / "rest.c", "-o", library]
    subprocess.run([*compiler, *linked], check=True)
    return library


def symbols(*words: str | Path) -> str:
    return subprocess.run(["nm", *words], check=True, capture_output=True, text=True).stdout


class Enough(Exception):
    """Raised after the last step, since saving the checkpoint would write gigabytes."""


def trained(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What the training shows."""
    import torch
    import torch.distributed as dist
    from msgspec.structs import replace
    from random_batches import PackedBatches, RandomBatches, train_job

    from curricula.model import train
    from curricula.model.config import PRESETS, EngineConfig
    from curricula.model.memory import Layout, step_memory
    from curricula.model.runtime import distributed

    world = args.data_parallel * args.tensor_parallel
    if world > 1:
        os.environ.update(RANK="0", WORLD_SIZE=str(world), LOCAL_RANK="0")
        store = dist.HashStore()
        distributed._shared_store = lambda ranks: store  # type: ignore[assignment]
    dist.all_gather_object = lambda values, own, group=None: values.__setitem__(slice(None), [own] * len(values))
    train.initialize = lambda *_: None  # type: ignore[assignment] # draws on the CPU that nothing would read
    model = PRESETS[args.model] if args.layers is None else replace(PRESETS[args.model], layers=args.layers)
    engine = EngineConfig(backend=args.backend, fp8=args.fp8, recompute_layers=args.recompute_layers)
    batches = (PackedBatches if args.packed else RandomBatches)(
        sequence_length=args.sequence_length,
        global_batch=args.micro_batch * args.accumulation * args.data_parallel,
        total_steps=args.steps,
        vocabulary=model.vocabulary,
    )
    job = train_job(
        folder / "run",
        model=model,
        micro_batch=args.micro_batch,
        tensor_parallel=args.tensor_parallel,
        engine=engine,
        packed=args.packed,
    )
    waits: collections.Counter[str] = collections.Counter()
    hears = ctypes.CFUNCTYPE(None)(lambda: waits.update([caller()]))
    ctypes.CDLL(LIBRARY).call_at_waits(hears)

    def progress(done: int, total: int, **numbers: Any) -> None:
        print(f"step {done} of {total}", file=sys.stderr, flush=True)
        if done == total:
            raise Enough
        waits.clear()

    with contextlib.suppress(Enough):
        train.train(job, batches, progress)
    layout = Layout(args.micro_batch, args.sequence_length, args.tensor_parallel, args.data_parallel, engine)
    estimate = step_memory(model, layout)
    return {
        "command": " ".join(["tests/gpu/dry_run.py", *sys.argv[1:]]),
        "torch": torch.__version__,
        "peak_gib": torch.cuda.max_memory_allocated() / GIB,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
        "estimated_peak_gib": (estimate.total - estimate.other - estimate.nccl) / GIB,
        "estimate_gib": (estimate.total - estimate.nccl) / GIB,
        **compilation(),
        "waits": dict(waits),
        "kernels": kernels(folder / "triton"),
    }


def caller() -> str:
    """The line of the suite at which the process is, and the innermost one, if that is another's."""
    stack = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
    own = [frame for frame in stack if frame.filename.startswith(str(ROOT / "curricula"))]
    places = dict.fromkeys(f"{Path(it.filename).name}:{it.lineno} {it.name}" for it in [*own[-1:], *stack[-1:]])
    return " > ".join(places)


def compilation() -> dict[str, Any]:
    from torch._dynamo.utils import counters, get_compilation_metrics

    return {
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
        "recompiles": [each.recompile_reason for each in get_compilation_metrics() if each.recompile_reason],
    }


def kernels(folder: Path) -> list[dict[str, Any]]:
    """The registers of each compiled kernel, and the bytes that a thread spills. A name can have several, to choose from."""
    import triton

    found = []
    for file in sorted(folder.rglob("*.cubin"), key=lambda file: file.name):
        used = subprocess.check_output([triton.knobs.nvidia.cuobjdump.path, "-res-usage", file], text=True)
        size = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", used)}
        found.append({"kernel": file.stem, "registers": size["REG"], "spilled_bytes": size["STACK"] + size["LOCAL"]})
    return found


def report(found: dict[str, Any], file: Path | None) -> None:
    print(f"torch {found['torch']}: {found['command']}")
    print(f"peak     {found['peak_gib']:.2f} GiB allocated, by the estimate {found['estimated_peak_gib']:.2f}")
    print(f"         {found['reserved_gib']:.2f} GiB reserved, by the estimate at most {found['estimate_gib']:.2f}")
    print(f"compiled {found['graphs']} graphs, with {found['graph_breaks']} breaks; {len(found['recompiles'])} again")
    for reason in found["recompiles"]:
        print(f"         again since {reason}")
    print(f"waits    {sum(found['waits'].values())} in a step")
    for place, times in found["waits"].items():
        print(f"         {times} x {place}")
    print("kernels  registers, bytes spilled by a thread")
    for kernel in found["kernels"]:
        print(f"         {kernel['registers']:3} {kernel['spilled_bytes']:5}  {kernel['kernel']}")
    if file:
        file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
