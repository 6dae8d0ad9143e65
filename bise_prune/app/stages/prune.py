"""The stage that removes closed channels."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from ...data.batch import input_map
from ...errors import BiseError
from ...gates.masks import MaskSet
from ...mask_search import SearchResult
from ...pruning import PruningResult, prune
from ...pruning.exact import removed_share
from ...pruning.plan import PruningPlan
from ...pruning.planner import DeadNetworkError, outcome_of
from ...report.files import MASK_FILE
from ..session import Session


def pruned(session: Session, masks: MaskSet | PruningPlan, found: SearchResult | None) -> PruningResult:
    """The slim network, on the CPU; its lowering is chosen and its latency measured on the device of the run.

    Args:
        session: inputs of the run.
        masks: masks by which to prune, or a plan to carry out again.
        found: result of the search that the masks come from; None without a search.

    Raises:
        BiseError: the removal failed; after a search, the message says where its masks are.
    """
    config = session.config
    dense = session.on_device(session.dense)
    example = input_map(session.example, lambda tensor: tensor.to(session.device))
    try:
        if isinstance(masks, PruningPlan):
            result = prune(dense, masks, example)
        elif found is not None and (within := _as_searched(session, dense, masks, example)) is not None:
            result = within
        else:
            result = prune(
                dense,
                masks,
                example,
                config.target_sparsity,
                target_flops=config.target_flops,
                target_latency=config.target_latency,
                joins=config.joins,
                round_to=config.round_to,
                round_fill=config.round_fill,
                layer_floor=config.layer_floor,
            )
    except BiseError as error:
        if found is None:
            raise
        kept = f"the masks are kept; prune by them with --masks {config.output / MASK_FILE} and another --output"
        raise type(error)(f"{error}; {kept}") from error
    return dataclasses.replace(result, model=result.model.cpu(), masked=result.masked.cpu())


def _as_searched(session: Session, dense: nn.Module, masks: MaskSet, example: Any) -> PruningResult | None:
    """The network with exactly the channels that the search closed, if this meets the target; None otherwise."""
    config, target = session.config, session.config.target
    if target is None:
        return None
    try:
        result = prune(dense, masks, example, joins=config.joins)
    except DeadNetworkError:
        return None
    reached = removed_share(target, dense, result, example)
    if abs(reached - target.removed) > target.tolerance:
        return None
    if config.round_to != 1:
        result = prune(
            dense, masks, example, joins=config.joins, round_to=config.round_to, round_fill=config.round_fill
        )
    outcome = {**outcome_of(target, reached), "by": "search"}
    return dataclasses.replace(result, plan=dataclasses.replace(result.plan, target=outcome))
