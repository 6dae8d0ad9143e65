"""Algorithm 1 against its literal version, and what it leaves alone."""

import copy

import pytest
import torch
from cases import SHORT, biased_data, biased_loader, images, network, random_masks
from oracles import literal_algorithm_1

from bise_prune import SearchConfig, search
from bise_prune.errors import ModelError
from bise_prune.mask_search.weights import subgroup_weights
from bise_prune.metrics.subgroups import count_subgroups


@pytest.mark.parametrize("mi_weight", [0.0, 1.0])
def test_search_equals_the_literal_algorithm(mi_weight):
    model = network("mlp").double()
    data = biased_data(n=60, rho=0.7)
    batches = [
        {"input": data.inputs[rows].double(), "target": data.target[rows], "bias": data.bias[rows, 0]}
        for rows in torch.arange(60).split(20)
    ]
    table = subgroup_weights(count_subgroups(data.target, data.bias[:, 0], 3, 3))
    literal = literal_algorithm_1(
        model, batches, head_epochs=4, kappa=0.5, upsilon=3, tau_min=0.05, gamma=mi_weight, seed=7,
        weights={(y, b): float(table[y, b]) for y in range(3) for b in range(3)},
    )  # fmt: skip
    config = SearchConfig(head_epochs=4, anneal_every=3, min_temperature=0.05, mi_weight=mi_weight, seed=7)
    found = search(model, batches, config)
    assert len(found.history) == 15
    for expected, logits in zip(literal.values(), found.last.logits.values(), strict=True):
        assert torch.equal(expected >= 0, logits >= 0)
        assert torch.allclose(expected, logits, rtol=0, atol=1e-10)
    assert 0 < found.last.num_closed < found.last.num_channels


def test_search_leaves_the_model_alone_and_learns_masks_only():
    model = network("resnet").train()
    before = copy.deepcopy(model.state_dict())
    found = search(model, biased_loader(), SearchConfig(**SHORT))
    assert model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert any(bool((logits != 0).any()) for logits in found.last.logits.values())


def test_equal_seeds_give_equal_masks_and_other_seeds_do_not():
    model, loader = network("simple_convnet"), biased_loader()
    first, again, other = (search(model, loader, SearchConfig(**SHORT, seed=seed)).last for seed in (1, 1, 2))
    assert all(torch.equal(first.logits[name], again.logits[name]) for name in first.logits)
    assert any(not torch.equal(first.logits[name], other.logits[name]) for name in first.logits)


def test_masks_may_start_above_zero():
    model, loader = network("simple_convnet"), biased_loader()
    first = [
        search(model, loader, SearchConfig(**SHORT, initial_logit=start)).history[0].closed for start in (0.0, 0.1, 9.0)
    ]
    assert first[0] > first[1] >= first[2] == 0


def test_a_search_may_start_from_masks():
    model, loader = network("simple_convnet"), biased_loader()
    start = random_masks(model, images(), "tied")
    frozen = SearchConfig(**SHORT, mask_lr=1e-12, mask_weight_decay=0.0)
    found = search(model, loader, frozen, start=start)
    assert all(torch.allclose(found.last.logits[name], start.logits[name]) for name in start.logits)
    with pytest.raises(ModelError, match="belong to another network or placement"):
        search(network("mlp"), loader, frozen, start=start)
