"""The stage that finetunes the slim network."""

from __future__ import annotations

import dataclasses

from ...pruning import PruningResult
from ...tuning.finetuning import FinetuneEpoch, FinetuneResult, finetune
from ..progress import EpochFigures, StageClock
from ..session import Session


def finetuned(session: Session, slim: PruningResult, clock: StageClock) -> FinetuneResult:
    """Finetune the slim network, whose structure does not change."""
    assert session.config.finetune is not None
    loader = dataclasses.replace(session.train_loader(), stratified=False)

    def on_epoch(record: FinetuneEpoch, total: int) -> None:
        """Pass on the progress and the loss of an epoch."""
        accuracy = None if record.validation is None else record.validation.unbiased_accuracy
        clock.epoch("finetune", record.epoch, total, EpochFigures(record.loss, accuracy))
        clock.log("finetune", record.epoch, {"loss": record.loss})

    return finetune(
        session.on_device(slim.model),
        loader,
        session.config.finetune,
        session.val_loader(),
        aligned=None if session.pseudo is None else session.search_aligned,
        on_epoch=on_epoch,
    )
