"""The layout of a slim network: which channels of every tensor it contains, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..tracing import Attention, Call, Fold, Reason, Trace, Why
from .analysis import Analysis, analyse
from .growth import Demands, Growth, Joins, Rounding
from .kept_constants import clean_channels, zeroed_channels
from .movement import Movement

NO_DEMANDS = Demands()
# Modules that only call one function, so that an identity can replace them.
_REPLACEABLE = {
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear,
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.PReLU, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm,
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """The channels that one slim network contains.

    Attributes:
        trace: trace of the dense network.
        analysis: constants and needed channels under the decided gates.
        present: per value, bool over its channels: those that the slim network contains.
        clean: per value, the constant channels whose value in the slim network must be the constant.
        carriers: index of a padded convolution call -> its input channel that carries all constants (carrier channel).
        dead: names of layers whose results are not used, so that an identity replaces them.
        movement: how calls that only move data deal with fewer channels.
        zeroed: index of a gated call -> channels of its result that must be multiplied by zero.
        demands: what the forward pass does not run without.
    """

    trace: Trace
    analysis: Analysis
    present: list[Tensor]
    clean: list[Tensor]
    carriers: Mapping[int, int]
    dead: list[str]
    movement: Movement
    zeroed: dict[int, Tensor]
    demands: Demands
    _cause: list[Tensor]
    _reasons: list[Reason]

    @property
    def closed(self) -> Mapping[int, Tensor]:
        """Index of a gated call -> bool over its channels, True where a gate closes the channel."""
        return self.analysis.closed

    def reason(self, value: int, channel: int) -> Reason:
        """Return why a channel of a value is present that need not be computed."""
        code = int(self._cause[value][channel])
        return self._reasons[code] if code >= 0 else Reason(Why.READ_ELSEWHERE)

    def attends(self, attention: Attention) -> bool:
        """Whether anything of an attention is left."""
        return bool(self.present[attention.results.whole].any())

    def heads_kept(self, attention: Attention) -> tuple[Tensor, Tensor | None]:
        """Return which channels of the heads of an attention are left.

        Returns:
            For values and results, bool of shape (heads, width); for queries and keys, None if they are not followed.
        """
        kept = self.present[attention.results.whole][attention.results.channels]
        if attention.queries is None or attention.keys is None:
            return kept, None
        queries, keys = (self.present[side.whole][side.channels] for side in (attention.queries, attention.keys))
        return kept, queries & keys & kept.any(1)[:, None]

    def fold_of(self, layer: str) -> Fold | None:
        """Return how a layer's weights are read from parameters without steps; None if they stay as they are made."""
        fold = self.trace.folds.get(layer)
        if fold is None:
            return None
        for call in self.trace.calls_by_layer[layer]:
            operand, output = call.operands[0], call.outputs[0]
            sides = [output] if operand is None or call.whole else [output, operand]
            known = [self.analysis.constant[side] for side in sides[1:]]
            narrower = not all(bool(self.present[side].all()) for side in sides)
            if narrower or bool(self.silent(call).any()) or any(not bool(c.isnan().all()) for c in known):
                return fold
        return None

    @cached_property
    def _frozen(self) -> set[str]:
        """Names of layers whose weights must keep their shape."""
        return self.trace.frozen

    def silent(self, call: Call) -> Tensor:
        """Return the output channels of a layer that are present, but whose weights are set to zero."""
        output = call.outputs[0]
        silent = self.present[output] & ~self.analysis.live(output) & ~self.clean[output]
        if call.index in self.closed:  # a gate on the layer's own output
            silent |= self.present[output] & self.closed[call.index]
        return torch.zeros_like(silent) if call.layer in self._frozen else silent


def lay_out(
    trace: Trace,
    model: nn.Module,
    closed: Mapping[int, Tensor],
    joins: Joins = "intersection",
    *,
    rounding: Rounding | None = None,
    demands: Demands = NO_DEMANDS,
    normed: Mapping[int, Tensor] | None = None,
) -> Layout:
    """Determine the smallest layout under decided gates.

    Args:
        trace: trace of ``model``.
        model: the dense network.
        closed: index of a call of a nonlinearity or linear layer -> bool over its channels, True where a gate closes
            the channel.
        joins: lowering: "intersection" keeps a shared channel while any of the outputs that meet has its gate open;
            "expand" lets every layer shrink and rearranges channels where tensors meet.
        rounding: function from the number of kept channels of a layer to the number to keep (at least as many).
        demands: what the forward pass does not run without.
        normed: index of a layer norm call -> bool over its channels, True where its statistics leave the channel out.
    """
    analysis = analyse(trace, model, closed, normed)
    growth = Growth(trace, model, analysis, joins, rounding, demands)
    growth.grow()
    clean = clean_channels(trace, model, analysis, closed, growth.present, growth.carriers)
    layout = Layout(
        trace=trace,
        analysis=analysis,
        present=growth.present,
        clean=clean,
        carriers=growth.carriers,
        dead=[layer for layer in trace.calls_by_layer if _is_dead(layer, trace, model, growth.present)],
        movement=growth.movement,
        zeroed={},
        demands=demands,
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
    """Whether the results of a layer are not used and an identity can replace its module."""
    calls = trace.calls_by_layer[layer]
    if any(origin.name.rpartition(".")[0] != layer for origin in trace.origins_of(layer)):
        return False
    alone = all(call.module == layer for call in calls)  # the module runs itself; no other function reads its weights
    return (
        alone
        and type(model.get_submodule(layer)) in _REPLACEABLE
        and not any(bool(present[call.outputs[0]].any()) for call in calls)
    )
