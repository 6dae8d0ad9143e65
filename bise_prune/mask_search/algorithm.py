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
5-7   for each epoch and each batch                                   :func:`search_as_in_the_paper`
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

from ..distributed import summed
from ..errors import DataError
from . import state_file
from .assembly import Search
from .projection import Projection
from .recording import record_epoch, result_of
from .result import EpochRecord, SearchResult
from .state import EpochTally
from .step import MaskStep
from .stopping import is_settled
from .training_data import EXHAUSTED


def search_as_in_the_paper(
    found: Search,
    on_epoch: Callable[[EpochRecord, int], None] | None,
    state_path: Path | None,
    interrupted: Callable[[], bool] | None,
) -> SearchResult:
    """Run Algorithm 1 on the parts of a search; see :func:`bise_prune.search` for the other arguments."""
    config, schedule, history = found.config, found.schedule, found.state.history
    assert not isinstance(found.budget, Projection)
    step = MaskStep(found.state, found.labels, config, found.budget)
    if state_path is not None:
        state_file.load(found, state_path)

    def after_step() -> None:
        """Save the state and raise ``SearchInterrupted`` if the caller has asked the search to stop."""
        state_file.stop_if_asked(found, state_path, interrupted)

    if not found.state.heads_trained:
        _train_heads(found)  # line 4
    between_epochs = bool(history) and not found.state.position.batches  # a resumed search may be at its end
    stopped_early = between_epochs and config.early_stop and is_settled(found, schedule[len(history) :])
    while len(history) < len(schedule) and not stopped_early:  # lines 5 and 15
        epoch = len(history) + 1
        record = _mask_epoch(found, step, epoch, schedule[epoch - 1], after_step)
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


def _mask_epoch(
    search: Search, step: MaskStep, epoch: int, temperature: float, after_step: Callable[[], None]
) -> EpochRecord:
    """Run one epoch (lines 7 to 10): for each batch a step of the mask logits and a step of the auxiliary heads."""
    state, gates, position = search.state, search.network.gates, search.state.position
    gates.temperature = temperature
    if step.budget is not None:
        step.budget.start_epoch(epoch)
    if not position.batches:
        state.tally = EpochTally(gates.closed)
    search.network.let_norms_follow(search.config.batchnorm != "frozen")
    batches = itertools.islice(search.data.next_pass(position), position.batches, None)  # resume within an epoch
    search.passes.take_steps(step, batches, after_step)
    search.network.let_norms_follow(False)
    if not position.batches:
        raise DataError(EXHAUSTED)
    state.steps, position.batches = position.batches, 0
    return record_epoch(search, epoch, temperature)
