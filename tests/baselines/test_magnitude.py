"""Magnitudes are norms of filters."""

import torch
from cases import images, network

from bise_prune import gate_sites
from bise_prune.baselines.magnitude import magnitude_masks


def test_magnitudes_are_norms_of_filters():
    model = network("simple_convnet")
    masks = magnitude_masks(model, images())
    for i in range(3):
        weight = model.blocks[i][0].weight
        expected = torch.stack([filter_.square().sum().sqrt() for filter_ in weight])
        assert torch.allclose(masks.logits[f"blocks.{i}.0"], expected)
    tied = network("resnet")
    scores = magnitude_masks(tied, images())
    site = next(site for site in gate_sites(tied, images()) if len({call.layer for call in site.calls}) > 1)
    squares = sum(
        tied.get_submodule(layer).weight.flatten(1).square().sum(1)
        for layer in dict.fromkeys(call.layer for call in site.calls)
    )
    assert torch.allclose(scores.logits[site.name], squares.sqrt())
