"""Accuracy against sparsity as the threshold of the masks moves (BISE, App. J)."""

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
    """One threshold.

    Attributes:
        zeta: channels stay where sigma(m) >= zeta; .5 is the threshold of the search.
        closed: closed channels.
        sparsity: share of parameters that removal takes; None for a dead network.
        flops: share of multiply-accumulates that stay; None likewise.
        evaluation: of the masked network.
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
    """Evaluate the masked network at every threshold zeta on sigma(m), at temperature 1.

    Args:
        model: the dense network; never changed.
        masks: its learned masks.
        loader: data to evaluate on.
        aligned: the bias value each class is aligned with, shape (classes, K).
        example_inputs: its input(s), batch first.
        zetas: thresholds in [0, 1]; 0 keeps every channel and 1 none.
        joins: lowering by which sizes are counted.

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
    """Logits that are >= 0 where sigma(m) >= zeta."""
    if zeta in (0.0, 1.0):
        return torch.full_like(logits, 1.0 if zeta == 0 else -1.0)
    return logits.double() - math.log(zeta / (1 - zeta))
