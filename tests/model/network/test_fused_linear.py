import pytest
import torch
from compilers import needs_compiler

from curricula.model.network.fused_linear import attach_sinks, linear


def weight_and_inputs(announced: bool | None) -> tuple[torch.nn.Parameter, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(6, 4, generator=generator, dtype=torch.float64))
    if announced is not None:
        weight.main_grad = torch.zeros_like(weight)
        attach_sinks([weight], announced)
    return weight, [torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(3)]


def gradients(announced: bool | None, compiled: bool = False) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The weight's gradient summed over three micro-batches, and those of the inputs."""
    weight, inputs = weight_and_inputs(announced)

    def step(x: torch.Tensor) -> torch.Tensor:
        return linear(x, weight).sin().sum()

    if compiled:
        step = torch.compile(step, fullgraph=True)
    for x in inputs:
        step(x.requires_grad_()).backward()
        if announced is not None:
            assert (weight.grad is not None) == announced  # Megatron-core's hooks look at this
            weight.grad = None
    return (weight.grad if announced is None else weight.main_grad), [x.grad for x in inputs]


def assert_same(ours, theirs) -> None:
    assert torch.allclose(ours[0], theirs[0], rtol=1e-12)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(ours[1], theirs[1]))


@pytest.mark.parametrize("announced", [False, True])
def test_gradients_summed_in_the_sink_equal_autograds(announced):
    assert_same(gradients(announced), gradients(None))


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("announced", [False, True])
def test_compiled_they_are_summed_in_the_sink_too(announced):
    assert_same(gradients(announced, compiled=True), gradients(None))
