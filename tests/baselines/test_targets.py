"""Criteria that only rank prune to a target."""

import torch
from cases import biased_loader, images

from bise_prune import prune
from bise_prune.baselines.magnitude import magnitude_masks
from bise_prune.baselines.random_scores import random_masks as random_scores
from bise_prune.baselines.taylor import taylor_masks
from bise_prune.models.simple_convnet import SimpleConvNet


def test_criteria_prune_to_a_target():
    trained = SimpleConvNet(3, widths=(24, 32, 40), kernel_size=3).eval()
    for masks in (
        random_scores(trained, images(), seed=1),
        magnitude_masks(trained, images()),
        taylor_masks(trained, biased_loader()),
    ):
        plan = prune(trained, masks, images(), 0.5).plan
        assert abs(plan.sparsity - 0.5) <= 0.01
    first, again, other = (random_scores(trained, images(), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.logits["blocks.0.0"], again.logits["blocks.0.0"])
    assert not torch.equal(first.logits["blocks.0.0"], other.logits["blocks.0.0"])
