"""How functions that only move data deal with fewer channels: run unchanged, be skipped, or need the full width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..tracing import Call, Trace

Kind = Literal["native", "gather", "rigid"]


@dataclass(frozen=True)
class Movement:
    """How each call that only moves data deals with fewer channels.

    Attributes:
        kinds: index of a call -> "native": it runs unchanged; "gather": it is skipped, and its result is gathered from
            the value where the chain of such calls begins; "rigid": it needs the full width.
        origin: index of a gathered value -> index of the value that it is gathered from, and for each of its channels
            the channel of that value; -1 = a channel of zeros.
    """

    kinds: dict[int, Kind]
    origin: dict[int, tuple[int, Tensor]]


def movements(trace: Trace, rigid: frozenset[int]) -> Movement:
    """Determine how each movement call deals with fewer channels; those in ``rigid`` need the full width."""
    movement = {
        call.index: _plain_movement(trace, call, rigid)
        for call in trace.calls
        if call.kind == "movement" and call.index not in trace.attention_of
    }
    while True:
        origin: dict[int, tuple[int, Tensor]] = {}
        broken: set[int] = set()
        for call in trace.calls:
            if movement.get(call.index) != "gather":
                continue
            k, operand = next((k, o) for k, o in enumerate(call.operands) if o is not None)
            identity = torch.arange(trace.values[operand].num_channels)
            source, through = origin.get(operand, (operand, identity))
            if trace.values[operand].dim is not None:
                source, through = operand, identity  # gathered results are sources in turn
            for o, output in enumerate(call.outputs):
                mapping = call.maps[k, o]  # -1: a channel of zeros
                origin[output] = (source, torch.where(mapping >= 0, through[mapping.clamp(min=0)], -1))
                if not _gatherable(trace, source, output, movement):
                    broken |= {
                        c.index
                        for c in trace.calls
                        if movement.get(c.index) == "gather" and origin.get(c.outputs[0], (-1,))[0] == source
                    }
        if not broken:
            return Movement(movement, origin)
        movement |= dict.fromkeys(broken, "rigid")


def _gatherable(trace: Trace, source: int, output: int, movement: Mapping[int, Kind]) -> bool:
    """Whether a result can be gathered from the source of its chain along the same channel dimension."""
    start, end = trace.values[source], trace.values[output]
    if end.dim is None:  # inside a chain: only movements that are skipped, too, may read it
        return start.dim is not None and all(movement.get(reader) == "gather" for reader in end.readers)
    others = [tuple(size for d, size in enumerate(value.shape) if d != value.dim) for value in (start, end)]
    return start.dim == end.dim and others[0] == others[1]


def _plain_movement(trace: Trace, call: Call, rigid: frozenset[int]) -> Kind:
    """Return how a movement call on its own deals with fewer channels."""
    if call.index in rigid:
        return "rigid"
    operands = [o for o in call.operands if o is not None]
    simple = all(trace.values[v].dim is not None or trace.values[v].num_channels == 1 for v in operands)
    simple &= all(trace.values[v].dim is not None or trace.values[v].num_channels == 1 for v in call.outputs)
    if call.function == "cat":
        return "native" if simple else "rigid"
    if len(operands) != 1:
        return "rigid"
    if simple and len(call.outputs) == 1:
        mapping = call.maps[call.operands.index(operands[0]), 0]
        count = trace.values[operands[0]].num_channels
        times, rest = divmod(len(mapping), count)
        tiles = torch.arange(count).repeat_interleave(times), torch.arange(count).repeat(times)
        if not rest and any(torch.equal(mapping, tile) for tile in tiles):
            return "native"
    return "gather"
