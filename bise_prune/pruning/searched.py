"""Pruning by masks whose search was to meet a target: as the search closed them, if that meets it."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from ..config import JoinsChoice, RoundFill, RoundTo, Target
from ..gates.masks import MaskSet
from ..tracing import Inputs
from .exact import PruningResult, prune, removed_share, time_ratio
from .planner import DeadNetworkError, outcome_after, outcome_of


def prune_as_searched(
    model: nn.Module,
    masks: MaskSet,
    example_inputs: Inputs,
    target: Target,
    *,
    counted_at: int = 1,
    or_smaller: bool = False,
    joins: JoinsChoice = "auto",
    round_to: RoundTo = 1,
    round_fill: RoundFill = "zero",
) -> PruningResult | None:
    """Remove exactly the channels that a search closed, if this meets its target.

    FLOPs are counted as the search counts them: multiply-accumulates of convolutions and linear layers.

    Args:
        model: the dense network; never changed.
        masks: the masks that the search found.
        example_inputs: input(s) of the network, batch first.
        target: the size that the search was to reach.
        counted_at: multiple at which the search counted widths, and at which the target is judged.
        or_smaller: whether a network that is smaller than asked is left as searched too.
        joins: see :func:`bise_prune.prune`.
        round_to: see :func:`bise_prune.prune`; the target's outcome in the plan is the share that is removed with
            widths rounded up to this multiple (except for a latency, which is measured once).
        round_fill: see :class:`bise_prune.config.Rounding`.

    Returns:
        The pruned network, whose plan has the outcome of the target; None if the target is missed, or if nothing of
        the input would reach the logits.
    """
    try:
        result = prune(model, masks, example_inputs, joins=joins, round_to=counted_at, round_fill=round_fill)
    except DeadNetworkError:
        return None
    slim, plan = result.model, result.plan
    reached = removed_share(target, plan, plan.macs[0], lambda: time_ratio(model, slim, example_inputs))
    is_smaller = reached > target.removed + target.tolerance
    if reached < target.removed - target.tolerance or (is_smaller and not or_smaller):
        return None
    planned = replace(plan, target={**outcome_of(target, reached), "by": "search"})
    if round_to == counted_at:
        return replace(result, plan=planned)
    result = prune(model, masks, example_inputs, joins=joins, round_to=round_to, round_fill=round_fill)
    return replace(result, plan=replace(result.plan, target=outcome_after(planned, result.plan)))
