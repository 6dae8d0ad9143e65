"""What a channel is worth: by how much the objective would rise without it, to the second order."""

from __future__ import annotations

import torch
from torch import Tensor


def worth_of(mean: Tensor, square: Tensor, closed: Tensor, batch_size: float) -> Tensor:
    """What each channel is worth, for an open one the rise if it closes, for a closed one the fall if it opens.

    The curvature is the mean square of the gradients of single samples, of which the gradient of a batch is the mean.

    Args:
        mean: mean of the gradient dJ/dgate over batches, shape (M,).
        square: mean of its square, shape (M,).
        closed: which channels are closed, bool of shape (M,).
        batch_size: number of samples of a batch.

    Returns:
        Shape (M,).
    """
    variance = (square - mean.square()).clamp(min=0)
    half = (batch_size * variance + mean.square()) / 2
    return torch.where(closed, -half, half) - mean
