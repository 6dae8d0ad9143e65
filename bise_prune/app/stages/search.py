"""The stage that finds masks: by the mask search, or by the scores of a criterion that needs no search."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ...baselines.magnitude import magnitude_masks
from ...baselines.random_scores import random_masks
from ...baselines.taylor import taylor_masks
from ...config import Budget, RunConfig, lowering_of
from ...distributed import world
from ...gates.masks import MaskSet
from ...gates.sites import gate_sites
from ...mask_search import EpochRecord, SearchResult, search
from ...mask_search.state_file import finished_epochs, started_with
from ...mask_search.weights import sample_weights
from ...pruning.widths import SMALLEST_MULTIPLE
from ...report.files import STATE_FILE
from ...report.record import epoch_record
from ..progress import EpochFigures, StageClock
from ..session import Session
from ..signals import signals
from .ladder import trained_start, trains_norms_first


def searched(session: Session, clock: StageClock, start: MaskSet | None = None) -> SearchResult:
    """Run the mask search; with a target, the search has a budget that makes it meet the target.

    Args:
        session: inputs of the run.
        clock: clock that gets the progress and figures of each epoch.
        start: masks to start from, found for a larger budget; None to start with all channels open, on the network with
            trained norm layers if these may change.
    """
    config, settings = session.config, session.config.search
    config.output.mkdir(parents=True, exist_ok=True)
    if settings.budget is None:
        settings = dataclasses.replace(settings, budget=budget_of(config, start))

    state_path = config.output / STATE_FILE
    if (done := finished_epochs(state_path)) is not None and world()[0] == 0:
        clock.resumed("search", done, state_path.name)
    if start is None and trains_norms_first(session):
        start = started_with(state_path, session.dense) or trained_start(session)
    sites = gate_sites(session.dense, session.example, settings.placement)
    num_channels = sum(site.num_channels for site in sites)

    def on_epoch(record: EpochRecord, total: int) -> None:
        """Pass on the progress and figures of an epoch."""
        figures = EpochFigures(
            loss=record.objective,
            unbiased_accuracy=None if record.validation is None else record.validation.unbiased_accuracy,
            num_open=num_channels - record.closed,
            num_channels=num_channels,
            cost=record.cost,
            backed_out=record.backed_out,
        )
        clock.epoch("search", record.epoch, total, figures)
        clock.log("search", record.epoch, epoch_record(record))

    with _stop_requests() as interrupted:
        return search(
            session.on_device(session.dense),
            session.search_loader(),
            settings,
            session.val_loader(),
            aligned=None if session.pseudo is None and session.halves is None else session.search_aligned,
            start=start,
            on_epoch=on_epoch,
            state_path=state_path,
            interrupted=interrupted,
        )


def ranked(session: Session) -> MaskSet:
    """Scores of the channels by the criterion of the settings, without a search."""
    return RANKINGS[session.config.criterion](session)


def _random(session: Session) -> MaskSet:
    """Random scores."""
    config = session.config.search
    return random_masks(session.dense, session.example, config.seed, config.placement)


def _magnitude(session: Session) -> MaskSet:
    """Scores by the norm of the weights."""
    return magnitude_masks(session.dense, session.example, session.config.search.placement)


def _taylor(session: Session) -> MaskSet:
    """First-order Taylor scores on the training set, with the search's sample weights."""
    config, train = session.config.search, session.splits.train
    weights = sample_weights(
        train.target, train.bias, session.num_classes, session.search_aligned, config.weighting, config.rho
    ).to(session.device, torch.float32)
    return taylor_masks(session.on_device(session.dense), session.train_loader(), config.placement, weights)


# Every criterion but "learned".
RANKINGS: Mapping[str, Callable[[Session], MaskSet]] = {
    "random": _random, "magnitude": _magnitude, "taylor": _taylor,
}  # fmt: skip


def budget_of(config: RunConfig, start: MaskSet | None) -> Budget | None:
    """The budget that makes the search meet the target; None without a target."""
    target = config.target
    if target is None:
        return None
    return Budget(
        share=target.left,
        of=target.unit,
        weight=config.budget_weight,
        descent=config.budget_descent if start is None or config.search.is_gradual else 0.0,  # it is near the budget
        layer_floor=config.layer_floor,
        joins=lowering_of(config.joins),
        multiple=counted_at(config),
    )


def counted_at(config: RunConfig) -> int:
    """The multiple at which a search counts widths."""
    if config.search.budget is not None:
        return config.search.budget.multiple
    if not config.search.is_gradual:
        return 1
    return SMALLEST_MULTIPLE if config.round_to == "auto" else config.round_to


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """A context whose value tells whether SIGINT, SIGTERM or SIGHUP has come; a second one stops at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in signals()}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

    def stop(number: int, frame: Any) -> None:
        """Note the first signal; raise KeyboardInterrupt at the second."""
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    try:
        for number in before:
            signal.signal(number, stop)
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
