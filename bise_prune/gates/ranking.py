"""Ranking of channels: the order in which channels are closed to reach a target size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def least_open(num_channels: int, floor: float) -> int:
    """Return how many channels of a site always stay open when a target is reached by ranking.

    Args:
        num_channels: number of channels of the site.
        floor: share of its channels that stays open, rounded up to a whole channel; at least one channel does.
    """
    return max(1, math.ceil(floor * num_channels - 1e-9))


_STEP = 1e-12  # far below the resolution of mask logits in float32, far above denormal numbers


def tie_free(parts: Sequence[Tensor]) -> list[Tensor]:
    """Return scores in float64 that keep the order of all mask logits, but differ where mask logits are equal.

    torch-pruning removes *all* channels at its threshold and skips a layer that would be left empty, so that with equal
    scores more or fewer channels than asked for would go. Equal mask logits are ordered by their relative position in
    their layer, which distributes them over the layers.

    Args:
        parts: mask logits of shape (channels,), one tensor per layer.

    >>> tie_free([torch.tensor([0.0, -1.0]), torch.tensor([0.0])])[0].argsort().tolist()
    [1, 0]
    """
    scores = torch.cat([part.detach().cpu().double() for part in parts])
    position = torch.cat([torch.arange(len(part)) / len(part) for part in parts])
    order = position.argsort(stable=True)
    order = order[scores[order].argsort(stable=True)]
    ranked = scores[order].tolist()
    for i in range(1, len(ranked)):
        ranked[i] = max(ranked[i], ranked[i - 1] + _STEP)
    scores[order] = torch.tensor(ranked, dtype=torch.float64)
    return list(scores.split([len(part) for part in parts]))
