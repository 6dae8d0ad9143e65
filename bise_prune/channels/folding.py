"""Constant inputs of a layer that are folded into its new weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tracing import Call
from .analysis import Analysis


def folded_inputs(call: Call, calls: Sequence[Call], analysis: Analysis) -> Tensor:
    """Return which constant inputs of a convolution or linear layer its new weights and additive bias account for.

    A constant of zero needs no change. Another constant is folded into the additive bias, unless the call pads or
    several calls of the layer disagree. Constants that a carrier channel carries are not folded.

    Args:
        call: a call of the layer.
        calls: all calls of the layer.
        analysis: constants under the decided gates.

    Returns:
        bool of shape (input channels,).
    """
    operand = call.operands[0]
    assert operand is not None
    constant = analysis.constant[operand]
    folded = ~constant.isnan()
    if any(other.whole for other in calls):
        return torch.zeros_like(folded)
    for other in calls:
        theirs = analysis.constant[other.operands[0]] if other.operands[0] is not None else constant
        if len(theirs) != len(constant):
            return torch.zeros_like(folded)
        folded &= constant == theirs
    can_have_bias = call.weights is not None and call.weights.bias is not None
    return folded & ((constant == 0) | (can_have_bias and not call.padded))
