"""The step function with the slope of the sigmoid."""

import pytest
import torch

from bise_prune.gates.step import step_gate


def test_step_gate_is_the_step_with_the_sigmoids_slope():
    logits = torch.tensor([-2.0, -1e-30, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    gate = step_gate(logits, 0.25)
    assert gate.tolist() == [0, 0, 1, 1]
    gate.sum().backward()
    expected = torch.autograd.functional.jacobian(lambda m: torch.sigmoid(m / 0.25), logits.detach()).diagonal()
    assert torch.allclose(logits.grad, expected)


@pytest.mark.parametrize(("temperature", "slope"), [(1.0, 0.25), (2.0**-10, 256.0)])
def test_slope_at_zero(temperature, slope):
    logits = torch.zeros(1, requires_grad=True)
    step_gate(logits, temperature).sum().backward()
    assert logits.grad.item() == slope
