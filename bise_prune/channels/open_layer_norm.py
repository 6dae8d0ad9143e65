"""Layer norm over open channels only, as the paper's gates on feed-forward outputs of BERT want it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalise_open(
    gate: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer norm with mean and variance over the open channels of the last dimension; closed ones pass as they are.

    Args:
        gate: 1 = open, 0 = closed, shape (channels,); gradients reach it.
        input: shape (..., channels).
        normalized_shape: as in ``torch.nn.functional.layer_norm``, from where the further arguments are known, too.
        weight: shape (channels,).
        bias: shape (channels,).
        eps: added to the variance.
    """
    gate = gate.to(input.dtype)
    count = gate.sum().clamp(min=1)
    centred = input - (input * gate).sum(-1, keepdim=True) / count
    variance = (centred.square() * gate).sum(-1, keepdim=True) / count
    output = centred * (variance + eps).rsqrt()
    output = output if weight is None else output * weight
    output = output if bias is None else output + bias
    return torch.lerp(input, output, gate.expand_as(input))
