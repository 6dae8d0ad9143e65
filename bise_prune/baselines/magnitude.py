"""Score channels by the norm of their weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..config import Placement
from ..errors import ModelError
from ..gates.masks import MaskSet
from ..gates.sites import gate_sites
from ..tracing import Inputs


def magnitude_masks(model: nn.Module, example_inputs: Inputs, placement: Placement = "tied") -> MaskSet:
    """Score each channel by the L2 norm of its filter; of several layers that share a mask, all filters count together.

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
    for site in gate_sites(model, example_inputs, placement):
        squares = torch.zeros(site.num_channels, dtype=torch.float64)
        for layer in dict.fromkeys(call.layer for call in site.calls if not call.is_layer_norm):
            weight = None if layer is None else model.get_submodule(layer).weight
            if not isinstance(weight, Tensor):
                raise ModelError(f"the channels of '{site.name}' have no filters of their own to measure")
            dim = 1 if isinstance(model.get_submodule(layer or ""), nn.modules.conv._ConvTransposeNd) else 0
            squares += weight.detach().cpu().double().transpose(0, dim).flatten(1).square().sum(1)
        scores[site.name] = squares.sqrt().float()
    return MaskSet(scores, {"criterion": "magnitude"})
