"""Batch norms with fixed statistics, computed as the affine maps that they are.

An affine map keeps only its scale for the backward pass. Torch's batch norm keeps its input, even if neither its weight
nor its statistics get a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor


def affine_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """Compute a batch norm of these arguments as an affine map; None if it is trained or updates its statistics."""
    if training or running_mean is None or running_var is None:
        return None
    if any(tensor is not None and tensor.requires_grad for tensor in (weight, bias)):
        return None
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    shift = shift if bias is None else shift + bias
    shape = (1, -1) + (1,) * (input.ndim - 2)
    return torch.addcmul(shift.view(shape), input, scale.view(shape))
