"""Streams: tensors that must have the same channels, and the gates on those that layer norms or mean squares read.

A residual stream has many writers. A gate on it closes the channel in each of them, so that it is zero all along. Layer
norms that read the stream either compute their statistics over open channels only, or over all of them, zeros included,
and are gated as well.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..channels import lay_out
from ..channels.analysis import constants
from ..tracing import COMPARISONS, LOGICAL, Call, Trace, UnionFind
from .masks import GateCall, GateSite

_TRUTHS = (COMPARISONS | LOGICAL) - {"where"}  # which say something of a stream, and bring no channels into it


def streams(record: Trace, *, through_layer_norms: bool = False) -> list[int]:
    """Return, per value, the first value that must have the same channels (linked one to one by calls).

    Args:
        record: trace of the network.
        through_layer_norms: whether a layer norm links what it reads and returns, as it does if it may leave channels
            out; otherwise it computes with all channels, so that none can be removed on either side.
    """
    found = UnionFind(len(record.values))
    by_layer: dict[str, Call] = {}
    for call in record.calls:
        if call.kind == "normalising" and call.function == "layer_norm" and not through_layer_norms:
            continue
        pairs = [(operand, output) for _, operand, output in _kept_by(call, record)]
        if call.layer is not None:
            other = by_layer.setdefault(call.layer, call)
            pairs.append((other.outputs[0], call.outputs[0]))
        for one, two in pairs:
            found.join(one, two)
    return [found.first(value) for value in range(len(record.values))]


def _kept_by(call: Call, record: Trace) -> Iterator[tuple[int, int, int]]:
    """Position of an operand, the operand and an output that has its channels, one to one."""
    for k, operand in enumerate(call.operands):
        for o, output in enumerate(call.outputs):
            if operand is not None and call.keeps(k, o):
                if record.values[operand].num_channels == record.values[output].num_channels:
                    yield k, operand, output


def stream_sites(record: Trace, model: nn.Module, gated: set[int], *, open_norms: bool) -> list[GateSite]:
    """Find the gate sites on streams that layer norms, or means over channels, read.

    Args:
        record: trace of the network.
        model: the network; never changed.
        gated: indices of the calls that other sites gate; streams with one of their outputs are left out.
        open_norms: whether layer norms compute their statistics over open channels; otherwise over all of them.

    Returns:
        The sites "layer@stream", or "layer@zeros" without ``open_norms``, named after the first layer that writes into
        the stream, in order of execution.
    """
    stream = streams(record, through_layer_norms=True)
    members: dict[int, list[int]] = {}
    for value, first in enumerate(stream):
        members.setdefault(first, []).append(value)
    fixed = {stream[value] for value in (*record.inputs, *record.outputs)}
    fixed |= {stream[output] for index in gated for output in record.calls[index].outputs}
    found, useful = [], record.useful
    for first, values in members.items():
        readers = {reader for value in values for reader in record.values[value].readers} & useful
        pools = any(record.calls[reader].kind in ("normalising", "reducing") for reader in readers)
        source = record.values[min(values)].call
        is_moved = source is not None and record.calls[source].kind == "movement"  # gated where it comes from
        if first not in fixed and pools and not is_moved and record.values[first].num_channels > 1:
            found.append(_gates(set(values), record, model, open_norms))
    found = [(gates, size) for gates, size in found if gates]
    sites = []
    names: set[str] = set()
    for gates, size in found:
        writer = next((g.layer for g in gates if g.layer and g.function != "layer_norm"), "residual")
        name = base = f"{writer}@{'stream' if open_norms else 'zeros'}"
        while name in names:
            name = f"{base}.{len(names)}"
        names.add(name)
        sites.append(GateSite(name, size, gates))
    return _removable(sites, record, model)


def _gates(values: set[int], record: Trace, model: nn.Module, open_norms: bool) -> tuple[tuple[GateCall, ...], int]:
    """The gates that make closed channels of a stream zero all along, () if none do, and how many channels it has."""
    size = record.values[min(values)].num_channels
    entries = {value: torch.arange(size) for value in values}
    norms: dict[int, Tensor] = {}
    for call in record.calls:
        if call.kind == "movement" and len(call.outputs) == 1 and call.outputs[0] not in values:
            found = _moved(call, entries)
            if found is not None:
                entries[call.outputs[0]] = found
        elif call.kind == "normalising" and call.function == "layer_norm" and call.operands[0] in entries:
            norms[call.index] = entries[call.operands[0]]
    shut = torch.ones(size, dtype=torch.bool)
    left_out = {index: torch.ones(len(of), dtype=torch.bool) for index, of in norms.items()}
    writers: dict[int, Tensor] = {}
    fresh = True
    while fresh:  # gates behind these close what other calls add
        known = constants(record, model, writers, left_out)
        fresh = False
        for call in record.calls:
            if call.function in _TRUTHS:
                continue
            inside = [output for output in call.outputs if output in values]
            operands = {operand for _, operand, _ in _kept_by(call, record)}
            reads = [v for v in operands if v in values and record.values[v].call is not None]
            is_open = any(bool((known[output] != 0).any()) for output in inside)
            if is_open and len(call.outputs) > 1:
                return (), size  # a part of a layer, such as a scale of adaptive norms
            if is_open and call.index not in writers and all(bool((known[operand] == 0).all()) for operand in reads):
                writers[call.index] = shut
                fresh = True
    places = sorted({**dict.fromkeys(writers), **norms})
    gates = []
    for index in places:
        call = record.calls[index]
        value = record.values[call.outputs[0]]
        of = norms.get(index)
        spread = None if of is None or torch.equal(of, torch.arange(size)) else tuple(of.tolist())
        dim, multiplies = 1 if value.dim is None else value.dim, index in norms and not open_norms
        layer = value.layer if call.function == "batch_norm" else call.layer  # which made the channels
        gates.append(GateCall(*call.key, dim, layer, spread, multiplies))
    return tuple(gates), size


def _moved(call: Call, entries: dict[int, Tensor]) -> Tensor | None:
    """Entries of the channels that a call copies; None if some have none."""
    result = torch.full((0,), -1)
    for k, operand in enumerate(call.operands):
        if operand in entries and (mapping := call.maps.get((k, 0))) is not None:
            theirs = torch.where(mapping >= 0, entries[operand][mapping.clamp(min=0)], -1)
            result = theirs if not len(result) else torch.maximum(result, theirs)
    return result if len(result) and bool((result >= 0).all()) else None


def _removable(sites: list[GateSite], record: Trace, model: nn.Module) -> list[GateSite]:
    """The sites whose closed channels can be removed: a random half of them is closed in each."""
    generator = torch.Generator().manual_seed(0)
    closed: dict[int, Tensor] = {}
    normed: dict[int, Tensor] = {}
    for site in sites:
        mask = torch.randperm(site.num_channels, generator=generator) < max(1, site.num_channels // 2)
        for gate in site.calls:
            places = normed if gate.is_layer_norm else closed
            places[record.call_of[gate.key].index] = gate.spread(mask, False)
    if not sites:
        return []
    layout = lay_out(record, model, closed, "intersection", normed=normed)
    shut = {**closed, **normed}

    def goes(gate: GateCall) -> bool:
        call = record.call_of[gate.key]
        return not bool((layout.present[call.outputs[0]] & shut[call.index]).any())

    return [site for site in sites if all(goes(gate) for gate in site.calls)]
