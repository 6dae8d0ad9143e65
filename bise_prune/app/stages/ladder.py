"""The stage that finds what the dense and the slim network are worth if a little more of them may change."""

from __future__ import annotations

from torch import nn

from ...errors import ConfigError, ModelError
from ...gates.bottleneck import head_name
from ...mask_search.selection import resolve
from ...pruning import PruningResult
from ...report.results import LadderFigures, RungFigures
from ...tracing import trace
from ...tuning.augmentation import augmentation
from ...tuning.finetuning import FinetuneResult
from ...tuning.ladder import Ladder, Rung
from ..session import Session

ALL = "all"  # name of the rung at which all weights may change


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


def climbed(
    session: Session, slim: PruningResult, tuned: FinetuneResult | None
) -> tuple[nn.Module, LadderFigures | None]:
    """The network that is delivered, on the CPU, and the figures of all rungs.

    Changes are fitted to the data that masks are learned on, and decided on the validation data. If results are
    reported on a test split, offsets and head are then fitted again to the whole validation set.

    Args:
        session: inputs of the run.
        slim: result of the removal.
        tuned: result of finetuning; None without it.
    """
    delivered = ALL if tuned is not None else session.config.tune
    network = slim.model if tuned is None else tuned.model.cpu()
    rows: list[RungFigures] = []
    for name, model in (("dense", session.dense), ("slim", slim.model)):
        try:
            ladder = ladder_of(session, model)
        except ModelError:  # it does not end in a linear layer
            if session.config.tune not in ("none", ALL):
                raise
            return network, None
        found = ladder.evaluations(session.held_out[1], session.held_out_aligned)
        rows += [
            RungFigures(name, rung, found[rung], ladder.steps[rung].changes, ladder.num_changed(rung)) for rung in found
        ]
        if name == "slim" and delivered not in (ALL, "none"):
            network = ladder.model(Rung(delivered)).cpu()
    if tuned is not None:
        changes: tuple[str, ...] = ()
        number = 0
        if tuned.epoch:
            changes, number = (ALL,), sum(parameter.numel() for parameter in network.parameters())
        elif session.config.tune == ALL:  # what it started from
            changes, number = ladder.steps[Rung.HEAD].changes, ladder.num_changed(Rung.HEAD)
        rows.append(RungFigures("slim", ALL, session.accuracy(network), changes, number))
    return network, LadderFigures(*_samples(session), delivered, rows)


def ladder_of(session: Session, model: nn.Module, *, is_fitted_again: bool = True) -> Ladder:
    """The rungs of the dense or a slim network, on the device of the run.

    Args:
        session: inputs of the run.
        model: the dense or a slim network.
        is_fitted_again: whether what was decided on may be fitted to the validation samples that decided.

    Raises:
        ModelError: the network does not end in a linear layer.
    """
    fit = session.splits.train if session.halves is None else session.halves[0]
    again = session.splits.val if is_fitted_again and _is_fitted_again(session) else None
    return Ladder(session.on_device(model), fit, session.val, session.search_aligned, _rule(session), again)


def _is_fitted_again(session: Session) -> bool:
    """Whether what was decided on is fitted to the whole validation set: results are on another split then."""
    return session.halves is not None and session.splits.test is not None


def _samples(session: Session) -> tuple[tuple[str, int], tuple[str, int] | None]:
    """Split and number of the samples that changes are fitted to, and of those that decide on them."""
    fitted_on = ("train", len(session.splits.train))
    if session.halves is not None:
        fitted_on = ("val", sum(map(len, session.halves[: 1 + _is_fitted_again(session)])))
    return fitted_on, None if session.val is None else ("val", len(session.val))


def _rule(session: Session) -> str:
    """The rule by which changes are decided on: that of the search."""
    val = session.val
    return resolve(session.config.search.select, val is not None, val is not None and val.has_bias)
