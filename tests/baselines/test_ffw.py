"""FFW prunes weights and nothing else."""

import copy

import pytest
import torch
from cases import biased_loader

from bise_prune.baselines.ffw import ffw, weight_gate
from bise_prune.errors import ConfigError


def test_ffw_prunes_weights_and_nothing_else(trained):
    before = copy.deepcopy(trained.state_dict())
    temperatures = []
    found = ffw(
        trained, biased_loader(n=120, rho=1 / 3), lr=0.05, max_epochs=12,
        on_epoch=lambda epoch, temperature, information: temperatures.append(temperature),
    )  # fmt: skip
    assert len(found.information) == 12 and temperatures[0] == 1
    zeroed = 0
    for name, tensor in found.model.state_dict().items():
        gone = (tensor == 0) & (before[name] != 0)
        zeroed += int(gone.sum())
        assert torch.equal(tensor[~gone], before[name][~gone])
        assert not bool(gone.any()) or (name.startswith("blocks") and name.endswith("0.weight"))
    assert 0 < found.sparsity == zeroed / sum(p.numel() for p in trained.parameters())
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    with pytest.raises(ConfigError, match="FFW takes one bias, the data have 2"):
        ffw(trained, biased_loader(biases=2))


def test_ffw_cools_down_when_the_information_stalls(trained):
    temperatures = []
    ffw(
        trained, biased_loader(n=40), lr=1e-12, max_epochs=200, min_temperature=0.05,
        on_epoch=lambda epoch, temperature, information: temperatures.append(temperature),
    )  # fmt: skip
    assert temperatures == sorted(temperatures, reverse=True) and set(temperatures) == {1.0, 0.1}
    assert len(temperatures) < 60


def test_the_weight_gate_of_ffw():
    logits = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    gate = weight_gate(logits, 0.5)
    assert gate.tolist() == pytest.approx([2 / (1 + torch.e**4), 1, 1])
    gate.sum().backward()
    assert logits.grad[0] > 0 and logits.grad[1] > 0 and logits.grad[2] == 0  # all start at 0 and must be able to leave
