"""Norms over some of their channels: the open ones, or those that a slim network has."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, pad


def normalise_open(
    gate: Tensor,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Layer norm with mean and variance over the open channels of the last dimension; closed channels pass unchanged.

    Args:
        gate: 1 = open, 0 = closed, shape (channels,), or (N, channels) with one gate per sample; gradients reach it.
        input: the tensor to normalise, shape (N, ..., channels).
        normalized_shape: not used; it is there since the function takes the arguments of
            ``torch.nn.functional.layer_norm``.
        weight: factor of each normalised channel, shape (channels,).
        bias: additive bias of each normalised channel, shape (channels,).
        eps: number added to the variance.
        cudnn_enable: not used, either.

    Returns:
        Tensor of the shape and dtype of ``input``; float16 and bfloat16 are computed in float32.
    """
    given, input = input, _accurate(input)
    gate = gate.to(input.dtype)
    gate = gate if gate.ndim == 1 else gate.view(len(gate), *[1] * (input.ndim - 2), -1)
    count = gate.sum(-1, keepdim=True).clamp(min=1)
    centred = input - (input * gate).sum(-1, keepdim=True) / count
    variance = (centred.square() * gate).sum(-1, keepdim=True) / count
    output = centred * (variance + eps).rsqrt()
    output = output if weight is None else output * weight
    output = output if bias is None else output + bias
    return torch.lerp(input, output.to(input.dtype), gate.expand_as(input)).to(given.dtype)


def normalise_with_zeros(
    zeros: int,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    """Layer norm of the last dimension, some channels of which were zero and are not there any more.

    Args:
        zeros: number of channels that are not there.
        input: the tensor to normalise, shape (..., channels that are there).
        normalized_shape: not used; it is there since the function takes the arguments of
            ``torch.nn.functional.layer_norm``.
        weight: factor of each channel, shape (channels that are there,).
        bias: additive bias of each channel, of the same shape.
        eps: number added to the variance.
        cudnn_enable: not used, either.

    Returns:
        Tensor of the shape and dtype of ``input``.
    """
    width = input.shape[-1]
    weight, bias = (None if entries is None else pad(entries, (0, zeros)) for entries in (weight, bias))
    return layer_norm(pad(input, (0, zeros)), (width + zeros,), weight, bias, eps).narrow(-1, 0, width)


def normalise_part(
    share: float,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Root mean square norm of the last dimension, some channels of which were zero and are not there any more.

    Args:
        share: share of the channels that are there, in (0, 1].
        input: the tensor to normalise, shape (..., channels that are there).
        normalized_shape: not used; it is there since the function takes the arguments of
            ``torch.nn.functional.rms_norm``.
        weight: factor of each channel, shape (channels that are there,).
        eps: number added to the mean square; None = the smallest step of the dtype that is computed in.

    Returns:
        Tensor of the shape and dtype of ``input``; float16 and bfloat16 are computed in float32.
    """
    x = _accurate(input)
    smallest = torch.finfo(x.dtype).eps if eps is None else eps
    output = x * (x.square().mean(-1, keepdim=True) * share + smallest).rsqrt()
    return (output if weight is None else output * weight).to(input.dtype)


def _accurate(x: Tensor) -> Tensor:
    """A tensor in float32 or float64, so that squares do not overflow."""
    return x if x.dtype == torch.float64 else x.float()
