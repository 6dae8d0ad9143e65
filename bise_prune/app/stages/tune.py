"""The stage that finetunes the slim network."""

from __future__ import annotations

import dataclasses

from torch import nn

from ...errors import ModelError
from ...pruning import PruningResult
from ...tuning.finetuning import FinetuneEpoch, FinetuneResult, finetune
from ...tuning.ladder import Rung
from ..progress import EpochFigures, StageClock
from ..session import Session
from .ladder import ladder_of


def finetuned(session: Session, slim: PruningResult, clock: StageClock) -> FinetuneResult:
    """Finetune the slim network, whose structure does not change.

    With ``tune`` "all", it starts from the best that the rungs below make of it, has the best that they make of the
    dense network as its teacher, and also learns from the validation samples that masks are learned on.
    """
    config = session.config
    assert config.finetune is not None
    is_rung = config.tune == "all"
    has_own_labels = session.splits.train.has_bias and session.pseudo is None
    loader = dataclasses.replace(session.train_loader(), stratified=False)

    def on_epoch(record: FinetuneEpoch, total: int) -> None:
        """Pass on the progress and the loss of an epoch."""
        accuracy = None if record.validation is None else record.validation.unbiased_accuracy
        clock.epoch("finetune", record.epoch, total, EpochFigures(record.loss, accuracy))
        clock.log("finetune", record.epoch, {"loss": record.loss})

    return finetune(
        _best_of(session, slim.model) if is_rung else session.on_device(slim.model),
        loader,
        config.finetune,
        session.val_loader(),
        aligned=session.search_aligned if is_rung or not has_own_labels else None,
        more=session.halves[0] if is_rung and session.halves is not None else None,
        teacher=_teacher(session) if config.finetune.distill else None,
        on_epoch=on_epoch,
    )


def _teacher(session: Session) -> nn.Module:
    """The dense network, after the changes that help it if all weights of the slim one may change."""
    return _best_of(session, session.dense) if session.config.tune == "all" else session.on_device(session.dense)


def _best_of(session: Session, model: nn.Module) -> nn.Module:
    """What the rungs below make of a network, fitted to no sample that selects an epoch."""
    try:
        return ladder_of(session, model, is_fitted_again=False).model(Rung.HEAD)
    except ModelError:  # it does not end in a linear layer
        return session.on_device(model)
