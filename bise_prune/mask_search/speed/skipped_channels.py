"""Convolutions and linear layers that skip the work on closed channels.

A closed channel is zero in the whole batch, so it adds nothing to the layers that read it. The gradient of the channel
that produces it is zero, so it adds nothing to the gradients before it. Zeros are looked up in the tensors themselves,
which is exact for any network, whatever lies between a gate and the layer that reads it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_LEAST_MACS = 50_000_000  # of a call; below this, looking for zeros costs more than it saves


def without_closed_channels(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor | None:
    """Compute a call with frozen weights, skipping closed channels; None if the call is not worth it or not supported.

    Args:
        func: function that is called, such as ``F.conv2d``.
        args: its positional arguments.
        kwargs: its keyword arguments.
    """
    if func is F.linear:
        input, weight, bias = _linear(*args, **kwargs)
        options: tuple[Any, ...] | None = None
        worth = input.numel() * len(weight)
    elif func in _CONVOLUTIONS:
        input, weight, bias, stride, padding, dilation, groups = _convolution(*args, **kwargs)
        spatial = _CONVOLUTIONS[func]
        if groups != 1 or isinstance(padding, str) or input.ndim != spatial + 2:
            return None
        options = tuple(_as_tuple(option, spatial) for option in (stride, padding, dilation))
        worth = input.numel() * weight.numel() // (weight.shape[1] * math.prod(options[0]))
    else:
        return None
    if worth < _LEAST_MACS or weight.requires_grad or (bias is not None and bias.requires_grad):
        return None
    dim = 1 if options else input.ndim - 1
    live = live_channels(input, dim)
    if live is None and not input.requires_grad:
        return None
    return _LiveChannels.apply(input, weight, bias, options, live)  # type: ignore[no-any-return]


def live_channels(tensor: Tensor, dim: int) -> Tensor | None:
    """Numbers of the channels along ``dim`` that are not zero everywhere; None if no channel can be skipped.

    If every channel is zero, one is kept, since convolutions take no empty tensors.
    """
    others = [d for d in range(tensor.ndim) if d != dim]
    zero = ~tensor.narrow(0, 0, 1).ne(0).amax(others)  # in the first sample, which rules most out
    if not bool(zero.any()):
        return None
    candidates = zero.nonzero().flatten()
    zero[candidates] = ~tensor.index_select(dim, candidates).ne(0).amax(others)
    live = (~zero).nonzero().flatten()
    live = live if len(live) else candidates[:1]
    return live if len(live) < len(zero) else None


class _LiveChannels(torch.autograd.Function):
    """A convolution, or a linear layer if ``options`` is None, that skips zero channels in both directions."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, options: Any, live: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.options, ctx.shape = options, input.shape
        if live is not None:
            input, weight = input.index_select(1 if options else -1, live), weight.index_select(1, live)
        if options is None:
            return F.linear(input, weight, bias)
        stride, padding, dilation = options
        return torch.convolution(input, weight, bias, stride, padding, dilation, False, [0] * len(stride), 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (weight,) = gradients, ctx.saved_tensors
        live = live_channels(gradient, 1 if ctx.options else gradient.ndim - 1)
        if live is not None:
            gradient, weight = gradient.index_select(1 if ctx.options else -1, live), weight.index_select(0, live)
        if ctx.options is None:
            return gradient @ weight, None, None, None, None
        stride, padding, dilation = ctx.options
        placeholder = gradient.new_empty(1).expand(ctx.shape)
        found = torch.ops.aten.convolution_backward(
            gradient, placeholder, weight, None, stride, padding, dilation, False, [0] * len(stride), 1,
            (True, False, False),
        )  # fmt: skip
        return found[0], None, None, None, None


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The arguments of a linear layer, by position."""
    return input, weight, bias


def _convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> tuple[Any, ...]:  # fmt: skip
    """The arguments of a convolution, by position, with torch's defaults."""
    return input, weight, bias, stride, padding, dilation, groups


def _as_tuple(value: Any, size: int) -> tuple[int, ...]:
    """An option of a convolution as one number per spatial dimension."""
    return tuple(value) * (size // len(value)) if isinstance(value, (tuple, list)) else (value,) * size
