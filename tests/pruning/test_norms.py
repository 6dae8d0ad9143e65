"""Exact removal in front of norms over channels: whole groups, means over channels, residual streams."""

import pytest
import torch
from awkward import masks_for
from cases import slow
from normed_at_random import NormedNetwork

from bise_prune import apply_masks, prune
from bise_prune.errors import ModelError, PruningError


def inputs_of(model, count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if model.reads == "words":
        return torch.randint(11, (count, size), generator=generator)
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=generator)


def outcome(seed, placement, joins):
    model = NormedNetwork(seed).eval().double()
    inputs = inputs_of(model, 2, 5)
    try:
        masks = masks_for(model, inputs, placement, seed, (0.3, 0.5, 0.7)[seed % 3])
        result = prune(model, masks, inputs, joins=joins, tolerance=1e-10)
    except (ModelError, PruningError) as error:
        assert "no closed channel of this network" in str(error) or "a dead network" in str(error), error
        return "refused"
    masked = apply_masks(model, masks, inputs)
    for count, size in ((1, 5), (3, 7)):
        batch = inputs_of(model, count, size, seed)
        with torch.no_grad():
            assert torch.allclose(result.model(batch), masked(batch), rtol=0, atol=1e-10)
    assert sum(parameter.numel() for parameter in result.model.parameters()) == result.plan.params[1]
    return result.plan.macs[1] / result.plan.macs[0]


@pytest.mark.parametrize("joins", ["intersection", "expand"])
@pytest.mark.parametrize("placement", ["tied", "streams", "paper"])
@pytest.mark.parametrize("start", [0, 10, *slow(20, 30, 40, 50, 60, 70, 80, 90)])
def test_the_slim_network_is_the_masked_one(start, placement, joins):
    outcomes = [outcome(seed, placement, joins) for seed in range(start, start + 10)]
    assert outcomes.count("refused") <= 5, outcomes
