import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from compilers import needs_compiler

from curricula.model.network.swiglu import swiglu


def gate_up(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(3, 5, 14, generator=torch.Generator().manual_seed(0), dtype=dtype, requires_grad=True)


def test_the_gradient_is_that_of_the_formula():
    assert torch.autograd.gradcheck(swiglu, gate_up())


@pytest.mark.slow
@needs_compiler
def test_compiled_it_is_one_graph_and_the_same():
    ours, plain = gate_up(), gate_up()
    once = torch.compile(lambda x: (swiglu(x) ** 2).sum(), fullgraph=True)
    once(ours).backward()
    gate, up = plain.chunk(2, dim=-1)
    ((F.silu(gate) * up) ** 2).sum().backward()
    assert torch.allclose(ours.grad, plain.grad, rtol=1e-10)


def test_bfloat16_is_rounded_once():
    narrow = gate_up(torch.bfloat16)
    swiglu(narrow).sum().backward()
    exact = narrow.detach().double().requires_grad_()
    swiglu(exact).sum().backward()
    assert torch.equal(narrow.grad, exact.grad.bfloat16())


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_the_kernel_gives_the_same_in_tritons_interpreter():
    code = (
        "import torch; from curricula.model.network.swiglu import launch, swiglu_gradient\n"
        "for width in (7, 2048, 2500):\n"
        "    gate_up, d_output = torch.randn(3, 2 * width), torch.randn(3, width)\n"
        "    assert torch.allclose(launch(d_output, gate_up), swiglu_gradient(d_output, gate_up), atol=1e-5), width\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
