"""Masks: learned by the search, or scores of a criterion that needs none."""

from __future__ import annotations

import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ...baselines.magnitude import magnitude_masks
from ...baselines.random_scores import random_masks
from ...baselines.taylor import taylor_masks
from ...config import Budget, RunConfig
from ...gates.masks import MaskSet
from ...mask_search import EpochRecord, SearchResult, search
from ...mask_search.weights import sample_weights
from ...report.files import STATE_FILE
from ...report.record import epoch_record
from ..progress import StageClock
from ..session import Session


def searched(session: Session, clock: StageClock, start: MaskSet | None = None) -> SearchResult:
    """The mask search; where there is a target, the search is to meet it.

    Args:
        session: what to work on.
        clock: is told of each epoch.
        start: masks of a larger budget to start from.
    """
    config, settings = session.config, session.config.search
    config.output.mkdir(parents=True, exist_ok=True)
    if settings.budget is None:
        settings = dataclasses.replace(settings, budget=_budget(config, start))

    def on_epoch(record: EpochRecord, total: int) -> None:
        clock.progress("search", record.epoch, total)
        clock.log("search", record.epoch, epoch_record(record))

    with _stop_requests() as interrupted:
        return search(
            session.on_device(session.dense),
            session.train_loader(),
            settings,
            session.val_loader(),
            aligned=None if session.pseudo is None else session.search_aligned,
            start=start,
            on_epoch=on_epoch,
            state_path=config.output / STATE_FILE,
            interrupted=interrupted,
        )


def ranked(session: Session) -> MaskSet:
    """Scores by a criterion that needs no search."""
    config, dense, example = session.config, session.dense, session.example
    placement = config.search.placement
    if config.criterion == "random":
        return random_masks(dense, example, config.search.seed, placement)
    if config.criterion == "magnitude":
        return magnitude_masks(dense, example, placement)
    train = session.splits.train
    weights = sample_weights(
        train.target,
        train.bias,
        session.num_classes,
        session.search_aligned,
        config.search.weighting,
        config.search.rho,
    ).to(session.device, torch.float32)
    return taylor_masks(session.on_device(dense), session.train_loader(), placement, weights)


def _budget(config: RunConfig, start: MaskSet | None) -> Budget | None:
    """What a search is to meet, if there is a target."""
    target = config.target
    if target is None:
        return None
    return Budget(
        share=target.left,
        of=target.unit,
        weight=config.budget_weight,
        descent=config.budget_descent if start is None else 0.0,  # masks to start from are those of a larger budget
        layer_floor=config.layer_floor,
        joins="intersection" if config.joins == "intersection" else "expand",
    )


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM has come: the search then stops after its batch. A second one stops it at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: Any) -> None:
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
