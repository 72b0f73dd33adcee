import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from compilers import needs_compiler
from forked import forkserver, started

from curricula.model.network.linear_cross_entropy import linear_cross_entropy

TOKENS, HIDDEN, VOCABULARY = 37, 16, 24


def problem(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Hidden states, weights, targets, and a mask of weights by which the losses are multiplied."""
    generator = torch.Generator().manual_seed(0)
    hidden = 3 * torch.randn(TOKENS, HIDDEN, generator=generator, dtype=dtype)
    weight = torch.randn(VOCABULARY, HIDDEN, generator=generator, dtype=dtype)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=generator)
    mask = torch.rand(TOKENS, generator=generator, dtype=dtype) * (torch.arange(TOKENS) % 3 > 0)
    return hidden, weight, targets, mask


def expected() -> tuple[torch.Tensor, ...]:
    """Losses and gradients by torch's own cross entropy in double precision."""
    hidden, weight, targets, mask = problem()
    hidden.requires_grad_(), weight.requires_grad_()
    losses = F.cross_entropy(hidden @ weight.t(), targets, reduction="none")
    (losses * mask).sum().backward()
    return losses.detach(), hidden.grad, weight.grad


def computed(dtype: torch.dtype = torch.float64, sink: torch.Tensor | None = None, **options) -> tuple:
    hidden, weight, targets, mask = problem(dtype)
    hidden.requires_grad_(), weight.requires_grad_()
    if sink is not None:
        weight.sink = sink
    losses = linear_cross_entropy(hidden, weight, targets, **options)
    (losses * mask).sum().backward()
    return losses.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("chunk", [5, TOKENS, 4096])
def test_losses_and_gradients_are_those_of_cross_entropy_for_any_chunk_and_mask(chunk):
    for ours, theirs in zip(computed(chunk=chunk), expected()):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_without_gradients_the_losses_are_the_same():
    hidden, weight, targets, _ = problem()
    with torch.no_grad():
        losses = linear_cross_entropy(hidden, weight, targets, chunk=7)
    assert torch.allclose(losses, expected()[0], atol=1e-12)


def test_the_weights_gradient_is_added_to_a_sink():
    sink = torch.ones(VOCABULARY, HIDDEN, dtype=torch.float64)
    losses, hidden_gradient, weight_gradient = computed(sink=sink)
    assert weight_gradient is None
    assert torch.allclose(hidden_gradient, expected()[1], atol=1e-12)
    assert torch.allclose(sink, 1 + expected()[2], atol=1e-12)


def test_bfloat16_is_rounded_once():
    hidden, weight, targets, mask = (
        tensor.double() if tensor.is_floating_point() else tensor for tensor in problem(torch.bfloat16)
    )
    hidden.requires_grad_()
    losses = F.cross_entropy((hidden @ weight.t()).bfloat16().double(), targets, reduction="none")
    (losses * mask).sum().backward()
    ours, gradient, _ = computed(torch.bfloat16)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours.double(), losses, rtol=1e-5, atol=1e-5)
    assert (gradient.double() - hidden.grad).norm() < 0.01 * hidden.grad.norm()


@needs_compiler
def test_compiled_it_is_the_same():
    for ours, theirs in zip(computed(compiled=True, chunk=TOKENS), expected()):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def compute_in_one_process(rank: int, size: int, port: int, results) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    hidden, weight, targets, mask = problem()
    part = weight.chunk(size)[rank].clone().requires_grad_()
    hidden.requires_grad_()
    losses = linear_cross_entropy(hidden, part, targets, group=dist.group.WORLD, chunk=8)
    (losses * mask).sum().backward()
    dist.all_reduce(hidden.grad)  # as Megatron-core's mappings sum it
    parts = [torch.empty_like(part) for _ in range(size)]
    dist.all_gather(parts, part.grad)
    if rank == 0:
        results.put([tensor.tolist() for tensor in (losses.detach(), hidden.grad, torch.cat(parts))])
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.forked
def test_a_vocabulary_split_over_two_processes_gives_the_same(free_port):
    results = forkserver().SimpleQueue()
    children = [started(compute_in_one_process, rank, 2, free_port, results) for rank in range(2)]
    for child in children:
        child.join(timeout=120)
    assert [child.exitcode for child in children] == [0, 0]
    for ours, theirs in zip(results.get(), expected()):
        assert torch.allclose(torch.tensor(ours, dtype=torch.float64), theirs, rtol=1e-12, atol=1e-12)
