"""The stage that removes closed channels."""

from __future__ import annotations

import dataclasses
from typing import Any

from ...data.batch import input_map
from ...distributed import share_object, world
from ...errors import BiseError, ChanceLevelError
from ...gates.masks import MaskSet
from ...mask_search import SearchResult
from ...pruning import PruningResult, prune
from ...pruning.plan import PruningPlan
from ...pruning.searched import prune_as_searched
from ...report.advice import advice
from ...report.files import MASK_FILE
from ..session import Session


def pruned_by_first(session: Session, masks: MaskSet | PruningPlan, found: SearchResult | None) -> PruningResult | None:
    """The slim network as the first process makes it; None in the others, unless finetuning shares it among all.

    Args:
        session: inputs of the run.
        masks: masks by which to prune, or a plan to carry out again.
        found: result of the search that the masks come from; None without a search.

    Raises:
        BiseError: the removal failed; if the network is to be finetuned, in every process, so that none waits.
    """
    shared, slim = session.config.finetune is not None, None
    outcome: PruningPlan | BiseError | None = None
    if world()[0] == 0:
        try:
            slim = pruned(session, masks, found)
            outcome = slim.plan
        except BiseError as error:
            if not shared:
                raise
            outcome = error
    if shared:
        agreed = share_object(outcome)
        if isinstance(agreed, BiseError):
            raise agreed
        slim = pruned(session, agreed, found) if slim is None else slim  # every process finetunes its own copy
    return slim


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
        if isinstance(error, ChanceLevelError) and (help := advice(config, searched=True)):
            kept += f"; to try: {help}"
        raise type(error)(f"{error}; {kept}") from error
    assert result is not None
    return dataclasses.replace(result, model=result.model.cpu(), masked=result.masked.cpu())
