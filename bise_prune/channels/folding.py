"""Which constant inputs of a layer its new weights account for."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..tracing import Call
from .analysis import Analysis


def folded_inputs(call: Call, calls: Sequence[Call], analysis: Analysis, layer: nn.Module) -> Tensor:
    """Constant inputs of a mixing call that the new weights of its layer account for (carriers included)."""
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
    can_have_bias = "bias" in layer._parameters
    return folded & ((constant == 0) | (can_have_bias and not call.padded))
