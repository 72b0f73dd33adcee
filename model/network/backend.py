"""Which of three backends computes the network, and why.

- te: Transformer Engine's layers: fused attention, norms and rotary positions, and products in 8 bits as an option.
- torch: our own layer (`transformer.py`), compiled. The same speed in bfloat16, and no package beside torch.
- cpu: the same layer, not compiled, in float32. What a laptop and the tests use.

Weights and checkpoints do not depend on it.
"""

from __future__ import annotations

import dataclasses
import importlib.util

from curricula.errors import UsageError
from curricula.model.config import EngineConfig
from curricula.model.runtime.distributed import Parallel

# The modules that torch loads the kernels of `EngineConfig.attention` from.
ATTENTION_MODULES = {"FA3": "flash_attn_interface", "FA4": "flash_attn.cute"}


@dataclasses.dataclass(frozen=True)
class Backend:
    """The choice, resolved against the machine."""

    name: str
    reason: str
    fp8: str | None = None
    attention: str = "torch"
    sequence_parallel: bool = False
    recompute_layers: int = 0

    @property
    def compiled(self) -> bool:
        """Whether our own kernels go through torch.compile."""
        return self.name != "cpu"


def choose_backend(engine: EngineConfig, parallel: Parallel, packed: bool = False) -> Backend:
    """Resolve `engine` on this machine; `packed` rows need attention that takes masks, which Transformer Engine's does not.

    Raises UsageError when the backend asked for cannot run here.
    """
    on_gpu = parallel.device.type == "cuda"
    has_te = _is_installed("transformer_engine")
    wanted = "te" if engine.fp8 and engine.backend == "auto" else engine.backend
    if wanted == "te" and not (on_gpu and has_te):
        lacking = "transformer_engine is not installed" if on_gpu else "there is no CUDA device"
        setting = f'engine.fp8 is "{engine.fp8}"' if engine.fp8 else 'engine.backend is "te"'
        raise UsageError(f"{setting}, but {lacking}; install curricula[gpu] on a GPU machine, or leave the setting out")
    if engine.attention != "torch":
        module = ATTENTION_MODULES[engine.attention]
        if not on_gpu or not _is_installed(module):
            lacking = f"the package {module} is not installed" if on_gpu else "there is no CUDA device"
            raise UsageError(f'engine.attention is "{engine.attention}", but {lacking}; leave the setting out')
    if wanted == "cpu" and on_gpu:
        raise UsageError('engine.backend is "cpu", but this is a GPU machine; use "auto", or hide the GPUs')
    if wanted == "te" and packed:
        setting = f'engine.fp8 is "{engine.fp8}"' if engine.fp8 else 'engine.backend is "te"'
        raise UsageError(f"{setting}, whose attention does not keep packed conversations apart; set packing to false")
    if wanted == "auto":
        if not on_gpu:
            name, reason = "cpu", "there is no CUDA device"
        elif packed:
            name, reason = "torch", "packed rows need its attention"
        elif has_te:
            name, reason = "te", "transformer_engine is installed"
        else:
            name, reason = "torch", "transformer_engine is not installed"
    else:
        name, reason = wanted, "engine.fp8 needs it" if engine.backend == "auto" else "engine.backend asks for it"
    return Backend(
        name=name,
        reason=reason,
        fp8=engine.fp8,
        attention=engine.attention,
        sequence_parallel=engine.sequence_parallel and parallel.tensor_parallel > 1,
        recompute_layers=engine.recompute_layers,
    )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def describe(backend: Backend, parallel: Parallel) -> str:
    """One line for the log: the backend, its reason, and the layout of processes."""
    precision = f"fp8 ({backend.fp8} scaling)" if backend.fp8 else str(parallel.precision).removeprefix("torch.")
    layout = f"data parallel {parallel.data_parallel}, tensor parallel {parallel.tensor_parallel}"
    layout += " with sequence parallel" if backend.sequence_parallel else ""
    layout += f", {backend.recompute_layers} layers recomputed" if backend.recompute_layers else ""
    attention = f", attention by {backend.attention}" if backend.attention != "torch" else ""
    return f"backend: {backend.name} ({backend.reason}); {precision}{attention}; {layout}"
