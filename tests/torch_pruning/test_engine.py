"""Both engines agree where torch-pruning can follow."""

import torch
from cases import images, network, random_masks

from bise_prune import prune


def test_both_engines_agree_where_torch_pruning_can_follow():
    model, inputs = network("resnet"), images()
    for placement in ("tied", "paper"):
        masks = random_masks(model, inputs, placement)
        ours = prune(model, masks, inputs, joins="intersection").model
        theirs = prune(model, masks, inputs, engine="torch-pruning").model
        for slim in (ours, theirs):
            assert torch.allclose(slim(inputs), ours(inputs), rtol=0, atol=1e-6)
        assert sum(p.numel() for p in ours.parameters()) <= sum(p.numel() for p in theirs.parameters())
