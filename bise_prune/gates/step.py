"""The step function of Eq. (2) with its straight-through gradient, and modules for learned and for constant gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class _Step(torch.autograd.Function):
    """1{sigma(m / tau) >= .5} = 1{m >= 0}; straight through the step, so its gradient is sigma'(m / tau) / tau."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.temperature = temperature
        return (logits >= 0).to(logits.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (logits,) = ctx.saved_tensors
        return grad_outputs[0] * step_slope(logits, ctx.temperature), None


def step_slope(logits: Tensor, temperature: float) -> Tensor:
    """Return the surrogate derivative of :func:`step_gate`, sigma'(m / tau) / tau (straight-through estimator).

    Args:
        logits: mask logits m, any shape.
        temperature: tau > 0.
    """
    probability = torch.sigmoid(logits / temperature)
    return probability * (1 - probability) / temperature


def step_gate(logits: Tensor, temperature: float) -> Tensor:
    """The gate of Eq. (2), with the paper's straight-through gradient.

    Args:
        logits: mask logits m, any shape.
        temperature: tau > 0; it affects the gradient only.

    Returns:
        1 where m >= 0 and 0 elsewhere, in the shape and dtype of ``logits``.
    """
    return _Step.apply(logits, temperature)  # type: ignore[no-any-return]


class LearnedGates(nn.Module):
    """Gates during the search: the mask logits m of all sites, with one initial value (Algorithm 1, line 1).

    Args:
        sizes: number of channels of each site.
        initial_logit: initial value of every mask logit.
        dtype: floating-point type of the mask logits.

    Attributes:
        logits: mask logits of all sites, shape (channels of all sites,).
        temperature: tau of Eq. (2), which the search lowers step by step.
    """

    def __init__(self, sizes: Sequence[int], initial_logit: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.logits = nn.Parameter(torch.full((sum(sizes),), initial_logit, dtype=dtype))
        self.temperature = 1.0

    @property
    def closed(self) -> Tensor:
        """Which channels are closed: bool of shape (channels of all sites,)."""
        return self.logits.detach() < 0

    @property
    def values(self) -> Tensor:
        """The values of all gates, 0 or 1, of shape (channels of all sites,), without gradient."""
        return (~self.closed).to(self.logits.dtype)

    def flat(self) -> Tensor:
        """Return the values of all gates, of shape (channels of all sites,), with the straight-through gradient."""
        return step_gate(self.logits, self.temperature)

    def forward(self) -> Sequence[Tensor]:
        """Return the values of :meth:`flat` as one tensor of shape (channels,) per site."""
        return list(self.flat().split(self.sizes))


class ConstantGates(nn.Module):
    """Gates with fixed masks.

    Args:
        masks: values of the gates, 0 or 1, one tensor of shape (channels,) per site.
    """

    def __init__(self, masks: Sequence[Tensor]) -> None:
        super().__init__()
        for index, mask in enumerate(masks):
            self.register_buffer(str(index), mask)

    def forward(self) -> Sequence[Tensor]:
        """Return the masks, one tensor of shape (channels,) per site."""
        return list(self.buffers())
