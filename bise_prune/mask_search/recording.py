"""Records each epoch, keeps the masks that the selection rules pick, and makes the result of the search."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import Tensor

from ..distributed import summed, world
from ..errors import BiseError
from ..gates.masks import MaskSet
from ..metrics.accuracy import Evaluation
from .assembly import Search
from .refitted import sample_size
from .result import EpochRecord, SearchResult
from .selection import ERRORS, LAST, NEED_BIAS, RULES, Selected, standard_error
from .state import SUMS

_TOLERANCE = 0.005  # accuracy that a gradual search without a budget may give away for a smaller network
_LAST_RESORT = 0.01  # that on training samples if there is no other, which a network may know by heart


def record_epoch(
    search: Search,
    epoch: int,
    temperature: float | None,
    training_accuracy: float | None = None,
    refitted_accuracy: float | None = None,
    logits: Tensor | None = None,
    is_traded: bool = False,
) -> EpochRecord:
    """Add the finished epoch to the history, and keep its masks for the selection rules by which they are the best.

    Args:
        search: the search.
        epoch: number of the epoch, from 1.
        temperature: temperature tau during the epoch; None in a gradual search.
        training_accuracy: see :class:`.result.EpochRecord`.
        refitted_accuracy: see :class:`.result.EpochRecord`.
        logits: mask logits that are kept, shape (M,), if not those of the search.
        is_traded: whether the epoch's masks are the best ones so far after trades, which lower the loss.

    Raises:
        BiseError: the loss is not finite.
    """
    state, gates = search.state, search.network.gates
    sums: dict[str, Any] = dict(zip(SUMS, _over_processes(search), strict=True))
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
        training_accuracy=training_accuracy,
        refitted_accuracy=refitted_accuracy,
    )
    state.history.append(record)
    _pick(search, record, logits, is_traded)
    return record


def _over_processes(search: Search) -> list[float]:
    """Means of the figures in :data:`SUMS` over the steps of the epoch, equal in every process."""
    sums, processes = search.state.tally.sums.clone(), world()[1]
    if processes > 1:
        sums = summed(sums)
        information, silent = SUMS.index("mutual_information"), SUMS.index("silent_share")
        sums[[information, silent]] /= processes  # every process has the whole value
        cross_entropy = SUMS.index("cross_entropy")
        sums[SUMS.index("objective")] = sums[cross_entropy] + search.config.mi_weight * sums[information]
    means: list[float] = (sums / search.state.steps).tolist()
    return means


def _validated(search: Search, unchanged: bool) -> Evaluation | None:
    """Validation accuracies of the epoch; None without validation data."""
    if search.validation is None:
        return None
    last = search.state.history[-1].validation if search.state.history else None
    return search.passes.validated(partial(search.validation.evaluate, search.network.gated), last, unchanged)


def _pick(search: Search, record: EpochRecord, logits: Tensor | None, is_traded: bool) -> None:
    """Keep the epoch's masks for every rule by which no earlier epoch is better.

    A gradual search without a budget closes more and more, and then settles. There, an epoch is kept if it is not worse
    than the whole network, with which the first epoch ends, and than the best by no more than :data:`_TOLERANCE`, since
    its network is smaller. For the last one, what counts is the whole network's accuracy on training samples. As long
    as nothing else is there, a standard error may be missing, or a point on training samples, since trades cannot start
    from the whole network; of both figures, where there are both.
    After trades, and in any epoch if masks are judged by a refitted head, the best may be better by up to one standard
    error: a few validation samples say less than the loss that trades have lowered.
    """
    picks, learned, history = search.state.picks, search.state.learned(), search.state.history
    if logits is not None:
        learned["logits"] = logits.cpu()
    closes_more = search.config.is_gradual and search.config.budget is None
    keeps_up = not closes_more or _keeps_up(search)
    if keeps_up:
        picks[LAST] = (record.epoch, None, learned)
    budget = search.config.budget
    if budget is not None and not budget.is_met(record.cost or 0.0):
        return  # the network is still larger than the budget
    for rule, score in RULES.items():
        if record.validation is None or (rule in NEED_BIAS and not (search.validation and search.validation.has_bias)):
            continue
        value = score(record.validation)
        met = [
            epoch.validation
            for epoch in history
            if epoch.validation is not None and (budget is None or budget.is_met(epoch.cost or 0.0))
        ]
        best, whole, error = max(met, key=score), met[0], ERRORS[rule]
        refits = search.config.refit == "head"
        missing = error(best) if refits or is_traded else _TOLERANCE if closes_more else 0.0
        least = score(best) - missing
        if closes_more and not refits:
            closed = [score(epoch.validation) for epoch in history if epoch.validation is not None and epoch.closed]
            is_alone = keeps_up and all(other < score(whole) for other in closed)
            least = min(least, score(whole) - error(whole)) if is_alone else max(least, score(whole))
        if value >= least:
            picks[rule] = (record.epoch, value, learned)


def _keeps_up(search: Search) -> bool:
    """Whether the last epoch is about as accurate on training samples as the first one, with the whole network."""
    first, *others = [record.training_accuracy or 0.0 for record in search.state.history]
    missing = _TOLERANCE
    if all(other < first - _TOLERANCE for other in others):
        size = sample_size(search.config, len(search.labels.known.target))
        missing = max(_LAST_RESORT, standard_error(first, size))
    return not others or others[-1] >= first - missing


def result_of(search: Search, stopped_early: bool) -> SearchResult:
    """The result of a finished search."""
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
    """The mask logits of a picked epoch by site, with the tensors of norm layers that they were learned with."""
    parts = learned["logits"].split(search.network.gates.sizes)
    logits = {site.name: part.clone() for site, part in zip(search.network.sites, parts, strict=True)}
    state = {name: tensor for name, tensor in learned.items() if name != "logits"}
    about = {"placement": search.config.placement, "epoch": str(epoch), "selected_by": rule}
    return MaskSet(logits, {**search.network.start.metadata, **about}, state)
