"""The stage that finds what the dense and the slim network are worth if a little more of them may change."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from ...config import lowering_of
from ...distributed import share_object, world
from ...errors import ConfigError, ModelError
from ...gates.bottleneck import head_name
from ...gates.masks import MaskSet
from ...mask_search.selection import resolve
from ...pruning import PruningResult, prune
from ...report.results import LadderFigures, RungFigures
from ...tracing import trace
from ...tuning.augmentation import augmentation
from ...tuning.finetuning import FinetuneResult
from ...tuning.ladder import Ladder, Norms, Rung
from ..session import Session
from .widths import on_device

ALL = "all"  # name of the rung at which all weights may change
_ON_TRAINED = (Rung.NORMS, Rung.HEAD)  # rungs whose masks are learned on the network with trained norm layers


def check_tuning(session: Session) -> None:
    """Check that the network has what the setting ``tune`` may change, and the data what decides on it.

    Raises:
        ConfigError: images are to be changed at random, and there are none; the last layer has no additive bias, so
            that there is no place for offsets; the network returns probabilities, and is to be finetuned; or the
            selection rule needs validation data, or bias labels on them, that are not there.
        ModelError: the network does not end in a linear layer.
    """
    if not session.config.unsupervised:
        _rule(session)
    if session.config.finetune is not None:
        augmentation(session.config.finetune.augment, session.splits.train.inputs)
        if trace(session.dense, session.example).has_softmax:
            raise ConfigError("finetuning needs logits, and the network returns probabilities: take its softmax out")
    if session.config.tune in ("none", ALL):
        return
    head = session.dense.get_submodule(head_name(session.dense, trace(session.dense, session.example)))
    if head.bias is None:
        raise ConfigError(
            f"tune '{session.config.tune}' changes the last layer's additive bias, which this network's does not have"
        )


def trains_norms_first(session: Session) -> bool:
    """Whether norm layers are trained before the search, where that helps, because ``tune`` lets them change.

    As a refitted last layer, that needs samples that the network was not trained on.
    """
    return session.config.tune in _ON_TRAINED and session.halves is not None and session.config.search.is_gradual


def trained_start(session: Session) -> MaskSet | None:
    """Norm layers that are trained before the search; see :func:`trains_norms_first`.

    They are trained as on the ladder of the dense network; masks are then learned on the network that is to be tuned.

    Returns:
        The changed tensors; None if no change helps.
    """
    changed = None
    if world()[0] == 0:
        ladder = ladder_of(session, session.dense, is_fitted_again=False)
        changed = ladder.changed_norms(Rung(session.config.tune))
    changed = share_object(changed)
    return MaskSet.for_start(changed) if changed else None


def climbed(
    session: Session, masks: MaskSet, slim: PruningResult, tuned: FinetuneResult | None
) -> tuple[nn.Module, PruningResult, LadderFigures | None]:
    """The network that is delivered, on the CPU, the removal that it comes from, and the figures of all rungs.

    Changes are fitted to the data that masks are learned on, and decided on the validation data. If results are
    reported on a test split, offsets and head are then fitted again to the whole validation set. If norm layers were
    trained before the search, the same channels are removed from the dense network as it is, for the rungs at which
    they must not change, or need not.

    Args:
        session: inputs of the run.
        masks: masks by which channels were removed.
        slim: result of the removal.
        tuned: result of finetuning; None without it.
    """
    delivered = ALL if tuned is not None else session.config.tune
    network = slim.model if tuned is None else tuned.model.cpu()
    plain = _as_it_is(session, slim) if masks.trained_before else slim
    try:
        rows = _rows("dense", ladder_of(session, session.dense), session)
        ladder = ladder_of(session, plain.model, start=slim.model if masks.trained_before else None)
        rows += _rows("slim", ladder, session)
    except ModelError:  # it does not end in a linear layer
        if session.config.tune not in ("none", ALL):
            raise
        return network, slim, None
    if delivered not in (ALL, "none"):
        network = ladder.model(Rung(delivered)).cpu()
        slim = plain if ladder.steps[Rung(delivered)].norms is Norms.OWN else slim
    if tuned is not None:
        changes: tuple[str, ...] = ()
        number = 0
        if tuned.epoch:
            changes, number = (ALL,), sum(parameter.numel() for parameter in network.parameters())
        elif session.config.tune == ALL:  # what it started from
            changes, number = ladder.steps[Rung.HEAD].changes, ladder.num_changed(Rung.HEAD)
        rows.append(RungFigures("slim", ALL, session.accuracy(network), changes, number))
    return network, slim, LadderFigures(*_samples(session), delivered, rows)


def _as_it_is(session: Session, slim: PruningResult) -> PruningResult:
    """The channels that were removed from the network with trained norm layers, removed from the dense one as it is."""
    plan = slim.plan
    widths: dict[str, Any] = {"joins": lowering_of(plan.joins), "round_to": plan.rounding.get("multiple", 1)}
    found = prune(*on_device(session, plan.masks), **widths)
    told = dataclasses.replace(found.plan, target=plan.target, rounding=plan.rounding, costs_ms=plan.costs_ms)
    return dataclasses.replace(found, model=found.model.cpu(), masked=found.masked.cpu(), plan=told)


def _rows(name: str, ladder: Ladder, session: Session) -> list[RungFigures]:
    """The figures of a network at each rung, the lowest first."""
    found = ladder.evaluations(session.held_out[1], session.held_out_aligned)
    steps = ladder.steps
    return [RungFigures(name, rung, found[rung], steps[rung].changes, ladder.num_changed(rung)) for rung in found]


def ladder_of(
    session: Session,
    model: nn.Module,
    *,
    is_fitted_again: bool = True,
    start: nn.Module | None = None,
) -> Ladder:
    """The rungs of the dense or a slim network, on the device of the run.

    Args:
        session: inputs of the run.
        model: the dense or a slim network.
        is_fitted_again: whether what was decided on may be fitted to the validation samples that decided.
        start: the same network with norm layers that were trained before its channels were removed; None if none were.

    Raises:
        ModelError: the network does not end in a linear layer.
    """
    fit = session.splits.train if session.halves is None else session.halves[0]
    if session.val is None and session.pseudo is not None and not session.pseudo.is_trusted:
        fit = fit.with_bias(fit.bias[:, :0])  # training samples say nothing against changes that wrong labels ask for
    again = session.splits.val if is_fitted_again and fits_again(session) else None
    start = None if start is None else session.on_device(start)
    rule = _rule(session)
    return Ladder(session.on_device(model), fit, session.val, session.search_aligned, rule, again, start=start)


def fits_again(session: Session) -> bool:
    """Whether what was decided on is fitted to the whole validation set: results are on another split then."""
    return session.halves is not None and session.splits.test is not None


def _samples(session: Session) -> tuple[tuple[str, int], tuple[str, int] | None]:
    """Split and number of the samples that changes are fitted to, and of those that decide on them."""
    fitted_on = ("train", len(session.splits.train))
    if session.halves is not None:
        fitted_on = ("val", sum(map(len, session.halves[: 1 + fits_again(session)])))
    return fitted_on, None if session.val is None else ("val", len(session.val))


def _rule(session: Session) -> str:
    """The rule by which changes are decided on: that of the search."""
    val = session.val
    return resolve(session.config.search.select, val is not None, val is not None and val.has_bias)
