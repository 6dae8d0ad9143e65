"""Algorithm 1 of BISE: learn masks on frozen weights against an auxiliary head that reads the bias.

The lines of the algorithm, and where they stand:

====  ==============================================================  ==========================================
line  what it does                                                    where
====  ==============================================================  ==========================================
1, 2  m = m_0, tau = 1; gates 1{sigma(m / tau) >= .5} on frozen f     :mod:`.network`, :mod:`bise_prune.gates.step`
3     heads C_aux                                                     :mod:`.heads`
4     train the heads for E epochs                                    :func:`_train_heads`
5-7   for each epoch and batch                                        :func:`search`, :func:`_mask_epoch`
8     J = L_r + gamma I (Eq. 5)                                       :mod:`.objective`
9     a step of SGD on m                                              :meth:`.step.MaskStep.descend`
10    a step of SGD on the heads                                      :meth:`.heads.BiasHeads.step`
11    every upsilon epochs tau = kappa tau                            :mod:`.schedule`
13    train the heads for E epochs                                    :func:`_train_heads`
15    until tau < tau_min                                             :mod:`.schedule`
16    the masks                                                       :mod:`.recording`
====  ==============================================================  ==========================================

Shortcuts that change no mask are in :mod:`.speed`, behind the methods of :class:`.passes.Passes`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ..config import SearchConfig
from ..data.batch import Loader
from ..distributed import summed
from ..errors import BiseError, DataError
from ..gates.masks import MaskSet
from . import state_file
from .assembly import Search, assemble
from .recording import record_epoch, result_of
from .result import EpochRecord, SearchResult
from .speed import Speedups
from .state import EpochTally
from .stopping import is_settled
from .training_data import EXHAUSTED


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
    speedups: Speedups | None = None,
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
        speedups: which shortcuts to take; all by default. They change the last bits of a figure at most, not the masks.

    Raises:
        ConfigError: a selection rule that the data do not support.
        DataError: no bias-conflicting sample, or labels that do not fit the network.
        ModelError: the network has nothing to gate.
        SearchInterrupted: ``interrupted`` said so.
    """
    found = assemble(model, train_loader, config or SearchConfig(), val_loader, aligned, start, speedups)  # lines 1-3
    config, schedule, history = found.config, found.schedule, found.state.history
    if state_path is not None:
        state_file.load(found, state_path)

    def stop_if_asked() -> None:
        # Processes stop after the same batch, whichever was asked first.
        if interrupted is None or not summed(torch.tensor(float(interrupted()), device=found.network.device)):
            return
        if state_path is not None:
            state_file.save(found, state_path)
        raise SearchInterrupted("interrupted; the same search takes up where it stopped")

    if not found.state.heads_trained:
        _train_heads(found)  # line 4
    between_epochs = bool(history) and not found.state.position.batches  # of a resumed search, perhaps at its end
    stopped_early = between_epochs and config.early_stop and is_settled(found, schedule[len(history) :])
    while len(history) < len(schedule) and not stopped_early:  # lines 5 and 15
        epoch = len(history) + 1
        record = _mask_epoch(found, epoch, schedule[epoch - 1], stop_if_asked)
        stopped_early = config.early_stop and is_settled(found, schedule[epoch:])
        if epoch % config.anneal_every == 0 and epoch < len(schedule) and not stopped_early:  # line 11
            _train_heads(found)  # line 13; after the last epoch it could not change the masks any more
        if state_path is not None:
            state_file.save(found, state_path)
        if on_epoch is not None:
            on_epoch(record, len(schedule))
    return result_of(found, stopped_early)  # line 16


def _train_heads(search: Search) -> None:
    """Train the heads for E epochs on the masked network's features, computed once: nothing else moves meanwhile."""
    if search.config.head_epochs:
        bottleneck = search.passes.bottleneck(search.state.position)
        search.state.heads.train(
            bottleneck.features,
            bottleneck.bias.to(search.network.device),
            epochs=search.config.head_epochs,
            batch_size=int(summed(torch.tensor(len(search.data.first.target), device=search.network.device))),
            generator=search.state.generator,
        )
    search.state.heads_trained = True


def _mask_epoch(search: Search, epoch: int, temperature: float, after_step: Callable[[], None]) -> EpochRecord:
    """One pass over the training set, with a step of the masks and one of the heads per batch: lines 7 to 10."""
    state, gates, position = search.state, search.network.gates, search.state.position
    gates.temperature = temperature
    if search.budget is not None:
        search.budget.limit = search.budget.limit_in(epoch)
    if not position.batches:
        state.tally = EpochTally(gates.closed)
    search.network.let_norms_follow(search.config.batchnorm != "frozen")
    batches = itertools.islice(search.data.next_pass(position), position.batches, None)  # the rest, of a stopped epoch
    search.passes.take_steps(search.step, batches, after_step)
    search.network.let_norms_follow(False)
    if not position.batches:
        raise DataError(EXHAUSTED)
    state.steps, position.batches = position.batches, 0
    return record_epoch(search, epoch, temperature)
