"""The stage that removes closed channels."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...data.batch import input_map
from ...errors import BiseError
from ...gates.masks import MaskSet
from ...mask_search import SearchResult
from ...pruning import PruningResult, prune
from ...pruning.plan import PruningPlan
from ...pruning.searched import prune_as_searched
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
    widths: dict[str, Any] = {"joins": config.joins, "round_to": config.round_to, "round_fill": config.round_fill}
    result = None
    try:
        if isinstance(masks, PruningPlan):
            result = prune(dense, masks, example)
        elif found is not None and config.target is not None:
            result = prune_as_searched(dense, masks, example, config.target, **widths)
        if result is None and isinstance(masks, MaskSet):
            result = prune(
                dense,
                masks,
                example,
                config.target_sparsity,
                target_flops=config.target_flops,
                target_latency=config.target_latency,
                layer_floor=config.layer_floor,
                **widths,
            )
    except BiseError as error:
        if found is None:
            raise
        kept = f"the masks are kept; prune by them with --masks {config.output / MASK_FILE} and another --output"
        raise type(error)(f"{error}; {kept}") from error
    assert result is not None
    return dataclasses.replace(result, model=result.model.cpu(), masked=result.masked.cpu())
