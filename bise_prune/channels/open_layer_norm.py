"""Layer norm over open channels only, for the gates on the outputs of feed-forward blocks in BERT."""

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
    """Layer norm with mean and variance over the open channels of the last dimension; closed channels pass unchanged.

    Args:
        gate: 1 = open, 0 = closed, shape (channels,); gradients reach it.
        input: the tensor to normalise, shape (..., channels).
        normalized_shape: not used; it is there since the function takes the arguments of
            ``torch.nn.functional.layer_norm``.
        weight: factor of each normalised channel, shape (channels,).
        bias: additive bias of each normalised channel, shape (channels,).
        eps: number added to the variance.

    Returns:
        Tensor of the shape and dtype of ``input``.
    """
    gate = gate.to(input.dtype)
    count = gate.sum().clamp(min=1)
    centred = input - (input * gate).sum(-1, keepdim=True) / count
    variance = (centred.square() * gate).sum(-1, keepdim=True) / count
    output = centred * (variance + eps).rsqrt()
    output = output if weight is None else output * weight
    output = output if bias is None else output + bias
    return torch.lerp(input, output, gate.expand_as(input))
