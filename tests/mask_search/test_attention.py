"""The search with gates inside attention."""

import dataclasses

import pytest
import torch
from awkward import masks_for
from cases import slow
from torch.nn.functional import cross_entropy
from transformers_at_random import RandomTransformer

from bise_prune import Budget, SearchConfig, gate_sites, prune, search
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.mask_search.gate_cost import GateCost
from bise_prune.mask_search.speed import Speedups
from bise_prune.tracing import trace

PAPER = dict(method="paper", anneal_every=1, min_temperature=0.2, head_epochs=1)
STEPS = dict(steps=48)


def biased_tokens(count=180, seed=0):
    """Sequences whose first number says the class, and whose second, which is easier to read, nearly always does."""
    draw = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 3
    bias = torch.where(torch.rand(count, generator=draw) < 0.8, classes, (classes + 1) % 3)
    x = torch.randn(count, 5, 5, generator=draw, dtype=torch.float64)
    x[:, :, 0] += classes[:, None]
    x[:, :, 1] += 2 * bias[:, None]
    return BiasedDataset(x, classes, bias[:, None])


def trained(seed, data):
    model = RandomTransformer(seed).double()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        cross_entropy(model(data.inputs), data.target).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize(("seed", "options"), [(0, PAPER), (5, PAPER), (0, STEPS), *slow((5, STEPS))])
def test_shortcuts_change_no_mask(seed, options):
    data = biased_tokens()
    model, val = trained(seed, data), BatchLoader(biased_tokens(60, 1), 30)
    assert any("@" in site.name for site in gate_sites(model, data.inputs[:2]))
    fast, plain = (
        search(model, BatchLoader(data, 30, shuffle=True, seed=0), SearchConfig(**options), val, speedups=speedups)
        for speedups in (None, Speedups(**{field.name: False for field in dataclasses.fields(Speedups)}))
    )
    assert fast.masks.keep.keys() == plain.masks.keep.keys()
    assert all(torch.equal(mask, plain.masks.keep[name]) for name, mask in fast.masks.keep.items())


def test_a_budget_is_what_is_left_after_removal():
    data = biased_tokens()
    model = trained(5, data)
    config = SearchConfig(steps=48, budget=Budget(share=0.6))
    found = search(model, BatchLoader(data, 30, seed=0), config, BatchLoader(biased_tokens(60, 1), 30))
    plan = prune(model, found.masks, data.inputs[:2]).plan
    assert 0.5 < plan.macs[1] / plan.macs[0] <= 0.6


def runs_once(seed):
    """Whether no block runs twice: what both runs keep is more than what either needs."""
    blocks = RandomTransformer(seed).blocks
    return len(set(map(id, blocks))) == len(blocks)


@pytest.mark.parametrize(("of", "multiple"), [("flops", 4), ("params", 1), *slow(("flops", 1), ("params", 4))])
@pytest.mark.parametrize("placement", ["all", "tied"])
@pytest.mark.parametrize("seed", [seed for seed in range(16) if runs_once(seed)])
def test_the_cost_of_gates_is_that_of_the_plan(seed, placement, of, multiple):
    model, inputs = RandomTransformer(seed).eval().double(), torch.randn(2, 4, 5, dtype=torch.float64)
    masks = masks_for(model, inputs, placement, seed, 0.5)
    for logits in masks.logits.values():
        logits[0] = 1.0  # where nothing is left, a channel may stay since its size is asked for
    sites, plan = gate_sites(model, inputs, placement), prune(model, masks, inputs, round_to=multiple).plan
    gates = [plan.keep[site.name].double() for site in sites]
    cost = GateCost(trace(model, inputs), model, sites, of, multiple=multiple)(gates)
    left = {"flops": plan.macs[1] / plan.macs[0], "params": plan.params[1] / plan.params[0]}[of]
    assert float(cost) == pytest.approx(left, abs=0.02 if multiple == 1 else 0.1)  # of heads of a few channels
