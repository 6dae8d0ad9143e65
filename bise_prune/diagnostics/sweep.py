"""Accuracy against sparsity for different thresholds of the masks (BISE, App. J)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..channels import Joins
from ..data.batch import Loader
from ..errors import ConfigError
from ..gates.gated_model import apply_masks
from ..gates.masks import MaskSet
from ..gates.sites import sites_of
from ..metrics.accuracy import Evaluation, evaluate
from ..pruning.planner import DeadNetworkError, Planner
from ..tracing import Inputs

ZETAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True)
class SweepPoint:
    """Result for one threshold.

    Attributes:
        zeta: the threshold: channels with sigma(m) >= zeta are open; 0.5 is the threshold of the search.
        closed: number of closed channels.
        sparsity: share of the dense network's parameters that removal takes away; None if nothing of the input reaches
            the logits.
        flops: share of the dense network's multiply-accumulates, of convolutions and linear layers, that stay; None if
            nothing of the input reaches the logits.
        evaluation: accuracies of the masked network.
    """

    zeta: float
    closed: int
    sparsity: float | None
    flops: float | None
    evaluation: Evaluation


def threshold_sweep(
    model: nn.Module,
    masks: MaskSet,
    loader: Loader,
    aligned: Tensor,
    example_inputs: Inputs,
    zetas: Sequence[float] = ZETAS,
    joins: Joins = "expand",
) -> list[SweepPoint]:
    """Evaluate the masked network for each threshold zeta on sigma(m), at temperature 1.

    Args:
        model: dense network; never changed.
        masks: learned masks of the network.
        loader: loader of the data to evaluate on.
        aligned: the bias value that each class is aligned with, shape (classes, K), int64.
        example_inputs: model input(s), batch first.
        zetas: thresholds in [0, 1]; 0 opens every channel and 1 closes every channel.
        joins: lowering that sparsity and FLOPs are counted for; see :func:`bise_prune.prune`.

    Returns:
        One point per threshold.

    Raises:
        ConfigError: a threshold is out of range.
        ModelError: the masks belong to another network.
    """
    if not all(0 <= zeta <= 1 for zeta in zetas):
        raise ConfigError(f"zetas = {list(zetas)}: expected numbers in [0, 1]")
    planner = Planner(model, sites_of(masks, model, example_inputs), example_inputs)
    points = []
    for zeta in zetas:
        at = MaskSet({name: _shifted(logits, zeta) for name, logits in masks.logits.items()}, state=masks.state)
        sparsity = flops = None
        try:
            plan = planner.propose(at.keep, joins).plan
            sparsity, flops = plan.sparsity, plan.macs[1] / plan.macs[0]
        except DeadNetworkError:
            pass
        masked = apply_masks(model, at, example_inputs)
        points.append(SweepPoint(zeta, at.num_closed, sparsity, flops, evaluate(masked, loader, aligned)))
    return points


def _shifted(logits: Tensor, zeta: float) -> Tensor:
    """Mask logits that are >= 0 exactly where sigma(m) >= zeta."""
    if zeta in (0.0, 1.0):
        return torch.full_like(logits, 1.0 if zeta == 0 else -1.0)
    return logits.double() - math.log(zeta / (1 - zeta))
