"""The stage that removes closed channels."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from ...config import JoinsChoice
from ...distributed import share_object, world
from ...errors import BiseError, ChanceLevelError
from ...gates.masks import MaskSet
from ...mask_search import SearchResult
from ...pruning import PruningResult, prune
from ...pruning.plan import PruningPlan
from ...pruning.searched import prune_as_searched
from ...pruning.widths import WidthTrial
from ...report.advice import advice
from ...report.files import MASK_FILE
from ..session import Session
from .latency import with_target_latency
from .search import counted_at
from .widths import on_device, with_measured_widths


def pruned_by_first(
    session: Session, masks: MaskSet | PruningPlan, found: SearchResult | None
) -> tuple[PruningResult | None, list[WidthTrial]]:
    """The slim network as the first process makes it; None in the others, unless finetuning shares it among all.

    Args:
        session: inputs of the run.
        masks: masks by which to prune, or a plan to carry out again.
        found: result of the search that the masks come from; None without a search.

    Raises:
        BiseError: the removal failed; if the network is to be finetuned, in every process, so that none waits.
    """
    shared, slim = session.config.finetune is not None, None
    trials: list[WidthTrial] = []
    outcome: PruningPlan | BiseError | None = None
    if world()[0] == 0:
        try:
            slim, trials = pruned(session, masks, found)
            outcome = slim.plan
        except BiseError as error:
            if not shared:
                raise
            outcome = error
    if shared:
        agreed = share_object(outcome)
        if isinstance(agreed, BiseError):
            raise agreed
        slim = pruned(session, agreed, found)[0] if slim is None else slim  # every process finetunes its own copy
    return slim, trials


def pruned(
    session: Session, masks: MaskSet | PruningPlan, found: SearchResult | None
) -> tuple[PruningResult, list[WidthTrial]]:
    """The slim network, on the CPU; the channels to remove are chosen on the device of the run.

    With ``round_to="auto"``, widths and lowering are chosen by latency in onnxruntime. Otherwise the widths are those
    of the settings, and an open choice of the lowering is made by latency in torch. A target latency is that in
    onnxruntime.

    Args:
        session: inputs of the run.
        masks: masks by which to prune, or a plan to carry out again.
        found: result of the search that the masks come from; None without a search.

    Returns:
        The slim network, and what was measured to choose its widths: nothing if they were given.

    Raises:
        BiseError: the removal failed; after a search, the message says where its masks are.
    """
    config = session.config
    trials: list[WidthTrial] = []
    try:
        if isinstance(masks, PruningPlan):
            result = prune(*on_device(session, masks))
        elif config.target_latency is not None and session.dense_file is not None:
            result, trials = with_target_latency(session, masks, found is not None)
        elif config.round_to != "auto":
            result = _by_masks(session, masks, found, config.joins, config.round_to)
        else:
            make = partial(_by_masks, session, masks, found)
            result, trials = with_measured_widths(session, make)
    except BiseError as error:
        if found is None:
            raise
        kept = f"the masks are kept; prune by them with --masks {config.output / MASK_FILE} and another --output"
        if isinstance(error, ChanceLevelError) and (help := advice(config, searched=True)):
            kept += f"; to try: {help}"
        raise type(error)(f"{error}; {kept}") from error
    return dataclasses.replace(result, model=result.model.cpu(), masked=result.masked.cpu()), trials


def _by_masks(
    session: Session, masks: MaskSet, found: SearchResult | None, joins: JoinsChoice, round_to: int
) -> PruningResult:
    """The slim network by the target of the settings, with the given lowering and multiple."""
    config, arguments = session.config, on_device(session, masks)
    widths: dict[str, Any] = {"joins": joins, "round_to": round_to, "round_fill": config.round_fill}
    if found is not None and config.target is not None:
        kept = {"or_smaller": config.search.is_gradual, **widths}  # the paper's may end far below its target
        for multiple in dict.fromkeys((counted_at(config), 1)):  # or 1, if the target was not to be reached otherwise
            result = prune_as_searched(*arguments, config.target, counted_at=multiple, **kept)
            if result is not None:
                return result
    return prune(
        *arguments,
        config.target_sparsity,
        target_flops=config.target_flops,
        layer_floor=config.layer_floor,
        **widths,
    )
