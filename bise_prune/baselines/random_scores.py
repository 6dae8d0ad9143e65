"""Score channels at random."""

from __future__ import annotations

import torch
from torch import nn

from ..config import Placement
from ..gates.masks import MaskSet
from ..gates.sites import gate_sites
from ..tracing import Inputs


def random_masks(model: nn.Module, example_inputs: Inputs, seed: int = 0, placement: Placement = "all") -> MaskSet:
    """Draw a uniform random score per channel: :func:`bise_prune.prune` to a target then removes channels at random.

    Args:
        model: network; never changed.
        example_inputs: model input(s), batch first.
        seed: random seed of the scores.
        placement: which outputs share one mask; see :func:`bise_prune.gate_sites`.

    Returns:
        The scores as mask logits, all in [0, 1), for use with a target.
    """
    generator = torch.Generator().manual_seed(seed)
    sites = gate_sites(model, example_inputs, placement)
    return MaskSet(
        {site.name: torch.rand(site.num_channels, generator=generator) for site in sites}, {"criterion": "random"}
    )
