"""Pruning once more by the masks of a plan, with other widths or another lowering."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from ..config import RoundFill, lowering_of
from ..gates.masks import MaskSet
from ..tracing import Inputs
from .exact import PruningResult, prune
from .planner import outcome_after


def prune_as_planned(
    model: nn.Module,
    planned: PruningResult,
    masks: MaskSet,
    example_inputs: Inputs,
    *,
    joins: str,
    round_to: int,
    round_fill: RoundFill = "zero",
) -> PruningResult:
    """Remove what another result has closed, with widths rounded up.

    Args:
        model: the dense network; never changed.
        planned: the other result, whose plan closes the channels; a target of it gets the share that is removed now.
        masks: the masks that its plan was made from; with ``round_fill="best"``, they rank the closed channels.
        example_inputs: input(s) of the network, batch first.
        joins: lowering, "intersection" or "expand".
        round_to: see :func:`bise_prune.prune`.
        round_fill: see :class:`bise_prune.config.Rounding`.

    Raises:
        BiseError: as :func:`bise_prune.prune`.
    """
    logits = {}
    for name, mask in planned.plan.keep.items():
        keep = mask.cpu()
        ranks = masks.logits[name].cpu().double()
        closed = ranks - ranks[~keep].max() - 1 if not bool(keep.all()) else ranks  # < 0, in the same order
        logits[name] = torch.where(keep, torch.ones_like(ranks), closed)
    result = prune(
        model,
        MaskSet(logits, state=masks.state),
        example_inputs,
        joins=lowering_of(joins),
        round_to=round_to,
        round_fill=round_fill,
    )
    return replace(result, plan=replace(result.plan, target=outcome_after(planned.plan, result.plan)))
