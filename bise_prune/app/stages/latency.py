"""The stage that removes channels until the ONNX file takes the share of the dense one's latency that was asked for."""

from __future__ import annotations

import dataclasses
from functools import partial

from ...channels import Joins
from ...config import FARTHEST
from ...errors import PruningError
from ...gates.masks import MaskSet
from ...pruning import PruningResult, prune
from ...pruning.planner import outcome_of
from ...pruning.widths import MULTIPLES, WidthTrial, choose
from ..session import Session
from .widths import on_device, with_measured_widths

_TRIES = 6
_CLOSE = 0.02  # of the latency: no further try is made
_SMALLEST = 0.2  # of a share that is too slow: the next one is at least so much of it


def with_target_latency(session: Session, masks: MaskSet, is_searched: bool) -> tuple[PruningResult, list[WidthTrial]]:
    """Remove the channels of lowest mask logit until the latency in onnxruntime is the one that was asked for.

    The latency is the geometric mean, over the batch sizes of the report, of the slim network's divided by the dense
    one's. Shares of the FLOPs are tried one after another, each with the widths and the lowering that are the fastest
    for it; the next share lies on the line through the two tries that are nearest to the target.

    Args:
        session: inputs of the run.
        masks: masks to rank the channels by.
        is_searched: whether a search for this target closed them: then they are tried as they are first.

    Returns:
        The network whose latency is the nearest, and what was measured to choose its widths.

    Raises:
        PruningError: no network comes near the target.
    """
    config, target = session.config, session.config.target
    assert target is not None
    multiples = MULTIPLES if config.round_to == "auto" else (config.round_to,)
    known = [(1.0, 1.0)]  # shares of the FLOPs and of the latency
    best: tuple[float, PruningResult, list[WidthTrial]] | None = None
    share = None if is_searched else target.left
    for _ in range(_TRIES):
        try:
            make = partial(_with_flops, session, masks, share)
            result, trials = with_measured_widths(session, make, multiples)
        except PruningError:
            if share is None:  # what the search has closed leaves no network
                share = target.left
                continue
            if best is None:
                raise
            break  # there are no smaller networks
        left = trials[choose(trials)].mean_ratio
        if best is None or abs(left - target.left) < abs(best[0] - target.left):
            best = left, result, trials
        if abs(left - target.left) <= _CLOSE:
            break
        known.append((result.plan.macs[1] / result.plan.macs[0] if share is None else share, left))
        share = _next_share(known, target.left)
    assert best is not None
    left, result, trials = best
    if abs(left - target.left) > FARTHEST:
        raise PruningError(
            f"no network of this ranking takes {target.left:.0%} of the dense network's latency in onnxruntime: the "
            f"nearest takes {left:.0%}"
        )
    outcome = {**outcome_of(target, 1 - left), "layer_floor": config.layer_floor}
    return dataclasses.replace(result, plan=dataclasses.replace(result.plan, target=outcome)), trials


def _with_flops(session: Session, masks: MaskSet, share: float | None, joins: Joins, multiple: int) -> PruningResult:
    """The slim network with a share of the FLOPs, given the lowering and the multiple of its widths.

    Args:
        session: inputs of the run.
        masks: masks to rank the channels by.
        share: share of the FLOPs that stays; None for what the masks close.
        joins: the lowering.
        multiple: multiple that widths are rounded up to.
    """
    config = session.config
    result = prune(
        *on_device(session, masks), target_flops=share, layer_floor=config.layer_floor, joins=joins, round_to=multiple,
        round_fill=config.round_fill,
    )  # fmt: skip
    return dataclasses.replace(result, plan=dataclasses.replace(result.plan, target={}))


def _next_share(known: list[tuple[float, float]], wanted: float) -> float:
    """The share of the FLOPs at which a latency is expected, from at least two measured pairs of both.

    It lies on the line through the two pairs that enclose the latency or, if all are slower, through the fastest two.
    """
    slower = sorted((pair for pair in known if pair[1] >= wanted), key=lambda pair: pair[1])
    faster = max((pair for pair in known if pair[1] < wanted), key=lambda pair: pair[1], default=None)
    share, latency = slower[0]
    other = slower[1] if faster is None else faster
    slope = (other[1] - latency) / (other[0] - share) if other[0] != share else 0.0
    if slope <= 0:  # by the noise of the measurement
        return min(pair[0] for pair in slower) / 2 if faster is None else (share + faster[0]) / 2
    return max(share - (latency - wanted) / slope, share * _SMALLEST)
