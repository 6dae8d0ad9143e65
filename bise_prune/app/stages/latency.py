"""The stage that removes channels until the ONNX file takes the share of the dense one's latency that was asked for."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

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


def with_target_latency(
    session: Session, masks: MaskSet, is_searched: bool, dense_file: Path
) -> tuple[PruningResult, list[WidthTrial]]:
    """Remove the channels of lowest mask logit until the latency in onnxruntime is the one that was asked for.

    The latency is the geometric mean, over the batch sizes of the report, of the slim network's divided by the dense
    one's. Shares of the FLOPs are tried one after another, each with the widths and the lowering that are the fastest
    for it; the next share lies on the line between the two tries whose latencies enclose the target.

    Args:
        session: inputs of the run.
        masks: masks to rank the channels by.
        is_searched: whether a search for this target closed them: then they are tried as they are first.
        dense_file: ONNX file of the dense network.

    Returns:
        The network whose latency is the nearest, and what was measured to choose its widths.

    Raises:
        PruningError: no network comes near the target.
    """
    config, target = session.config, session.config.target
    assert target is not None
    multiples = MULTIPLES if config.round_to == "auto" else (config.round_to,)
    known = [(0.0, 0.0), (1.0, 1.0)]  # shares of the FLOPs and of the latency
    best: tuple[float, PruningResult, list[WidthTrial]] | None = None
    share = None if is_searched else target.left
    for _ in range(_TRIES):
        try:
            make = partial(_with_flops, session, masks, share)
            result, trials = with_measured_widths(session, make, dense_file, multiples)
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
    """The share of the FLOPs at which a latency is expected, from measured pairs of both: on a line between two."""
    slower = min((pair for pair in known if pair[1] >= wanted), key=lambda pair: pair[1])
    faster = max((pair for pair in known if pair[1] < wanted), key=lambda pair: pair[1])
    part = (wanted - faster[1]) / (slower[1] - faster[1])
    return min(max(faster[0] + part * (slower[0] - faster[0]), 0.01), 0.99)
