"""Constant channels that stay: which must keep their value, and which must still be multiplied by zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..tracing import Attention, Trace
from .analysis import Analysis, physical_constants, spread
from .folding import folded_inputs


def clean_channels(
    trace: Trace,
    model: nn.Module,
    analysis: Analysis,
    closed: Mapping[int, Tensor],
    present: list[Tensor],
    carriers: Mapping[int, int],
) -> list[Tensor]:
    """Find the constant channels that are present and whose value in the slim network must be the constant.

    Args:
        trace: trace of ``model``.
        model: the dense network.
        analysis: constants and needed channels under the decided gates.
        closed: index of a gated call -> bool over its channels, True where a gate closes the channel.
        present: per value, the channels that the slim network contains.
        carriers: index of a padded convolution call -> its input channel that carries all constants (carrier channel).

    Returns:
        Per value, bool of shape (channels,).
    """
    constant, clean = analysis.constant, [torch.zeros_like(mask) for mask in present]
    for index in trace.outputs:
        clean[index] |= ~constant[index].isnan()
    for call in reversed(trace.calls):
        if (attention := trace.attention_of.get(call.index)) is not None:
            if call.index == attention.end:
                _clean_attended(attention, analysis, closed.get(call.index), present, clean)
            continue
        outputs_there = not call.outputs or any(bool(present[o].any()) for o in call.outputs)
        for k, operand in enumerate(call.operands):
            if operand is None or not outputs_there:
                continue
            settled = ~constant[operand].isnan() & present[operand]
            if call.kind in ("opaque", "reducing") or call.whole:
                clean[operand] |= settled
            elif call.kind == "normalising":
                there = present[call.outputs[0]]
                statistics = spread(there, call.groups, len(there))
                if call.index in analysis.normed:  # the others pass unchanged
                    statistics &= ~analysis.normed[call.index] | clean[call.outputs[0]]
                clean[operand] |= settled & statistics
            elif call.kind == "mixing":
                folded = folded_inputs(call, trace.calls_by_layer[call.layer or ""], analysis)
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


def _clean_attended(
    attention: Attention, analysis: Analysis, closed: Tensor | None, present: list[Tensor], clean: list[Tensor]
) -> None:
    """Mark the constants that an attention reads for results that are present."""
    constant, results, values = analysis.constant, attention.results, attention.values
    right = present[results.whole] & (analysis.live(results.whole) | clean[results.whole])
    if closed is not None:
        right &= ~closed
    used = right[results.channels]
    wanted = [(values, used)]
    if attention.queries is not None and attention.keys is not None:
        pairs = used.any(1)[:, None]
        for side in (attention.queries, attention.keys):  # a constant counts where both channels of a pair are there
            pairs = pairs & present[side.whole][side.channels]
        wanted += [(attention.queries, pairs), (attention.keys, pairs)]
    for side, channels in wanted:
        there = torch.zeros_like(clean[side.whole])
        there[side.channels[channels]] = True
        clean[side.whole] |= there & ~constant[side.whole].isnan() & present[side.whole]
    if bool(present[results.whole].any()):
        for value in attention.external:
            clean[value] |= ~constant[value].isnan() & present[value]


def zeroed_channels(
    trace: Trace,
    model: nn.Module,
    analysis: Analysis,
    closed: Mapping[int, Tensor],
    present: list[Tensor],
    clean: list[Tensor],
    silent: Mapping[int, Tensor],
) -> dict[int, Tensor]:
    """Find the present closed channels that must be multiplied by zero, since they would not be zero otherwise.

    Args:
        trace: trace of ``model``.
        model: the dense network.
        analysis: constants and needed channels under the decided gates.
        closed: index of a gated call -> bool over its channels, True where a gate closes the channel.
        present: per value, the channels that the slim network contains.
        clean: per value, the constant channels whose value in the slim network must be the constant.
        silent: index of a call -> output channels of its layer whose weights are set to zero.

    Returns:
        Index of a gated call -> bool over its channels, for calls with such channels.
    """
    wanted = {}
    for index, mask in closed.items():
        output = trace.calls[index].outputs[0]
        if bool((there := mask & present[output] & clean[output]).any()):
            wanted[index] = there
    if not wanted:
        return {}
    found: dict[int, Tensor] = {}
    physical = physical_constants(trace, model, analysis, present, closed, silent)
    for index, mask in wanted.items():
        output = trace.calls[index].outputs[0]
        if bool((mask & (physical[output] != 0)).any()):  # NaN (live) differs from 0, too
            found[index] = mask
    return found
