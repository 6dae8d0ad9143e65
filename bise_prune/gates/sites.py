"""Gate sites: finding the outputs of a network that are gated, and which of them share one mask."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..channels import lay_out
from ..config import PLACEMENTS, Placement
from ..errors import ConfigError, ModelError
from ..tracing import Call, Inputs, Nonlinearity, Reason, Trace, Why, trace
from .attention import attention_sites
from .masks import GateCall, GateSite, MaskSet, part_gated
from .streams import stream_sites, streams

# What the sites of a placement may gate beside the outputs of layers, by their names.
_IN_BLOCKS = frozenset({"unit", "groups", "heads", "values", "pairs"})
_PARTS: Mapping[Placement, frozenset[str]] = {
    "all": _IN_BLOCKS | {"zeros"}, "streams": _IN_BLOCKS | {"stream"}, "tied": _IN_BLOCKS,
    "feed-forward": frozenset({"unit"}), "paper": frozenset(),
}  # fmt: skip


def gate_sites(model: nn.Module, example_inputs: Inputs, placement: Placement = "all") -> list[GateSite]:
    """Find the gate sites of ``model``, the outputs of its nonlinearities, by running it once.

    Args:
        model: any network that runs in Python and ends in a classifier head; never changed.
        example_inputs: its input(s), batch first.
        placement: which outputs share one mask. "tied" gives one mask to all outputs whose channels can only be removed
            together (a dependency group), including the stem, and gates only where a closed channel can be removed;
            inside attention it gates whole heads, the channels of values, and pairs of a query with a key channel, and
            behind a group norm the channels of a group together. "feed-forward" is the same without these two. "all" is
            "tied" with gates on residual streams, in all layers that write into them and behind layer norms that read
            them, which compute with closed channels as zeros. With "streams", layer norms compute mean and variance
            over open channels instead. "paper" gives every gated output its own mask; as in the paper's ResNet-18
            (3,840 mask logits), the stem of a network with branches (its first nonlinearity, if it comes before the
            first fork) has none. In a transformer with layer norms behind its residual sums (BERT), "paper" puts gates
            in front of the nonlinearities, and on what feed-forward blocks add to the residual stream, whose layer norm
            then leaves closed channels out (46,848 mask logits in BERT-base).

    Returns:
        The sites in order of execution.

    Raises:
        ModelError: the network has no classifier head, or no nonlinearity before it.
        ConfigError: the placement is unknown.
    """
    record = trace(model, example_inputs)
    return sites_in(record, model, placement)


def sites_in(record: Trace, model: nn.Module, placement: Placement) -> list[GateSite]:
    """Find the gate sites as :func:`gate_sites` does, for a network that has already been traced."""
    if placement not in PLACEMENTS:
        raise ConfigError(f"unknown placement '{placement}': choose one of {', '.join(PLACEMENTS)}")
    if not record.heads:
        raise ModelError(
            "the network's logits are not the channels of a linear or convolutional layer, so that it has no "
            "classifier to leave alone; wrap it so that it ends in one"
        )
    head = record.heads[0]
    inner = record.scales | set(record.attention_of)  # what only scales, and what cuts scores of attention off
    eligible = [n for n in record.nonlinearities if n.call not in inner and n.call < head.index]
    sites, others, why = list[GateSite](), list[GateSite](), None
    if placement == "paper":
        sites = _paper_sites(eligible, record) if eligible else []
    else:
        sites, why = _tied_sites(eligible, model, record, in_blocks=placement != "feed-forward")
    if placement in ("all", "tied", "streams"):
        others = attention_sites(record, model)
    if placement in ("all", "streams"):
        gated = {record.call_of[gate.key].index for site in (*sites, *others) for gate in site.calls}
        others += stream_sites(record, model, gated, open_norms=placement == "streams")
    if not sites and not others and not eligible:
        raise ModelError(f"the network has no nonlinearity before its head '{head.layer}', so there is nothing to gate")
    if not sites and not others:
        raise ModelError(f"no closed channel of this network could be removed{_advice(why, placement)}")
    return _as_traced([*sites, *others], record)


def _as_traced(sites: list[GateSite], record: Trace) -> list[GateSite]:
    """The sites, which know on which path of the network their calls are."""
    return [replace(site, as_exported=True) for site in sites] if record.as_exported else sites


def sites_of(masks: MaskSet, model: nn.Module, example_inputs: Inputs) -> list[GateSite]:
    """Find the gate sites of ``model`` that the masks were learned for, in either placement.

    Args:
        model: the dense network; never changed.
        masks: the masks.
        example_inputs: its input(s), batch first.

    Raises:
        ModelError: the masks belong to another network.
    """
    return matching_sites(trace(model, example_inputs), model, masks)


def matching_sites(record: Trace, model: nn.Module, masks: MaskSet) -> list[GateSite]:
    """Find the gate sites as :func:`sites_of` does, for a network that has already been traced."""
    wanted = {name: len(logits) for name, logits in masks.logits.items()}
    complaint = ""
    for placement in sorted(reversed(PLACEMENTS), key=lambda placement: not _may_name(placement, wanted)):
        try:
            sites = sites_in(record, model, placement)
        except ModelError as error:
            complaint += f"; {placement}: {error}"
            continue
        found = {site.name: site.num_channels for site in sites}
        if found == wanted:
            return sites
        foreign = [name for name in wanted if name not in found]
        missing = [name for name in found if name not in wanted]
        sizes = [name for name in wanted if name in found and wanted[name] != found[name]]
        complaint += f"; {placement}: unknown {foreign[:3]}, missing {missing[:3]}, other length {sizes[:3]}"
    raise ModelError(f"the masks do not belong to this network{complaint}")


def _may_name(placement: Placement, names: Iterable[str]) -> bool:
    """Whether sites of a placement may have such names: it takes much longer to find the sites."""
    return {part_gated(name) for name in names} - {""} <= _PARTS[placement]


def _paper_sites(eligible: list[Nonlinearity], record: Trace) -> list[GateSite]:
    """Return one site per gated output, as in the paper."""
    normalised = {n.call: place for n in eligible if (place := _layer_norm_behind(n, record)) is not None}
    if normalised:
        return _transformer_sites(eligible, normalised, record)
    fork = record.first_fork
    has_stem = fork is not None and eligible[0].call < fork and len(eligible) > 1
    gated = eligible[1:] if has_stem else eligible
    return _named([(n.layer or f"{n.function}.{n.index}", n.num_channels, (_gate_on(n, record),)) for n in gated])


def _gate_on(n: Nonlinearity, record: Trace, block: int = 1) -> GateCall:
    """Return the gate on the output of a nonlinearity, with an entry for each ``block`` of neighbouring channels."""
    entries = None if block == 1 else tuple(channel // block for channel in range(n.num_channels))
    return GateCall(*record.calls[n.call].key, n.dim, n.layer, entries)


def _named(places: Sequence[tuple[str, int, tuple[GateCall, ...]]]) -> list[GateSite]:
    """Make sites with unique names: further sites of the same layer get ``@1``, ``@2`` and so on."""
    counts: dict[str, int] = {}
    sites = []
    for base, num_channels, calls in places:
        count = counts[base] = counts.get(base, 0) + 1
        sites.append(GateSite(base if count == 1 else f"{base}@{count - 1}", num_channels, calls))
    return sites


def _transformer_sites(
    eligible: list[Nonlinearity], normalised: Mapping[int, tuple[Call, Call]], record: Trace
) -> list[GateSite]:
    """Gate the inputs of nonlinearities, and what feed-forward blocks add to the residual stream."""
    places: list[tuple[str, int, tuple[GateCall, ...]]] = []
    for n in eligible:
        layer = _linear_before(n, record)
        gate = _gate_on(n, record) if layer is None else GateCall(*layer.key, n.dim, layer.layer)
        places.append((n.layer or f"{n.function}.{n.index}", n.num_channels, (gate,)))
        if n.call in normalised:
            second, norm = normalised[n.call]
            value = record.values[second.outputs[0]]
            dim = len(value.shape) - 1
            calls = (
                GateCall(*second.key, dim, second.layer),
                GateCall(*norm.key, dim, norm.layer),
            )
            places.append((second.layer or f"linear.{second.count}", value.shape[-1], calls))
    return _named(places)


def _linear_before(n: Nonlinearity, record: Trace) -> Call | None:
    """Return the linear layer whose output a nonlinearity reads directly, if there is one."""
    source = None if n.source is None else record.values[n.source].call
    call = None if source is None else record.calls[source]
    return call if call is not None and call.function == "linear" else None


def _layer_norm_behind(n: Nonlinearity, record: Trace) -> tuple[Call, Call] | None:
    """Return the second linear layer of a post-norm feed-forward block and the layer norm behind its residual sum.

    The block adds to what its first linear layer reads. In the last block of a pre-norm network, that layer reads a
    normalised stream instead, and the norm at the end of the network reads the sum.
    """
    first = _linear_before(n, record)
    second = _only_reader(record.calls[n.call].outputs[0], record)
    if first is None or second is None or second.function != "linear":
        return None
    added = _only_reader(second.outputs[0], record)
    if added is None or added.function != "add":
        return None
    norm = _only_reader(added.outputs[0], record)
    stream = {_undropped(operand, record) for operand in added.operands if operand is not None}
    is_post_norm = (
        norm is not None and norm.function == "layer_norm" and _undropped(first.operands[0], record) in stream
    )
    return (second, norm) if norm is not None and is_post_norm else None


def _only_reader(value: int, record: Trace) -> Call | None:
    """Return the only call that reads a value, behind any dropout, which does nothing here; None if there are more."""
    readers = record.values[value].readers
    call = record.calls[readers[0]] if len(readers) == 1 else None
    return _only_reader(call.outputs[0], record) if call is not None and call.function == "dropout" else call


def _undropped(value: int | None, record: Trace) -> int | None:
    """Return the value before any dropout."""
    index = None if value is None else record.values[value].call
    call = None if index is None else record.calls[index]
    return _undropped(call.operands[0], record) if call is not None and call.function == "dropout" else value


def _tied_sites(
    eligible: list[Nonlinearity], model: nn.Module, record: Trace, *, in_blocks: bool
) -> tuple[list[GateSite], Reason | None]:
    """One site for all gated outputs whose channels can only be removed together, and why others stay.

    Args:
        eligible: the nonlinearities that may be gated.
        model: the network.
        record: its trace.
        in_blocks: whether channels that a group norm normalises together share an entry.
    """
    stream = streams(record)
    blocks = _blocks(record, stream) if in_blocks else {}
    tied: dict[int, list[Nonlinearity]] = {}
    for n in eligible:
        (output,) = record.calls[n.call].outputs
        if record.values[output].num_channels == n.num_channels:
            tied.setdefault(stream[output], []).append(n)
    sites = []
    for group, members in tied.items():
        block = blocks.get(group, 1)
        name = members[0].layer or f"{record.calls[members[0].call].module}@unit.{members[0].index}"
        name += "" if block == 1 else "@groups"
        name += f"+{len(members) - 1}" if len(members) > 1 else ""
        gates = tuple(_gate_on(n, record, block) for n in members)
        sites.append(GateSite(name, members[0].num_channels // block, gates))
    return _removable(sites, model, record)


def _advice(why: Reason | None, placement: Placement) -> str:
    """The reason why no channel can be removed, and what to try."""
    reason = "" if why is None else f": {why}"
    if placement == "tied" and why is not None and why.why is Why.NORMALISES_ALL and why.function == "layer_norm":
        return f"{reason}; placement 'all' (--placement all) closes channels in front of layer norms"
    return f"{reason}; placement 'paper' (--placement paper) gates outputs one by one, of which some may be removable"


def _blocks(record: Trace, stream: Sequence[int]) -> dict[int, int]:
    """Return, per first value of a stream, how many neighbouring channels its group norms only lose together."""
    blocks: dict[int, int] = {}
    for call in record.calls:
        if call.kind == "normalising" and call.groups > 1:
            (output,) = call.outputs
            width = record.values[output].num_channels // call.groups
            blocks[stream[output]] = math.lcm(width, blocks.get(stream[output], 1))
    return {first: block for first, block in blocks.items() if record.values[first].num_channels % block == 0}


def _removable(sites: list[GateSite], model: nn.Module, record: Trace) -> tuple[list[GateSite], Reason | None]:
    """The sites whose closed entries can be removed, whatever other sites close.

    This is tested by closing a random half of the entries of each site.

    Returns:
        The sites, and the commonest reason why others stay; None if there is none.
    """
    generator = torch.Generator().manual_seed(0)
    shut: dict[int, Tensor] = {}
    for site in sites:
        mask = torch.randperm(site.num_channels, generator=generator) < max(1, site.num_channels // 2)
        shut |= {record.call_of[gate.key].index: gate.spread(mask, False) for gate in site.calls}
    layout = lay_out(record, model, shut, "intersection")
    removable, reasons = [], Counter[Reason]()
    for site in sites:
        calls = [record.call_of[gate.key] for gate in site.calls]
        stays = {call.outputs[0]: layout.present[call.outputs[0]] & shut[call.index] for call in calls}
        reasons.update(
            layout.reason(v, channel) for v, mask in stays.items() for channel in mask.nonzero()[:, 0].tolist()
        )
        if not any(bool(mask.any()) for mask in stays.values()):
            removable.append(site)
    return removable, next((reason for reason, _ in reasons.most_common(1)), None)
