"""Gate sites inside attention: whole heads, the channels of values, and pairs of a query with a key channel."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..channels import lay_out
from ..tracing import Attention, Side, Trace
from .masks import GateCall, GateSite


def attention_sites(record: Trace, model: nn.Module) -> list[GateSite]:
    """Find the gate sites inside the attentions of a network, of which closed entries can be removed.

    The sites of an attention in module "attn" are "attn@heads", "attn@values" and "attn@pairs". A closed head is as if
    its values were zero, a closed pair as if its query channel were.

    Args:
        record: trace of the network.
        model: the network; never changed.

    Returns:
        The sites in order of execution.
    """
    makers: dict[str, Callable[[Attention, Trace], GateCall | None]] = {
        "heads": _heads,
        "values": _values,
        "pairs": _pairs,
    }
    gates: dict[tuple[int, str], GateCall] = {}
    for number, attention in enumerate(record.attentions):
        for kind, make in makers.items():
            if (gate := make(attention, record)) is not None:
                gates[number, kind] = gate
    removable = _removable(gates, record, model, ("values", "pairs")) | _removable(gates, record, model, ("heads",))
    names: set[str] = set()
    sites = []
    for (number, kind), gate in gates.items():
        if (number, kind) in removable:
            module = record.calls[record.attentions[number].products[0]].module
            name = base = f"{module or 'attention'}@{kind}"
            while name in names:
                name = f"{base}.{number}"
            names.add(name)
            sites.append(GateSite(name, _num_entries(gate), (gate,)))
    return sites


def _num_entries(gate: GateCall) -> int:
    """Number of entries of the mask of a gate inside attention."""
    return max(gate.entries or ()) + 1


def _heads(attention: Attention, record: Trace) -> GateCall | None:
    """The gate on whole heads; None if they cannot be removed."""
    if attention.queries is None or attention.num_heads == 1 or attention.counts_heads:
        return None
    heads = torch.arange(attention.num_heads)[:, None].expand(attention.results.channels.shape)
    return _gate(attention.results, heads, record)


def _values(attention: Attention, record: Trace) -> GateCall:
    """The gate on the channels of values, each in all heads that share it."""
    return _gate(attention.results, attention.values.own, record)


def _pairs(attention: Attention, record: Trace) -> GateCall | None:
    """The gate on query channels, which are nothing without their key channels; None if they are read elsewhere."""
    side = attention.queries
    if side is None or not attention.cuts_pairs or record.values[side.whole].call is None:
        return None
    call = record.calls[record.values[side.whole].call or 0]
    readers = set(record.values[side.whole].readers)
    if call.kind not in ("mixing", "movement") or not readers <= attention.inner or len(side.channels[0]) == 1:
        return None
    assert attention.keys is not None
    return _gate(side, attention.keys.own, record)


def _gate(side: Side, entries: Tensor, record: Trace) -> GateCall:
    """The gate on the tensor of a side, with the given entries for each channel of each head."""
    value = record.values[side.whole]
    assert value.call is not None and value.dim is not None
    of = torch.full((value.num_channels,), -1, dtype=torch.int64)
    of[side.channels] = entries
    call = record.calls[value.call]
    return GateCall(*call.key, value.dim, call.layer, tuple(of.tolist()))


def _removable(
    gates: Mapping[tuple[int, str], GateCall], record: Trace, model: nn.Module, kinds: tuple[str, ...]
) -> set[tuple[int, str]]:
    """Which gates of some kinds can be removed: every second channel of each head, or every second head."""
    closed: dict[int, Tensor] = {}
    tried = {place: gate for place, gate in gates.items() if place[1] in kinds}
    for (number, kind), gate in tried.items():
        attention = record.attentions[number]
        pairs = attention.results if attention.queries is None else attention.queries
        width = {"heads": 1, "values": attention.results.channels.shape[1], "pairs": pairs.channels.shape[1]}[kind]
        if kind != "heads" and width == 1:
            continue
        entries = torch.arange(_num_entries(gate)) % (2 if kind == "heads" else width) % 2 == 1
        index, there = record.call_of[gate.key].index, gate.spread(entries, False)
        closed[index] = closed.get(index, torch.zeros_like(there)) | there
    if not closed:
        return set()
    layout = lay_out(record, model, closed, "intersection")
    found = set()
    for (number, kind), gate in tried.items():
        call = record.call_of[gate.key]
        shut = closed.get(call.index)
        if shut is not None and not bool((layout.present[call.outputs[0]] & shut).any()):
            found.add((number, kind))
    return found
