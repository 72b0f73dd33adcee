import pytest
import torch
import torch.nn.functional as F

from model.loss import token_losses


def test_token_losses_and_their_gradient_are_those_of_cross_entropy():
    torch.manual_seed(0)
    logits = torch.randn(5, 3, 11, dtype=torch.float32, requires_grad=True)
    labels = torch.randint(11, (3, 5))
    weight = torch.rand(3, 5)
    losses = token_losses(labels, logits)
    (losses * weight).sum().backward()
    again = logits.detach().clone().requires_grad_()
    expected = F.cross_entropy(again.permute(1, 2, 0), labels, reduction="none")
    (expected * weight).sum().backward()
    assert torch.allclose(losses, expected, atol=1e-6)
    assert torch.allclose(logits.grad, again.grad, atol=1e-6)
    assert losses.sum().item() == pytest.approx(expected.sum().item(), rel=1e-6)
