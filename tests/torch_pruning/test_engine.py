"""Both engines agree where torch-pruning can follow."""

import pytest
import torch
from cases import images, network, random_masks

from bise_prune import MaskSet, gate_sites, prune
from bise_prune.errors import ModelError


def test_both_engines_agree_where_torch_pruning_can_follow():
    model, inputs = network("resnet"), images()
    for placement in ("tied", "paper"):
        masks = random_masks(model, inputs, placement)
        ours = prune(model, masks, inputs, joins="intersection").model
        theirs = prune(model, masks, inputs, engine="torch-pruning").model
        for slim in (ours, theirs):
            assert torch.allclose(slim(inputs), ours(inputs), rtol=0, atol=1e-6)
        assert sum(p.numel() for p in ours.parameters()) <= sum(p.numel() for p in theirs.parameters())


def test_networks_that_torch_pruning_cannot_follow(monkeypatch):
    def failing(self, *arguments, **options):
        raise AttributeError("'NoneType' object has no attribute 'shape'")

    monkeypatch.setattr("torch_pruning.DependencyGraph.build_dependency", failing)
    model, inputs = network("mlp"), images()
    with pytest.raises(ModelError, match=r"cannot follow the channels of MLP \(AttributeError: 'NoneType'"):
        prune(model, random_masks(model, inputs, "tied"), inputs, engine="torch-pruning")


def test_torch_prunings_engine_keeps_a_channel_of_a_closed_layer():
    model, inputs = network("resnet"), images()
    masks = {site.name: torch.ones(site.num_channels) for site in gate_sites(model, inputs, "tied")}
    name = next(name for name in masks if "+" not in name)
    masks[name][:] = -1
    result = prune(model, MaskSet(masks), inputs, engine="torch-pruning")
    assert torch.allclose(result.model(inputs), result.masked(inputs), rtol=0, atol=1e-6)
