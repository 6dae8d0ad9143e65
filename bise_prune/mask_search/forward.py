"""The forward pass of a search: the bottleneck is caught on its way, and frozen batch norms keep no activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from ..gates import CapturedInputs
from .closed import sparing


class SearchForward(CapturedInputs):
    """While active, collects the bottleneck, and runs batch norms with fixed statistics as the affine maps they are.

    Torch's own batch norm keeps its input for the backward pass even where neither its weight nor its statistics get a
    gradient; x * scale + shift keeps the scale alone. Modes that count the network's calls must be entered after this
    one, or this one stand behind them, so that they see the batch norm and not what it is made of.

    Args:
        model: the network.
        layer: name of its head.
        sparing: whether convolutions and linear layers are to spare the work on closed channels.
    """

    def __init__(self, model: nn.Module, layer: str, sparing: bool) -> None:
        super().__init__(model, layer)
        self.sparing = sparing

    def passed_on(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call returns."""
        found = None
        if func is batch_norm:
            found = _affine(*args, **kwargs)
        elif self.sparing:
            found = sparing(func, args, kwargs)
        return super().passed_on(func, args, kwargs) if found is None else found


def _affine(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """The batch norm of these arguments as an affine map; None if it learns or estimates anything."""
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
