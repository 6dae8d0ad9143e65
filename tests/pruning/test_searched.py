"""Masks whose search has met its target are pruned by as they are."""

import pytest
import torch
from cases import images, network, random_masks

from bise_prune import MaskSet, gate_sites, measure, prune
from bise_prune.config import Target
from bise_prune.pruning.searched import prune_as_searched


@pytest.mark.parametrize("of", ["sparsity", "flops"])
def test_a_target_that_the_search_has_met_is_left_as_searched(of):
    model, inputs = network("resnet"), images()
    masks = random_masks(model, inputs, "tied")
    plain = prune(model, masks, inputs)
    left = plain.plan.macs[1] / plain.plan.macs[0]
    target = Target.of(plain.plan.sparsity, None, None) if of == "sparsity" else Target.of("auto", left, None)
    result = prune_as_searched(model, masks, inputs, target)
    assert result.plan.target["by"] == "search"
    assert result.plan.target["reached"] == pytest.approx(result.plan.target["asked"])
    assert all(torch.equal(result.plan.keep[name], kept) for name, kept in masks.keep.items())
    assert torch.equal(result.model(inputs), plain.model(inputs))


def test_a_target_that_the_search_has_missed_is_left_to_the_ranking():
    model, inputs = network("resnet"), images()
    masks = random_masks(model, inputs, "tied")
    sparsity = prune(model, masks, inputs).plan.sparsity
    assert prune_as_searched(model, masks, inputs, Target.of(sparsity + 0.05, None, None)) is None


def test_a_network_that_is_smaller_than_asked_is_left_as_searched():
    model, inputs = network("resnet"), images()
    masks = random_masks(model, inputs, "tied")
    sparsity = prune(model, masks, inputs).plan.sparsity
    target = Target.of(sparsity - 0.2, None, None)
    assert prune_as_searched(model, masks, inputs, target) is None
    result = prune_as_searched(model, masks, inputs, target, or_smaller=True)
    assert result.plan.target["reached"] == pytest.approx(sparsity) and result.plan.sparsity == sparsity


def test_masks_that_leave_a_dead_network_are_left_to_the_ranking():
    model, inputs = network("simple_convnet"), images()
    masks = MaskSet({site.name: torch.full((site.num_channels,), -1.0) for site in gate_sites(model, inputs)})
    assert prune_as_searched(model, masks, inputs, Target.of(0.9, None, None)) is None


def test_a_target_is_judged_at_the_widths_that_the_search_has_counted():
    model, inputs = network("resnet"), images()
    masks = random_masks(model, inputs, "tied")
    rounded = prune(model, masks, inputs, round_to=4)
    target = Target.of(rounded.plan.sparsity, None, None)
    for multiple in (1, 4):
        result = prune_as_searched(model, masks, inputs, target, counted_at=4, round_to=multiple)
        assert result.plan.target["by"] == "search"
        same = prune(model, masks, inputs, round_to=multiple).plan
        assert (result.plan.params, result.plan.target["reached"]) == (same.params, pytest.approx(same.sparsity))


def test_widths_are_rounded_up_after_the_target_is_met():
    model, inputs = network("resnet"), images()
    masks = random_masks(model, inputs, "tied")
    plain = prune(model, masks, inputs)
    result = prune_as_searched(model, masks, inputs, Target.of(plain.plan.sparsity, None, None), round_to=2)
    assert result.plan.target["by"] == "search" and result.plan.rounding["multiple"] == 2
    assert measure(result.model, inputs).params >= measure(plain.model, inputs).params
    convolutions = [m for m in result.model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(layer.out_channels % 2 == 0 for layer in convolutions)
