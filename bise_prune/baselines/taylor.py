"""Score channels by a first-order estimate of how closing them changes the loss."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..config import Placement
from ..data.batch import Loader, as_batch
from ..gates.gated_model import GatedModel
from ..gates.masks import GateSite, MaskSet
from ..gates.sites import gate_sites
from ..tracing import logits_of, run


def taylor_masks(
    model: nn.Module,
    loader: Loader,
    placement: Placement = "all",
    weights: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> MaskSet:
    """Score each channel by a first-order estimate of how closing it changes the cross-entropy.

    The score is |mean over the samples of dL/dgate|, with all gates open.

    Args:
        model: network; never changed.
        loader: loader of the samples; one pass is made.
        placement: which outputs share one mask; see :func:`bise_prune.gate_sites`.
        weights: function from class labels (N,) and bias labels (N, K) to sample weights (N,); None = all weights are
            1.

    Returns:
        The scores as mask logits, all >= 0, for use with a target.
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
