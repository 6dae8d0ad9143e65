"""The order in which a target closes channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def least_open(num_channels: int, floor: float) -> int:
    """Channels of a site that a target leaves open: the share ``floor``, and one at least."""
    return max(1, math.ceil(floor * num_channels - 1e-9))


_STEP = 1e-12  # far below what mask logits in float32 tell apart, far above denormal numbers


def tie_free(parts: Sequence[Tensor]) -> list[Tensor]:
    """Scores in float64 that keep the order of all logits, with equal ones told apart.

    torch-pruning removes *all* channels at its threshold and skips a layer that would be emptied, so ties would take
    more than was asked for, or nothing. Equal logits rank by their relative position in their layer, which spreads
    them over the layers.

    Args:
        parts: logits of shape (channels,), one tensor per layer.

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
