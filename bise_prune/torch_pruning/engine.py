"""Removal of whole dependency groups by Torch-Pruning's own engine, for comparison with the exact removal."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..channels import Analysis, analyse
from ..gates.gated_model import constant_gates
from ..gates.masks import GateSite
from ..tracing import Inputs, Trace
from .graph import DependencyGroup, build_graph, dependency_groups, remove_channels


@dataclass(frozen=True)
class GroupRemoval:
    """The result of a removal by Torch-Pruning's engine.

    Attributes:
        model: the slim network; it still has gates with fixed masks where closed channels had to stay.
        kept: layer name -> bool over its output channels, True = kept, for layers that lost channels.
        stays: site name -> closed channels that stay, since they are coupled to open channels.
    """

    model: nn.Module
    kept: dict[str, Tensor]
    stays: dict[str, tuple[int, ...]]


def remove_by_groups(
    model: nn.Module, keep: Mapping[str, Tensor], sites: Sequence[GateSite], record: Trace, example_inputs: Inputs
) -> GroupRemoval:
    """Remove from a copy of ``model`` the channels that are zero in every layer of a dependency group (experimental).

    Closed channels that are coupled to open ones stay and are multiplied by zero; a layer that would be left empty
    keeps one channel.

    Args:
        model: the dense network; never changed.
        keep: site name -> mask, bool of shape (channels,), True = keep.
        sites: its gate sites.
        record: its trace.
        example_inputs: its input(s), batch first.
    """
    slim = copy.deepcopy(model).eval()
    graph = build_graph(slim, example_inputs)
    closed = {record.call_of[gate.key].index: ~keep[site.name].cpu() for site in sites for gate in site.calls}
    analysis = analyse(record, model, closed)
    removed: dict[str, tuple[int, ...]] = {}
    gone: dict[str, Tensor] = {}
    for group in dependency_groups(graph):
        channels = _removable(group, record, analysis)
        if bool(channels.all()):
            channels[0] = False
        if bool(channels.any()):
            removed[group.root] = tuple(channels.nonzero().flatten().tolist())
            for member in group.members:
                if member.is_output:
                    mask = gone.setdefault(member.layer, torch.zeros(_width(model, member.layer), dtype=torch.bool))
                    mask[member.channels[channels[member.roots]]] = True
    remove_channels(graph, removed)
    leftover, open_there, stays = [], {}, {}
    for site in sites:
        for gate in site.calls:
            (output,) = record.call_of[gate.key].outputs
            there = _remaining(output, record, gone, {})
            mask = keep[site.name].cpu()
            if not bool(mask[there].all()):
                stays[site.name] = tuple((there & ~mask).nonzero().flatten().tolist())
                name = f"{site.name}#{gate.count}"
                leftover.append(GateSite(name, int(there.sum()), (gate,)))
                open_there[name] = mask[there]
    kept = {name: ~mask for name, mask in gone.items() if bool(mask.any())}
    return GroupRemoval(constant_gates(slim, leftover, open_there) if leftover else slim, kept, stays)


def _removable(group: DependencyGroup, record: Trace, analysis: Analysis) -> Tensor:
    """Return the channels of a dependency group that only its layers read, and read as zero."""
    removable = torch.full((group.num_channels,), group.followed)
    readers = 0
    for member in group.members:
        for call in record.calls_of(member.layer):
            value = call.operands[0] if not member.is_output else call.outputs[0]
            readers += not member.is_output
            size = record.values[value].num_channels if value is not None else 0
            if value is None or call.groups not in (1, size) or size <= int(member.channels.max()):
                return torch.zeros_like(removable)
            if member.is_output:
                live = analysis.live(value)
            else:
                live = analysis.constant[value] != 0  # NaN (live) differs from 0, too
            removable[member.roots[live[member.channels]]] = False
        if not record.calls_of(member.layer):
            return torch.zeros_like(removable)
    return removable & bool(readers)


def _remaining(value: int, record: Trace, gone: Mapping[str, Tensor], seen: dict[int, Tensor]) -> Tensor:
    """Return which channels of a value are left when layers have lost the channels in ``gone``."""
    if value not in seen:
        index = record.values[value].call
        call = record.calls[index] if index is not None else None
        there = torch.ones(record.values[value].num_channels, dtype=torch.bool)
        if call is not None and call.kind == "mixing" and call.layer is not None and call.layer in gone:
            there = ~gone[call.layer]
        elif call is not None and call.kind not in ("mixing", "opaque"):
            for (k, o), mapping in call.maps.items():
                operand = call.operands[k]
                if operand is not None and call.outputs[o] == value:
                    source = _remaining(operand, record, gone, seen)
                    if len(source) > 1:
                        there &= (mapping < 0) | source[mapping.clamp(min=0)]
        seen[value] = there
    return seen[value]


def _width(model: nn.Module, layer: str) -> int:
    """Return the number of output channels of a layer."""
    weight = model.get_submodule(layer).weight
    assert isinstance(weight, Tensor)
    return weight.shape[0]
