"""Constant channels that stay: which must keep their value, and which gates must still multiply by zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..tracing import Trace
from .analysis import Analysis, physical_constants
from .folding import folded_inputs


def clean_channels(
    trace: Trace,
    model: nn.Module,
    analysis: Analysis,
    closed: Mapping[int, Tensor],
    present: list[Tensor],
    carriers: Mapping[int, int],
) -> list[Tensor]:
    """Per value, bool: the constant channels that are there and whose physical value must be the constant.

    Args:
        trace: of ``model``.
        model: the dense network.
        analysis: under the decided gates.
        closed: call index -> channels closed by a gate.
        present: per value, the channels that are there.
        carriers: call index of a padded convolution -> the input channel that carries all constants.
    """
    constant, clean = analysis.constant, [torch.zeros_like(mask) for mask in present]
    for index in trace.outputs:
        clean[index] |= ~constant[index].isnan()
    for call in reversed(trace.calls):
        outputs_there = not call.outputs or any(bool(present[o].any()) for o in call.outputs)
        for k, operand in enumerate(call.operands):
            if operand is None or not outputs_there:
                continue
            settled = ~constant[operand].isnan() & present[operand]
            if call.kind == "opaque" or call.whole:
                clean[operand] |= settled
            elif call.kind == "mixing":
                layer = call.layer or ""
                folded = folded_inputs(call, trace.calls_by_layer[layer], analysis, model.get_submodule(layer))
                stays = settled & ~folded
                if call.index in carriers:
                    stays &= torch.arange(len(stays)) == carriers[call.index]
                clean[operand] |= stays
            else:
                for o, output in enumerate(call.outputs):
                    if (mapping := call.maps.get((k, o))) is None:
                        continue
                    right = present[output] & (analysis.live(output) | clean[output])
                    if call.index in closed:
                        right &= ~closed[call.index]
                    sources = mapping[right & (mapping >= 0)]
                    wanted = torch.zeros_like(settled)
                    wanted[sources] = True
                    clean[operand] |= settled & wanted
    return clean


def zeroed_channels(
    trace: Trace,
    model: nn.Module,
    analysis: Analysis,
    closed: Mapping[int, Tensor],
    present: list[Tensor],
    clean: list[Tensor],
    silent: Mapping[int, Tensor],
) -> dict[int, Tensor]:
    """Gated calls whose closed channels must be multiplied by zero, since they are there, wanted and not zero.

    Args:
        trace: of ``model``.
        model: the dense network.
        analysis: under the decided gates.
        closed: call index -> channels closed by a gate.
        present: per value, the channels that are there.
        clean: per value, constant channels whose physical value must be the constant.
        silent: call index -> output channels of its layer whose weights are set to zero.
    """
    wanted = {}
    for index, mask in closed.items():
        output = trace.calls[index].outputs[0]
        if bool((there := mask & present[output] & clean[output]).any()):
            wanted[index] = there
    if not wanted:
        return {}
    found: dict[int, Tensor] = {}
    physical = physical_constants(trace, model, analysis.constant, present, silent)
    for index, mask in wanted.items():
        output = trace.calls[index].outputs[0]
        if bool((mask & (physical[output] != 0)).any()):  # NaN differs from 0 too
            found[index] = mask
    return found
