"""The curve over thresholds."""

import pytest
import torch
from cases import biased_loader, images, random_masks

from bise_prune import apply_masks, evaluate, prune
from bise_prune.diagnostics.sweep import threshold_sweep
from bise_prune.errors import ConfigError
from bise_prune.metrics.subgroups import aligned_values


def test_the_sweep_goes_from_the_dense_network_to_none(trained):
    masks, loader = random_masks(trained, images(), "tied", 2), biased_loader(n=90)
    aligned = aligned_values(loader.data.target, loader.data.bias, 3)
    points = threshold_sweep(trained, masks, loader, aligned, images(), zetas=(0, 0.2, 0.5, 0.8, 1))
    assert [point.closed for point in points] == sorted(point.closed for point in points)
    assert points[0].closed == 0 and points[0].sparsity == 0 and points[0].flops == 1
    assert points[0].evaluation == evaluate(trained, loader, aligned)
    assert points[2].evaluation == evaluate(apply_masks(trained, masks, images()), loader, aligned)
    assert points[2].sparsity == pytest.approx(prune(trained, masks, images()).plan.sparsity)
    by_hand = sum(int((torch.sigmoid(logits) < 0.8).sum()) for logits in masks.logits.values())
    assert points[3].closed == by_hand
    assert points[4].closed == masks.num_channels and points[4].sparsity is None
    with pytest.raises(ConfigError, match=r"zetas = \[2\]"):
        threshold_sweep(trained, masks, loader, aligned, images(), zetas=(2,))
