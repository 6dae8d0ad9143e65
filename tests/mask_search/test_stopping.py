"""Stopping early changes no mask."""

import itertools

import pytest
import torch
from cases import SHORT, biased_data, biased_loader, network, slow

from bise_prune import SearchConfig, search
from bise_prune.data import BatchLoader
from bise_prune.mask_search.algorithm import _mask_epoch
from bise_prune.mask_search.assembly import assemble
from bise_prune.mask_search.step import MaskStep
from bise_prune.mask_search.stopping import is_settled, none_can_flip


@pytest.mark.parametrize("seed", [0, *slow(1, 2, 3)])
def test_stopping_early_changes_no_mask(seed):
    model = network("simple_convnet", seed)
    options = dict(anneal_every=4, min_temperature=1e-3, head_epochs=1, mask_lr=0.1, seed=seed)

    def run(early_stop):
        loader = BatchLoader(biased_data(seed=seed), 20, shuffle=True, seed=seed)
        return search(model, loader, SearchConfig(**options, early_stop=early_stop), biased_loader(n=60, rho=0.4))

    early, late = run(True), run(False)
    assert early.stopped_early and not late.stopped_early
    assert len(early.history) < len(late.history) == 40
    for rule in ("best", "last", "worst-group", "accuracy", "worst-class"):
        first, second = early.picks[rule].masks.keep, late.picks[rule].masks.keep
        assert all(torch.equal(first[site], second[site]) for site in first), rule
    assert early.history == late.history[: len(early.history)]


def test_a_mask_that_flips_and_comes_back_does_not_stand_still():
    config = SearchConfig(**SHORT, mask_lr=1e-9, initial_logit=1.0)
    run = assemble(network("simple_convnet"), BatchLoader(biased_data(), 20), config)

    def disturb():
        run.state.logits[0] = -1.0 if run.state.position.batches == 2 else 1.0

    step = MaskStep(run.state, run.labels, config, None)
    assert _mask_epoch(run, step, 1, 1.0, disturb).mask_flips == 1
    assert bool((run.state.logits > 0).all()) and not is_settled(run, [1e-3])
    assert _mask_epoch(run, step, 2, 1.0, lambda: None).mask_flips == 0
    assert is_settled(run, [1e-3])


def test_the_bound_stops_only_what_stands():
    m = torch.tensor([0.5, -0.4])
    still = dict(lr=0.01, momentum=0.9, weight_decay=1e-4, steps=100)
    calm = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1.0])
    assert none_can_flip(m, None, *calm, [2.0**-7] * 10, **still)
    pushed = torch.tensor([0.0, 0.0]), torch.tensor([100.0, 100.0])
    assert not none_can_flip(m, None, *pushed, [1.0] * 10, **still)  # too warm
    assert none_can_flip(m, None, *pushed, [2.0**-7] * 10, **still)
    assert not none_can_flip(torch.tensor([0.5, -1e-3]), None, *calm, [2.0**-7] * 10, **still)  # too near
    assert not none_can_flip(m, torch.tensor([9.0, 0.0]), *calm, [2.0**-7] * 10, **still)  # moving


def test_the_bound_holds_for_gradients_that_push_as_hard_as_it_allows():
    """A simulation of SGD on the worst gradients that the bound admits never crosses zero."""
    generator = torch.Generator().manual_seed(0)
    stopped = 0
    for _ in range(200):
        m0 = float(torch.rand((), generator=generator)) + 0.01
        temperature = 2.0 ** -float(torch.randint(1, 9, (), generator=generator))
        toward, steps, epochs = float(torch.rand((), generator=generator)) * 20, 20, 6
        settings = dict(lr=0.01, momentum=0.9, weight_decay=1e-4, steps=steps)
        tensors = torch.tensor([m0]), None, torch.tensor([-1.0]), torch.tensor([toward])
        if not none_can_flip(*tensors, [temperature] * epochs, **settings):
            continue
        stopped += 1
        m, velocity = m0, 0.0
        for _, step in itertools.product(range(epochs), range(steps)):
            gate = 2 * toward * 0.1 / steps + (2 * toward if step == 0 and velocity == 0 else 0)
            s = 1 / (1 + 2.718281828 ** (m / temperature))
            velocity = 0.9 * velocity + gate * s * (1 - s) / temperature + 1e-4 * m
            m -= 0.01 * velocity
            assert m > 0
    assert 20 < stopped < 200
