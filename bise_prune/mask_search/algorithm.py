"""Algorithm 1 of the BISE paper: learn which channels of a trained network to keep, without changing its weights.

The network is f = C o E: an encoder E and a classifier head C. The output of E is called the bottleneck. Every channel
of a gated output (see :mod:`bise_prune.gates.sites`) has a mask logit m, and is multiplied by a gate that is 1 where
m >= 0 and 0 elsewhere (Eq. 2); outputs whose channels can only be removed together share their mask logits. An
auxiliary head C_aux predicts the bias label from the bottleneck. Each batch is used for two steps of SGD:

* The mask logits descend J = L_r + gamma I (Eq. 5). L_r is the cross-entropy of the class labels, in which samples of
  rare subgroups weigh more (Eq. 4). I is the mutual information between the bias label and the auxiliary head's
  prediction of it, on the bias-conflicting samples; lowering it closes the channels that carry the bias.
* The auxiliary head descends its own cross-entropy, so that it keeps finding the bias that is left in the bottleneck.

The derivative of a gate is zero almost everywhere; that of sigma(m / tau) takes its place (straight-through estimator,
:func:`bise_prune.gates.step.step_slope`).
The temperature tau starts at 1 and is multiplied by kappa every upsilon epochs; then the auxiliary head is trained for
E epochs, as it is before the first epoch. At a low temperature only mask logits near zero still get a gradient, so that
the masks settle. The search ends when tau is below tau_min, or earlier if no mask can change any more.

The settings of :class:`bise_prune.SearchConfig` are gamma = ``mi_weight``, kappa = ``anneal_factor``, upsilon =
``anneal_every``, tau_min = ``min_temperature`` and E = ``head_epochs``. With several biases there is one auxiliary head
for each.

====  ==============================================================  ==========================================
line  what it does                                                    where it is
====  ==============================================================  ==========================================
1, 2  m = m_0, tau = 1; put the gates into the frozen network         :mod:`.network`, :mod:`bise_prune.gates.step`
3     create the auxiliary heads C_aux                                :mod:`.heads`
4     train the auxiliary heads for E epochs                          :func:`_train_heads`
5-7   for each epoch and each batch                                   :func:`search`, :func:`_mask_epoch`
8     compute J = L_r + gamma I (Eq. 5)                               :mod:`.objective`
9     one step of SGD on the mask logits m                            :meth:`.step.MaskStep.descend`
10    one step of SGD on the auxiliary heads                          :meth:`.heads.BiasHeads.step`
11    every upsilon epochs: tau = kappa tau                           :mod:`.schedule`
13    train the auxiliary heads for E epochs                          :func:`_train_heads`
15    until tau < tau_min                                             :mod:`.schedule`, :mod:`.stopping`
16    return the masks                                                :mod:`.recording`
====  ==============================================================  ==========================================

The result is the masks of the last epoch or, with validation data, of the epoch that :mod:`.selection` picks. The
methods of :class:`.passes.Passes` run the network over the data; :mod:`.speed` does so in less time with equal results.
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
    """A search stopped because it was asked to; its state has been saved if ``state_path`` was given."""

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
    """Run the mask search of BISE (Algorithm 1) on a trained network.

    The network is copied and stays as it is; the search runs on its device and in its precision.

    With ``torch.distributed`` initialised, every process calls this function with the same arguments. The batches of a
    :class:`bise_prune.data.BatchLoader` are then divided among the processes; any other loader must yield each process
    its own part of every batch, and the same number of batches to each. All processes return the same masks; the first
    one writes the state.

    Args:
        model: the vanilla-trained classifier.
        train_loader: the biased training set: batches with the fields ``input``, ``target`` (class labels, shape (N,))
            and ``bias`` (bias labels, shape (N,) or (N, K)). It is iterated once per epoch and before each training of
            the auxiliary heads. If it has a method ``set_epoch(n)``, this is called before each pass with the number of
            the pass. The inputs of a ``BatchLoader`` are taken to be the same on each pass, so that results which no
            mask changes are computed once.
        config: settings of the search; the paper's hyper-parameters by default.
        val_loader: validation data on which the epoch is selected, with the same fields; bias labels of shape (N, 0)
            mean that they are unknown.
        aligned: bias value that each class is aligned with, shape (classes, K); by default the one most associated with
            the class in the training set.
        start: masks to start from, instead of ``initial_logit`` for every channel.
        on_epoch: function called after each epoch with its record and the number of scheduled epochs.
        state_path: file in which the state of the search is saved after each epoch; if it holds a state of the same
            search, that search is resumed.
        interrupted: function called after each batch, or after several that are computed together; if it returns true,
            the state is saved and the search stops. A resumed search continues within the epoch.
        speedups: shortcuts to use; all by default. They change the last bits of a figure at most, and no mask.

    Returns:
        The masks by selection rule, and one record per epoch.

    Raises:
        ConfigError: the data do not support the selection rule, or the settings do not fit the network or device.
        DataError: there is no bias-conflicting sample, or the labels or inputs do not fit the network.
        ModelError: the network has nothing to gate.
        SearchInterrupted: ``interrupted`` returned true.
    """
    found = assemble(model, train_loader, config or SearchConfig(), val_loader, aligned, start, speedups)  # lines 1-3
    config, schedule, history = found.config, found.schedule, found.state.history
    if state_path is not None:
        state_file.load(found, state_path)

    def stop_if_asked() -> None:
        """Save the state and raise ``SearchInterrupted`` if the caller has asked the search to stop."""
        # All processes stop after the same batch, whichever of them was asked to stop.
        if interrupted is None or not summed(torch.tensor(float(interrupted()), device=found.network.device)):
            return
        if state_path is not None:
            state_file.save(found, state_path)
        raise SearchInterrupted("interrupted; the same search takes up where it stopped")

    if not found.state.heads_trained:
        _train_heads(found)  # line 4
    between_epochs = bool(history) and not found.state.position.batches  # a resumed search may be at its end
    stopped_early = between_epochs and config.early_stop and is_settled(found, schedule[len(history) :])
    while len(history) < len(schedule) and not stopped_early:  # lines 5 and 15
        epoch = len(history) + 1
        record = _mask_epoch(found, epoch, schedule[epoch - 1], stop_if_asked)
        stopped_early = config.early_stop and is_settled(found, schedule[epoch:])
        if epoch % config.anneal_every == 0 and epoch < len(schedule) and not stopped_early:  # line 11
            _train_heads(found)  # line 13; not after the last epoch, where it would change no mask
        if state_path is not None:
            state_file.save(found, state_path)
        if on_epoch is not None:
            on_epoch(record, len(schedule))
    return result_of(found, stopped_early)  # line 16


def _train_heads(search: Search) -> None:
    """Train the auxiliary heads for E epochs; the network is constant meanwhile, so its features are computed once."""
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
    """Run one epoch (lines 7 to 10): for each batch a step of the mask logits and a step of the auxiliary heads."""
    state, gates, position = search.state, search.network.gates, search.state.position
    gates.temperature = temperature
    if search.budget is not None:
        search.budget.start_epoch(epoch)
    if not position.batches:
        state.tally = EpochTally(gates.closed)
    search.network.let_norms_follow(search.config.batchnorm != "frozen")
    batches = itertools.islice(search.data.next_pass(position), position.batches, None)  # resume within an epoch
    search.passes.take_steps(search.step, batches, after_step)
    search.network.let_norms_follow(False)
    if not position.batches:
        raise DataError(EXHAUSTED)
    state.steps, position.batches = position.batches, 0
    return record_epoch(search, epoch, temperature)
