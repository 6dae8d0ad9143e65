"""Which channels of every tensor are there physically, and how each consumer gets what the masked network gives it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..tracing import Call, Reason, Trace, Why
from .analysis import Analysis, analyse
from .growth import Growth, Joins, Rounding
from .kept_constants import clean_channels, zeroed_channels
from .movement import Movement

# Modules that do nothing but call their one function, so that an identity can stand for them.
_REPLACEABLE = {
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU,
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The physical channels of one slim network.

    Attributes:
        trace: of the dense network.
        analysis: under the decided gates.
        closed: call index -> channels closed by a gate.
        normed: call index of a layer norm -> channels that it leaves out.
        present: per value, bool over its channels.
        clean: per value, constant channels whose physical value must be the constant.
        carriers: call index of a padded convolution -> the input channel that carries all constants.
        dead: layers that compute nothing that is used.
        movement: how calls that only move data deal with fewer channels.
        zeroed: call index -> channels of its result that are there, wanted, and must be multiplied by zero.
    """

    trace: Trace
    analysis: Analysis
    closed: Mapping[int, Tensor]
    normed: Mapping[int, Tensor]
    present: list[Tensor]
    clean: list[Tensor]
    carriers: Mapping[int, int]
    dead: list[str]
    movement: Movement
    zeroed: dict[int, Tensor]
    _cause: list[Tensor]
    _reasons: list[Reason]

    def reason(self, value: int, channel: int) -> Reason:
        """Why a channel that nobody needs is there."""
        code = int(self._cause[value][channel])
        return self._reasons[code] if code >= 0 else Reason(Why.READ_ELSEWHERE)

    def silent(self, call: Call) -> Tensor:
        """Output channels of a layer that are there, but whose weights are set to zero."""
        output = call.outputs[0]
        silent = self.present[output] & ~self.analysis.live(output) & ~self.clean[output]
        if call.index in self.closed:  # a gate on the layer's own output
            silent |= self.present[output] & self.closed[call.index]
        return torch.zeros_like(silent) if call.layer in self.trace.frozen else silent


def lay_out(
    trace: Trace,
    model: nn.Module,
    closed: Mapping[int, Tensor],
    joins: Joins = "intersection",
    *,
    rounding: Rounding | None = None,
    rigid: Iterable[int] = (),
    normed: Mapping[int, Tensor] | None = None,
) -> Layout:
    """The smallest layout under decided gates.

    Args:
        trace: of ``model``.
        model: the dense network.
        closed: call index of a nonlinearity or linear layer -> bool over its channels, True where a gate closes them.
        joins: "intersection" keeps a shared channel while any member needs it; "expand" lets every producer shrink
            and rearranges channels where tensors meet.
        rounding: number of kept channels of a layer -> number to keep (at least as many).
        normed: call index of a layer norm -> bool over its channels, True where it leaves them out.
        rigid: calls of movement functions that only work on the full width.
    """
    analysis = analyse(trace, model, closed)
    growth = Growth(trace, model, analysis, joins, rounding, set(rigid))
    growth.grow()
    clean = clean_channels(trace, model, analysis, closed, growth.present, growth.carriers)
    layout = Layout(
        trace=trace,
        analysis=analysis,
        closed=closed,
        normed=normed or {},
        present=growth.present,
        clean=clean,
        carriers=growth.carriers,
        dead=[layer for layer in trace.calls_by_layer if _is_dead(layer, trace, model, growth.present)],
        movement=growth.movement,
        zeroed={},
        _cause=growth.cause,
        _reasons=growth.reasons,
    )
    silent = {
        call.index: layout.silent(call)
        for call in trace.calls
        if call.layer is not None and call.kind in ("mixing", "channelwise") and call.function != "prelu"
        and len(trace.calls_by_layer[call.layer]) == 1
    }  # fmt: skip
    layout.zeroed.update(zeroed_channels(trace, model, analysis, closed, growth.present, clean, silent))
    return layout


def _is_dead(layer: str, trace: Trace, model: nn.Module, present: Sequence[Tensor]) -> bool:
    """Whether a layer computes nothing that is used, and an identity can stand for its module."""
    calls = trace.calls_by_layer[layer]
    alone = all(call.module == layer for call in calls)  # not a function that reads the module's weights
    return (
        alone
        and type(model.get_submodule(layer)) in _REPLACEABLE
        and not any(bool(present[call.outputs[0]].any()) for call in calls)
    )
