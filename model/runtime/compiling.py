"""Settles how torch's compiler works in a process that shares its node with others."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

MOST_THREADS = 8
"""The kernels of one layer keep no more compiling processes busy."""


def share_compiler(
    cache: Path | None, processes: int, cores: int, environment: MutableMapping[str, str] = os.environ
) -> None:
    """Keep compiled code in `cache`, for all processes and later starts, and compile with this process's share of `cores`.

    By default each process of a node starts 32 others to compile, and a temporary folder that a restart does not find.
    What the environment already says stays. To be called before the first compilation.
    """
    if cache is not None:
        environment.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
        environment.setdefault("TRITON_CACHE_DIR", str(cache / "triton"))
    threads = max(1, min(MOST_THREADS, cores // processes))
    threads = int(environment.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads)))
    if compiler := sys.modules.get("torch._inductor.config"):  # it read the environment when it was imported
        compiler.compile_threads = threads  # type: ignore[attr-defined]
