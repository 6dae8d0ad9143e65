"""Which channels the slim network must contain: starting from those that must be computed, channels are added by rules.

Tensors that one function adds have the same channels (or are rearranged before it), grouped convolutions keep groups
of equal size, and a function that computes with all channels at once gets all of them. The reason for each added
channel is recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..tracing import Attention, Call, Reason, Trace, Value, Why
from .analysis import Analysis, pairs_that_count, spread
from .folding import folded_inputs
from .movement import movements

Joins = Literal["intersection", "expand"]
Rounding = Callable[[int], int]


@dataclass(frozen=True)
class Demands:
    """What a forward pass turned out not to run without.

    Attributes:
        full_width: indices of calls, of those that move data or read a tensor made during the pass, that only work on
            the full width.
        square_heads: whether queries, keys and values are equally wide, where they are in the dense network, and at
            least one channel of each attention is left.
        all_heads: whether no head of attention is left out, since code counts them.
        sizes: whether tensors whose sizes are asked for keep them.
        numbers: whether attention multiplies with the numbers of the dense network, which code takes from a width.
    """

    full_width: frozenset[int] = frozenset()
    square_heads: bool = False
    all_heads: bool = False
    sizes: bool = False
    numbers: bool = False


class Growth:
    """Applies the rules to the calls of a trace until no more channels are added.

    Args:
        trace: trace of ``model``.
        model: the dense network.
        analysis: constants and needed channels under the decided gates.
        joins: lowering, i.e. what happens where tensors with different masks meet; see
            :func:`bise_prune.channels.lay_out`.
        rounding: function from the number of kept channels of a layer to the number to keep (at least as many).
        demands: what the forward pass does not run without.

    Attributes:
        present: per value, bool over its channels: those that the slim network contains.
        cause: per value, int64 over its channels: for a channel that is present without having to be computed, the
            index of the reason in ``reasons``; -1 = none.
        reasons: all reasons that occurred.
        carriers: index of a padded convolution call -> its input channel that carries all constants (carrier channel).
        movement: how calls that only move data deal with fewer channels.
    """

    def __init__(
        self,
        trace: Trace,
        model: nn.Module,
        analysis: Analysis,
        joins: Joins,
        rounding: Rounding | None,
        demands: Demands,
    ) -> None:
        self.trace, self.model, self.analysis = trace, model, analysis
        self.expand, self.rounding = joins == "expand", rounding
        self.present: list[Tensor] = []
        for value in trace.values:
            fixed = value.call is None and value.parameter is None
            live = self.analysis.needed[value.index] if value.parameter else self.analysis.live(value.index)
            self.present.append(torch.ones(value.num_channels, dtype=torch.bool) if fixed else live.clone())
        for index in trace.outputs:
            self.present[index][:] = True
        self.demands = demands
        self._freeze()
        self.cause = [torch.full(mask.shape, -1, dtype=torch.int64) for mask in self.present]
        self.reasons: list[Reason] = []
        self.codes: dict[Reason, int] = {}
        self.waiting = dict.fromkeys(range(len(trace.calls) - 1, -1, -1))
        self.same_layer = trace.calls_by_layer
        self.carriers: dict[int, int] = {}
        self.movement = movements(trace, demands.full_width)
        if demands.sizes:
            for value in trace.values:
                if value.measured and bool(self.present[value.index].any()):
                    self._grow(value.index, torch.ones_like(self.present[value.index]), Reason(Why.SIZE_ASKED))

    def grow(self) -> None:
        """Apply the rules, round the widths up, and apply the rules again to the channels that this added."""
        self._grow_until_stable()
        if self.rounding is not None:
            self._round()
            self._grow_until_stable()

    def _freeze(self) -> None:
        """Keep all channels of weights whose shape must stay, since another function reads them as well."""
        times = Counter(value.parameter for value in self.trace.values if value.parameter)
        for value in self.trace.values:
            if value.parameter and (value.parameter in self.trace.rigid or times[value.parameter] > 1):
                self.present[value.index][:] = True
        frozen = self.trace.frozen
        for call in self.trace.calls:
            if call.layer in frozen:
                for v in (call.operands[0], *call.outputs):
                    if v is not None:
                        self.present[v][:] = True

    @property
    def values(self) -> list[Value]:
        """The values of the trace."""
        return self.trace.values

    def _grow(self, value: int, mask: Tensor, reason: Reason | Tensor) -> None:
        """Add channels to a value; ``reason`` is one reason for all, or an index in ``reasons`` for each channel."""
        new = mask & ~self.present[value]
        if not bool(new.any()):
            return
        self.present[value] |= new
        self._wake(value)
        if isinstance(reason, Reason):
            self.cause[value][new] = self._code(reason)
        else:
            self.cause[value][new] = reason[new]

    def _code(self, reason: Reason) -> int:
        """Return the index of a reason in ``reasons``, where it is added if it is new."""
        if reason not in self.codes:
            self.codes[reason] = len(self.reasons)
            self.reasons.append(reason)
        return self.codes[reason]

    def _codes_of(self, value: int, fallback: Reason) -> Tensor:
        """Return the reason index of each channel of a value; that of ``fallback`` where it has no reason."""
        return torch.where(self.cause[value] >= 0, self.cause[value], self._code(fallback))

    def _wake(self, value: int) -> None:
        """Mark all calls that read or return a value to be looked at again, and other calls of the same layers."""
        source = self.values[value].call
        for index in self.values[value].readers if source is None else (source, *self.values[value].readers):
            for call in self.same_layer.get(self.trace.calls[index].layer or "", [self.trace.calls[index]]):
                self.waiting[call.index] = None

    def _grow_until_stable(self) -> None:
        """Apply the rules until no call is left to look at."""
        while self.waiting:
            index, _ = self.waiting.popitem()
            self._apply(self.trace.calls[index])

    def _apply(self, call: Call) -> None:
        """Apply the rules for one call."""
        if (attention := self.trace.attention_of.get(call.index)) is not None:
            self._attention(attention)
            return
        for o in call.outputs:
            if self.values[o].measured and not bool(self.present[o].any()):
                self._grow(o, torch.arange(len(self.present[o])) == 0, Reason(Why.SIZE_ASKED))
        movement = self.movement.kinds.get(call.index)
        if call.kind == "opaque":
            self._opaque(call)
        elif call.kind == "mixing":
            self._mixing(call)
        elif call.kind == "normalising":
            self._normalising(call)
        elif call.kind == "reducing":
            self._reducing(call)
        elif movement == "rigid":
            self._rigid(call)
        elif movement != "gather":
            self._aligned(call)
        calls = self.same_layer.get(call.layer or "", [])
        if len(calls) > 1 and calls[0] is not call:
            for first, second in zip(
                (calls[0].outputs[0], calls[0].operands[0]), (call.outputs[0], call.operands[0]), strict=True
            ):
                if first is not None and second is not None and len(self.present[first]) == len(self.present[second]):
                    shared = Reason(Why.SHARED_LAYER, layer=call.layer)
                    self._grow(second, self.present[first], shared)
                    self._grow(first, self.present[second], shared)

    def _opaque(self, call: Call) -> None:
        """Add all channels around a function that is not understood, if its result is wanted."""
        why = call.why or Reason(Why.NO_RULE, function=call.function)
        wanted = not call.outputs or any(bool((self.analysis.needed[o] | self.present[o]).any()) for o in call.outputs)
        if not wanted:
            # No function needs its result, but Python code may (e.g. a test of a mask): it runs if that is possible.
            if all(bool(self.present[operand].all()) for operand in call.operands if operand is not None):
                for o in call.outputs:
                    self._grow(o, torch.ones_like(self.present[o]), why)
            return
        for o in call.outputs:
            self._grow(o, torch.ones_like(self.present[o]), why)
        for operand in call.operands:
            if operand is not None and not self._expandable(call, operand):
                self._grow(operand, torch.ones_like(self.present[operand]), why)

    def _normalising(self, call: Call) -> None:
        """Add what the statistics of a norm are computed from, in each group of which anything is left."""
        operand, output = call.operands[0], call.outputs[0]
        assert operand is not None
        why = Reason(Why.NORMALISES_ALL, function=call.function, module=call.module)
        there = self.analysis.live(output) | self.present[output]
        wanted = spread(there, call.groups, len(there)) & ~self.analysis.spared(call)
        self._grow(output, wanted, why)
        if not self._expandable(call, operand):
            self._grow(operand, wanted, why)
            self._grow(operand, self.present[output], self._codes_of(output, why))
            self._grow(output, self.present[operand], self._codes_of(operand, why))

    def _reducing(self, call: Call) -> None:
        """Add the constants other than zero that a mean or sum over channels is computed from."""
        operand, output = call.operands[0], call.outputs[0]
        assert operand is not None
        if not bool((self.analysis.needed[output] | self.present[output]).any()):
            return
        why = Reason(Why.RUNS_OVER_CHANNELS, function=call.function, module=call.module)
        wanted = ~self.analysis.spared(call)
        if not bool(self.present[operand].any() | wanted.any()):
            wanted[0] = True
        self._grow(operand, wanted, why)

    def _expandable(self, call: Call, operand: int) -> bool:
        """Whether an operand of a call that needs all channels can get its missing ones back before the call."""
        dim = self.values[operand].dim
        can_edit = self.expand and call.counted and call.function != "setitem"
        return can_edit and dim is not None and bool(self.present[operand].any())

    def _attention(self, attention: Attention) -> None:
        """Keep as many channels in each head that is left, of values and results and of queries and keys."""
        for index in attention.inner:  # whichever of its calls had to be looked at, this is for all of them
            self.waiting.pop(index, None)
        results, values = attention.results, attention.values
        is_asked = self.values[results.whole].measured or self.demands.square_heads
        if is_asked and not bool(self.present[results.whole].any()):
            first = torch.arange(len(self.present[results.whole])) == 0
            self._grow(results.whole, first, Reason(Why.SIZE_ASKED))
        kept = self.present[results.whole][results.channels]
        stays_whole = bool(self.demands.full_width & attention.inner)
        if not bool(kept.any()) and not stays_whole:
            return
        last = Reason(Why.EQUAL_HEADS, module=self.trace.calls[attention.products[0]].module)
        heads = kept.any(1) | self.demands.all_heads | attention.counts_heads
        pairs = None
        if attention.queries is not None and attention.keys is not None:
            pairs = pairs_that_count(attention, self.analysis.constant, heads)
            there = [self.present[side.whole][side.channels] for side in (attention.queries, attention.keys)]
            pairs = self._evenly(pairs | (there[0] & there[1] & heads[:, None]), heads)
        else:
            heads = torch.ones_like(heads)
        kept = self._evenly(kept, heads)
        if self.demands.square_heads:
            pairs_or_all = torch.ones_like(kept) if pairs is None else pairs
            width = max(int(kept.sum(1).max()), int(pairs_or_all.sum(1).max()))
            kept = _filled(kept, heads, min(width, kept.shape[1]))
            pairs = None if pairs is None else _filled(pairs, heads, min(width, pairs.shape[1]))
        if stays_whole:
            last = Reason(Why.FULL_WIDTH, function=self.trace.calls[attention.end].function)
            kept, pairs = torch.ones_like(kept), None if pairs is None else torch.ones_like(pairs)
        for side, cells in ((results, kept), (values, kept), (attention.queries, pairs), (attention.keys, pairs)):
            if side is not None and cells is not None:
                wanted = torch.zeros_like(self.present[side.whole])
                wanted[side.channels[cells]] = True
                self._grow(side.whole, wanted, last)
        for value in attention.external:
            self._grow(value, torch.ones_like(self.present[value]), last)
        for index in attention.inner:
            for o in self.trace.calls[index].outputs:
                if o != results.whole:
                    self.present[o][:] = True

    def _evenly(self, cells: Tensor, heads: Tensor) -> Tensor:
        """Add the first missing channels of heads until all have as many, at least one, rounded up."""
        width = max(1, int(cells.sum(1).max()))
        if self.rounding is not None:
            width = min(self.rounding(width), cells.shape[1])
        return _filled(cells, heads, width)

    def _rigid(self, call: Call) -> None:
        """Add all channels around a movement call that needs the full width."""
        if any(bool(self.present[o].any()) for o in call.outputs):
            why = Reason(Why.FULL_WIDTH, function=call.function)
            for value in (*call.outputs, *call.operands):
                if value is not None:
                    self._grow(value, torch.ones_like(self.present[value]), why)

    def _aligned(self, call: Call) -> None:
        """Give operands and result of a call the same channels, except where operands are rearranged before it."""
        output = call.outputs[0]
        if self.values[output].dim is None and self.values[output].num_channels > 1:
            self._rigid(call)
            return
        soft = call.index not in self.demands.full_width and self._soft(call)
        for k, operand in enumerate(call.operands):
            mapping = call.maps.get((k, 0))
            if operand is None or mapping is None:
                continue
            inside = mapping >= 0
            if len(self.present[operand]) == 1 < int(inside.sum()):
                if bool(self.present[output].any()) and not self._dispensable(operand):
                    self._grow(operand, torch.ones(1, dtype=torch.bool), Reason(Why.SCALES_ALL))
                continue
            if self.values[operand].dim is None and self.values[operand].num_channels > 1:
                if bool(self.present[output].any()):
                    why = Reason(Why.FULL_WIDTH, function=call.function)
                    self._grow(operand, torch.ones_like(self.present[operand]), why)
                    self._grow(output, torch.ones_like(self.present[output]), why)
                continue
            constant = call.kind == "elementwise" and len(call.maps) > 1 and self._dispensable(operand)
            constant &= self.values[operand].parameter is None and call.function not in ("cat", "stack")
            if self.values[operand].foreign and call.index not in self.demands.full_width:
                continue  # what is read of it is picked when it is there
            if soft or constant or (call.keeps(k) and torch.equal(self.present[operand], self.present[output])):
                continue
            sources = mapping.clamp(min=0)
            stream = Reason(Why.JOINED, function=call.function)
            self._grow(output, inside & self.present[operand][sources], self._codes_of(operand, stream)[sources])
            wanted = torch.zeros_like(self.present[operand])
            wanted[mapping[inside & self.present[output]]] = True
            codes = torch.zeros_like(self.cause[operand])
            codes[mapping[inside]] = self._codes_of(output, stream)[inside]
            self._grow(operand, wanted, codes)
        for other in call.outputs[1:] if call.kind == "channelwise" else ():  # extremes, say, and where they are
            stream = Reason(Why.JOINED, function=call.function)
            self._grow(other, self.present[output], self._codes_of(output, stream))
            self._grow(output, self.present[other], self._codes_of(other, stream))
        self._keep_a_shape(call, output)

    def _keep_a_shape(self, call: Call, output: int) -> None:
        """Keep at least one operand that has the shape of the result, since constants have no shape to compute from."""
        if not bool(self.present[output].any()):
            return
        whole = [
            (k, operand)
            for k, operand in enumerate(call.operands)
            if operand is not None
            and (k, 0) in call.maps
            and self.values[operand].full == self.values[output].full
            and self._shape_beside_channels(operand) == self._shape_beside_channels(output)
        ]
        if whole and not any(bool(self.present[operand].any()) for _, operand in whole):
            k, operand = whole[0]
            first = torch.zeros_like(self.present[operand])
            first[call.maps[k, 0][self.present[output]][:1].clamp(min=0)] = True
            self._grow(operand, first, Reason(Why.LAST_OPERAND, function=call.function))

    def _shape_beside_channels(self, index: int) -> tuple[int, ...]:
        """Return the shape of a value without its channel dimension."""
        value = self.values[index]
        return tuple(size for dim, size in enumerate(value.shape) if dim != value.dim)

    def _dispensable(self, operand: int) -> bool:
        """Whether all channels of an operand are constant, so that constants can replace it."""
        return not bool(self.analysis.constant[operand].isnan().any())

    def _soft(self, call: Call) -> bool:
        """Whether the operands of a call are rearranged for it, instead of sharing its channels."""
        if not (self.expand and call.counted) or call.kind == "movement" or call.function in ("cat", "stack"):
            return False
        tensors = [o for o in call.operands if o is not None and len(self.present[o]) > 1]
        if len(tensors) > 1:
            return True
        source = self.values[tensors[0]] if tensors else None
        if source is None or source.dim is None:
            return False
        concatenated = source.call is not None and self.trace.calls[source.call].function == "cat"
        return len(source.readers) > 1 or concatenated

    def _mixing(self, call: Call) -> None:
        """Keep the input channels that a convolution or linear layer needs for its constants and its groups."""
        operand, output = call.operands[0], call.outputs[0]
        if operand is None or not bool(self.present[output].any()):
            return
        if any(other.whole for other in self.same_layer.get(call.layer or "", [call])):
            self._grow(operand, torch.ones_like(self.present[operand]), Reason(Why.OTHER_ORDER, layer=call.layer))
        else:
            if not bool(self.present[operand].any()):
                first = torch.zeros_like(self.present[operand])
                first[0] = True
                self._grow(operand, first, Reason(Why.LAST_INPUT, layer=call.layer))
            self._fold(call, operand, output)
        if call.groups > 1:
            self._balance(call, operand, output)

    def _fold(self, call: Call, operand: int, output: int) -> None:
        """Keep those constant inputs that cannot be folded into the additive bias, or one carrier channel for them."""
        constant = self.analysis.constant[operand]
        folded = folded_inputs(call, self.same_layer[call.layer or ""], self.analysis)
        stays = ~constant.isnan() & ~folded & self.present[output].any()
        if call.layer is not None and len(self.same_layer[call.layer]) > 1:
            why = Why.SHARED_CONSTANTS
        elif call.groups > 1:
            why = Why.GROUPED_PADDING
        else:
            why = Why.CARRIES_CONSTANT
            if bool(stays.any()):
                largest = int(torch.where(stays, constant.abs(), 0.0).argmax())
                self.carriers[call.index] = largest
                stays = torch.zeros_like(stays)
                stays[largest] = True
        self._grow(operand, stays, Reason(why, layer=call.layer))

    def _balance(self, call: Call, operand: int, output: int) -> None:
        """Keep the same number of channels in each group of a grouped convolution."""
        if call.whole:
            self._grow(output, torch.ones_like(self.present[output]), Reason(Why.GROUPED, layer=call.layer))
            return
        why = Reason(Why.EQUAL_GROUPS, layer=call.layer)
        inputs = self.present[operand].view(call.groups, -1)
        outputs = self.present[output].view(call.groups, -1)
        alive = inputs.any(1) | outputs.any(1)
        for value, table in ((operand, inputs), (output, outputs)):
            width = max(1, int(table.sum(1).max()))
            self._grow(value, _filled(table, alive, width).flatten(), why)

    def _round(self) -> None:
        """Round the number of kept channels of each layer up."""
        assert self.rounding is not None
        apart = {side.whole for attention in self.trace.attentions for side in attention.sources}
        for call in self.trace.calls:
            if call.kind not in ("mixing", "channelwise", "elementwise"):
                continue
            for o in call.outputs:
                mask = self.present[o]
                if o in apart:
                    continue
                kept = int(mask.sum())
                if kept and self.values[o].dim is not None and self.values[o].layer and o not in self.trace.outputs:
                    wanted = min(self.rounding(kept), len(mask))
                    filled = _filled(mask.view(1, -1), torch.ones(1, dtype=torch.bool), wanted).flatten()
                    self._grow(o, filled, Reason(Why.ROUNDED_UP))


def _filled(table: Tensor, alive: Tensor, width: int) -> Tensor:
    """Add the first missing channels in each row with ``alive`` until the row has ``width`` channels."""
    missing = (~table).cumsum(1)
    return table | (~table & (missing <= (width - table.sum(1, keepdim=True))) & alive[:, None])
