"""Algorithm 1 of BISE: learn masks on frozen weights against an auxiliary head that reads the bias."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..artifacts import MaskSet
from ..config import SearchConfig
from ..data.batch import Loader
from ..distributed import summed
from ..errors import BiseError
from . import state
from .result import EpochRecord, SearchResult
from .run import SearchRun
from .schedule import temperatures


class SearchInterrupted(BiseError):
    """A search was asked to stop; its state is saved, if it has a place for it."""

    exit_code = 130


def search(
    model: nn.Module,
    train_loader: Loader,
    config: SearchConfig | None = None,
    val_loader: Loader | None = None,
    *,
    aligned: Tensor | None = None,
    start: MaskSet | None = None,
    on_epoch: Callable[[EpochRecord, int], None] | None = None,
    state_path: Path | None = None,
    interrupted: Callable[[], bool] | None = None,
) -> SearchResult:
    """Run BISE (Algorithm 1) on a trained network; it stays as it is, on its device and in its precision.

    With ``torch.distributed`` initialised, every process calls this with the same arguments. A
    :class:`bise_prune.data.BatchLoader` is then divided among them batch by batch; other loaders must yield each
    process its part of every batch, as many batches to each. All get the same masks; the first one writes the state.

    Args:
        model: the vanilla-trained classifier.
        train_loader: the biased training set: batches with fields ``input``, ``target`` (N,) and ``bias`` (N,) or
            (N, K). It is iterated once per epoch, and before trainings of the heads. A method ``set_epoch(n)``, if it
            has one, is called before each pass with the number of the pass. The inputs of a ``BatchLoader`` are the
            same on each pass, so that what no mask changes is computed once.
        config: hyper-parameters; the paper's by default.
        val_loader: data to select an epoch on, with the same fields; bias labels of shape (N, 0) are unknown ones.
        aligned: the bias value each class is aligned with, shape (classes, K); by default the one most associated with
            the class in the training set.
        start: masks to start from instead of ``initial_logit`` everywhere.
        on_epoch: called with each epoch's record and the number of epochs.
        state_path: file to keep the state in after each epoch; an existing one of the same search is resumed.
        interrupted: asked after each batch, or after the few that are done at a time; if it says so, the state is saved
            and the search stops. Resumed, it takes up the epoch where it was.

    Raises:
        ConfigError: a selection rule that the data do not support.
        DataError: no bias-conflicting sample, or labels that do not fit the network.
        ModelError: the network has nothing to gate.
        SearchInterrupted: ``interrupted`` said so.
    """
    config = config or SearchConfig()
    run = SearchRun(model, train_loader, config, val_loader, aligned, start)
    if state_path is not None:
        state.load(run, state_path)
    schedule = temperatures(config.anneal_every, config.anneal_factor, config.min_temperature)
    stopped_early = False

    def stop_if_asked() -> None:
        # Processes stop after the same batch, whichever was asked first.
        if interrupted is not None and bool(summed(torch.tensor(float(interrupted()), device=run.device))):
            if state_path is not None:
                state.save(run, state_path)
            raise SearchInterrupted("interrupted; the same search takes up where it stopped")

    run.train_heads_first()  # line 4
    if run.history and not run.done:  # of a search that was interrupted between epochs, perhaps after its end
        stopped_early = config.early_stop and run.is_settled(schedule[len(run.history) :])
    for epoch, temperature in enumerate(schedule, start=1):  # lines 5 to 15
        if stopped_early:
            break
        if epoch <= len(run.history):
            continue
        record = run.mask_epoch(epoch, temperature, stop_if_asked)  # lines 7 to 10
        stopped_early = config.early_stop and run.is_settled(schedule[epoch:])
        # Line 13; after the last epoch it could not change the masks any more.
        if epoch % config.anneal_every == 0 and epoch < len(schedule) and not stopped_early:
            run.train_heads()
        if state_path is not None:
            state.save(run, state_path)
        if on_epoch is not None:
            on_epoch(record, len(schedule))
    return run.result(stopped_early)  # line 16
