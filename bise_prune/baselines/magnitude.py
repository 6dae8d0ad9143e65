"""Score channels by the norm of their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import Placement
from ..errors import ModelError
from ..gates.masks import GateSite, MaskSet
from ..gates.sites import sites_in
from ..tracing import Inputs, Trace, trace


def magnitude_masks(model: nn.Module, example_inputs: Inputs, placement: Placement = "all") -> MaskSet:
    """Score each channel by the L2 norm of its filter; of several layers that share a mask, all filters count together.

    Inside attention, a channel of values and a head count by the filters of the values, a pair by that of its query.

    Args:
        model: network; never changed.
        example_inputs: model input(s), batch first.
        placement: which outputs share one mask; see :func:`bise_prune.gate_sites`.

    Returns:
        The scores as mask logits, all >= 0, for use with a target.

    Raises:
        ModelError: a mask gates channels that no single layer produces.
    """
    scores = {}
    record = trace(model, example_inputs)
    for site in sites_in(record, model, placement):
        if site.calls[0].entries is not None:
            scores[site.name] = _inside_attention(site, record, model)
            continue
        squares = torch.zeros(site.num_channels, dtype=torch.float64)
        layers = dict.fromkeys(call.layer for call in site.calls if call.function != "layer_norm")
        if site.is_stream and len(layers) > 1:
            layers.pop(None, None)  # class tokens and positions
        for layer in layers:
            calls = record.calls_of(layer or "")
            if not calls or calls[0].weights is None:
                raise ModelError(f"the channels of '{site.name}' have no filters of their own to measure")
            weight, dim = calls[0].weights.of(model), 1 if calls[0].transposed else 0
            squares += weight.detach().cpu().double().transpose(0, dim).flatten(1).square().sum(1)
        scores[site.name] = squares.sqrt().float()
    return MaskSet(scores, {"criterion": "magnitude"})


def _inside_attention(site: GateSite, record: Trace, model: nn.Module) -> Tensor:
    """The norms of the filters of a site inside attention."""
    (gate,) = site.calls
    call, entries = record.call_of[gate.key], torch.tensor(gate.entries)
    channels = torch.arange(len(entries))
    if (attention := record.attention_of.get(call.index)) is not None:  # its merged results, which values make
        channels[attention.results.channels] = attention.values.channels
        source = record.values[attention.values.whole].call
        call = record.calls[source] if source is not None else call
    if call.weights is None:
        raise ModelError(f"the channels of '{site.name}' have no filters of their own to measure")
    weight, dim = call.weights.of(model), 1 if call.transposed else 0
    squares = weight.detach().cpu().double().transpose(0, dim).flatten(1).square().sum(1)[channels]
    gated = entries >= 0
    return (
        torch.zeros(site.num_channels, dtype=torch.float64).index_add(0, entries[gated], squares[gated]).sqrt().float()
    )
