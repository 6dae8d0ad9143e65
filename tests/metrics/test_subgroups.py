"""Alignment is association, not frequency."""

import torch

from bise_prune.metrics.subgroups import aligned_bias_values, count_subgroups


def test_alignment_is_association_not_frequency():
    # CelebA: dark hair is aligned with men although most dark-haired people in it are women.
    counts = torch.tensor([[66874, 71629], [1387, 22880]])
    assert aligned_bias_values(counts).tolist() == [0, 1]
    assert count_subgroups(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0]), 2, 2).tolist() == [[0, 1], [2, 0]]
