"""Importance of channels by other criteria than learned masks: random, magnitude, Taylor (BISE, Fig. 3b)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from .artifacts import GateSite, MaskSet
from .config import Placement
from .data.batch import Loader, as_batch
from .errors import ModelError
from .gates import GatedModel, gate_sites
from .tracing import Inputs, logits_of, run


def random_masks(model: nn.Module, example_inputs: Inputs, seed: int = 0, placement: Placement = "tied") -> MaskSet:
    """Scores drawn uniformly: :func:`bise_prune.prune` to a target then removes channels at random.

    Args:
        model: the network; never changed.
        example_inputs: its input(s), batch first.
        seed: of the draw.
        placement: see :func:`bise_prune.gate_sites`.
    """
    generator = torch.Generator().manual_seed(seed)
    sites = gate_sites(model, example_inputs, placement)
    return MaskSet(
        {site.name: torch.rand(site.num_channels, generator=generator) for site in sites}, {"criterion": "random"}
    )


def magnitude_masks(model: nn.Module, example_inputs: Inputs, placement: Placement = "tied") -> MaskSet:
    """The L2 norm of each channel's filter; where several layers share a mask, that of all their filters.

    See :func:`random_masks` for the arguments.

    Raises:
        ModelError: a mask gates channels that no single layer produces.
    """
    scores = {}
    for site in gate_sites(model, example_inputs, placement):
        squares = torch.zeros(site.num_channels, dtype=torch.float64)
        for layer in dict.fromkeys(call.layer for call in site.calls if call.kind != "layer_norm"):
            weight = None if layer is None else model.get_submodule(layer).weight
            if not isinstance(weight, Tensor):
                raise ModelError(f"the channels of '{site.name}' have no filters of their own to measure")
            dim = 1 if isinstance(model.get_submodule(layer or ""), nn.modules.conv._ConvTransposeNd) else 0
            squares += weight.detach().cpu().double().transpose(0, dim).flatten(1).square().sum(1)
        scores[site.name] = squares.sqrt().float()
    return MaskSet(scores, {"criterion": "magnitude"})


def taylor_masks(
    model: nn.Module,
    loader: Loader,
    placement: Placement = "tied",
    weights: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> MaskSet:
    """First-order estimate of what closing a channel does to the cross-entropy: |mean over the data of dL/dgate|.

    Args:
        model: the network; never changed.
        loader: one pass over it is made.
        placement: see :func:`bise_prune.gate_sites`.
        weights: of the samples, from labels (N,) and bias labels (N, K); 1 if not given.
    """
    device = next(model.parameters()).device
    model = copy.deepcopy(model).eval().requires_grad_(False)
    sites: list[GateSite] = []
    total: Sequence[Tensor] = []
    count = 0
    for raw in loader:
        batch = as_batch(raw).to(device)
        if not sites:
            sites = gate_sites(model, batch.input, placement)
            total = [torch.zeros(site.num_channels, device=device) for site in sites]
        gates = [torch.ones_like(values).requires_grad_() for values in total]
        with GatedModel(model, sites, nn.Identity()).gating(gates):
            losses = cross_entropy(logits_of(run(model, batch.input)), batch.target, reduction="none")
        if weights is not None:
            losses = losses * weights(batch.target, batch.bias)
        slopes = torch.autograd.grad(losses.sum(), gates)
        total = [sum_ + slope for sum_, slope in zip(total, slopes, strict=True)]
        count += len(losses)
    scores: Mapping[str, Tensor] = {
        site.name: (values / max(count, 1)).abs().cpu() for site, values in zip(sites, total, strict=True)
    }
    return MaskSet(scores, {"criterion": "taylor"})
