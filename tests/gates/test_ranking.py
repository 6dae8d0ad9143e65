"""Scores keep their order and never tie."""

import torch

from bise_prune.gates.ranking import tie_free


def test_scores_keep_the_order_and_never_tie():
    logits = torch.tensor([0.5, 0.0, -1.0, 0.0, 0.5, 0.0])
    first, second = tie_free([logits, logits.flip(0)])
    scores = torch.cat([first, second])
    assert len(scores.unique()) == 12
    for part in (first, second):
        assert part.argsort().tolist() == part.float().argsort(stable=True).tolist()
    assert torch.allclose(first, logits.double(), rtol=0, atol=1e-10)
