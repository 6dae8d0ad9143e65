"""What is written down of an epoch, which masks are kept, and what is returned in the end."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from ..distributed import summed, world
from ..errors import BiseError
from ..gates.masks import MaskSet
from ..metrics.accuracy import Evaluation
from .assembly import Search
from .result import EpochRecord, SearchResult
from .selection import LAST, NEED_BIAS, RULES, Selected
from .state import SUMS


def record_epoch(search: Search, epoch: int, temperature: float) -> EpochRecord:
    """Note the epoch that has just ended in the state's history, and keep its masks where they are the best so far.

    Raises:
        BiseError: the loss is not finite.
    """
    state, gates = search.state, search.network.gates
    sums = dict(zip(SUMS, _over_processes(search), strict=True))
    if not all(abs(value) < float("inf") for value in sums.values()):
        raise BiseError(f"the loss is {sums['objective']} in epoch {epoch}: check the inputs for NaN, or lower mask_lr")
    flips = int(state.tally.flipped.sum())
    record = EpochRecord(
        epoch=epoch,
        temperature=temperature,
        **sums,
        mask_flips=flips,
        closed=int(gates.closed.sum()),
        cost=None if search.budget is None else search.budget.cost(gates.values),
        validation=_validated(search, unchanged=not flips and search.config.batchnorm == "frozen"),
    )
    state.history.append(record)
    _pick(search, record)
    return record


def _over_processes(search: Search) -> list[float]:
    """The epoch's means of :data:`SUMS`, the same in every process."""
    sums, processes = search.state.tally.sums.clone(), world()[1]
    if processes > 1:
        sums = summed(sums)
        information, silent = SUMS.index("mutual_information"), SUMS.index("silent_share")
        sums[[information, silent]] /= processes  # the same in every process
        cross_entropy = SUMS.index("cross_entropy")
        sums[SUMS.index("objective")] = sums[cross_entropy] + search.config.mi_weight * sums[information]
    means: list[float] = (sums / search.state.steps).tolist()
    return means


def _validated(search: Search, unchanged: bool) -> Evaluation | None:
    if search.validation is None:
        return None
    last = search.state.history[-1].validation if search.state.history else None
    return search.passes.validated(partial(search.validation.evaluate, search.network.gated), last, unchanged)


def _pick(search: Search, record: EpochRecord) -> None:
    """Keep the epoch's masks for every rule by which they are the best so far, or equal to them."""
    picks, learned = search.state.picks, search.state.learned()
    picks[LAST] = (record.epoch, None, learned)
    if search.budget is not None and not search.budget.is_met(record.cost or 0.0):
        return  # too large to be picked by its accuracy
    for rule, score in RULES.items():
        if record.validation is None or (rule in NEED_BIAS and not (search.validation and search.validation.has_bias)):
            continue
        value = score(record.validation)
        if rule not in picks or value >= (picks[rule][1] or 0.0):
            picks[rule] = (record.epoch, value, learned)


def result_of(search: Search, stopped_early: bool) -> SearchResult:
    """What was found."""
    picks = dict(search.state.picks)
    picks.setdefault(search.rule, picks[LAST])  # no epoch met the budget
    return SearchResult(
        picks={
            rule: Selected(epoch, _mask_set(search, epoch, rule, learned), score)
            for rule, (epoch, score, learned) in picks.items()
        },
        rule=search.rule,
        history=tuple(search.state.history),
        aligned=search.labels.aligned.cpu(),
        num_conflicting=search.labels.num_conflicting,
        stopped_early=stopped_early,
    )


def _mask_set(search: Search, epoch: int, rule: str, learned: dict[str, Tensor]) -> MaskSet:
    parts = learned["logits"].split(search.network.gates.sizes)
    logits = {site.name: part.clone() for site, part in zip(search.network.sites, parts, strict=True)}
    state = {name: tensor for name, tensor in learned.items() if name != "logits"}
    return MaskSet(logits, {"placement": search.config.placement, "epoch": str(epoch), "selected_by": rule}, state)
