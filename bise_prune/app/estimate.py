"""How long the search of a run will take on this machine, by the times of a few steps."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..data import BatchLoader
from ..gates.gated_model import GatedModel
from ..gates.masks import GateSite
from ..mask_search.assembly import VALIDATION_PART, VALIDATION_SAMPLES, assemble
from ..mask_search.gradual import EVERY, ROUNDS, TRADING, Rounds, steps_per_round
from ..mask_search.schedule import temperatures
from ..mask_search.trades import STEPS_DOWN, TRIALS
from ..tracing import logits_of, run
from ..tuning.norms import TRAINED_ON
from .session import Session
from .stages.ladder import trains_norms_first
from .stages.search import budget_of

_REPEATS = 5
_BATCHES = 8  # of the training set, on which a search is begun
_FORWARDS = 3  # forward passes that take as long as a step of the training of norm layers
_KINDS = 3  # of norm layers that the ladder of the dense network looks at
_KEPT = 0.25  # share of the trades that are taken to lower the loss


def estimated(session: Session, sites: Sequence[GateSite]) -> dict[str, Any]:
    """Epochs and steps of the search, and its estimated time in seconds.

    Args:
        session: inputs of the run.
        sites: gate sites of the network.

    Returns:
        ``epochs`` (rounds of a gradual search), ``steps_per_epoch`` and ``seconds``; zeros if there is no search.
    """
    config = session.config
    if session.masks is not None or config.criterion != "learned":
        return {"epochs": 0, "steps_per_epoch": 0, "seconds": 0.0}
    settings, loader = config.search, session.search_loader()
    num_val = 0 if session.val is None else len(session.val)
    per_sample, size = _time_of_forward(session, loader) / config.batch_size, len(loader.data)
    seconds = per_sample * (size + 2 * len(session.held_out[1]))  # features for the heads, and accuracies at the end
    if not settings.is_gradual:
        epochs = len(temperatures(settings.anneal_every, settings.anneal_factor, settings.min_temperature))
        steps, trainings = len(loader), epochs // settings.anneal_every + 1
        seconds += epochs * (steps * _time_of_step(session, sites, loader) + num_val * per_sample)
        seconds += trainings * size * per_sample
        return {"epochs": epochs, "steps_per_epoch": steps, "seconds": seconds}
    budget = settings.budget or budget_of(config, None)
    steps = steps_per_round(settings)
    looked_at = min(num_val, max(VALIDATION_SAMPLES, size // VALIDATION_PART))
    # Closed channels are skipped on a CPU, which saves about half of what it could; without a budget, few may close.
    share = 1.0 if budget is None or session.device.type != "cpu" else 1 - (1 - budget.share) / 4
    step, look, trades = _times_of_round(session, loader)
    seconds += ROUNDS * share * steps * step + TRADING * share * trades
    seconds += (ROUNDS + TRADING) * share * (look + looked_at * per_sample)
    if trains_norms_first(session):
        seconds += per_sample * (_FORWARDS * TRAINED_ON + _KINDS * (size + num_val))
    return {"epochs": ROUNDS + TRADING, "steps_per_epoch": steps, "seconds": seconds}


def _time_of_forward(session: Session, loader: BatchLoader) -> float:
    """Seconds of one forward pass of a batch."""
    model, inputs = session.on_device(session.dense), next(iter(loader)).to(session.device).input
    with torch.no_grad():
        return _median_seconds(lambda: run(model, inputs), session)


def _time_of_step(session: Session, sites: Sequence[GateSite], loader: BatchLoader) -> float:
    """Seconds of one step of the paper's search."""
    gated = GatedModel(session.on_device(session.dense).requires_grad_(False), sites, torch.nn.Identity())
    inputs = next(iter(loader)).to(session.device).input

    def step() -> None:
        ones = [torch.ones(site.num_channels, device=session.device, requires_grad=True) for site in sites]
        with gated.gating(ones):
            output = run(gated.model, inputs)
        logits_of(output).float().logsumexp(1).sum().backward()

    return _median_seconds(step, session)


def _times_of_round(session: Session, loader: BatchLoader) -> tuple[float, float, float]:
    """Seconds of one step of a gradual search, of the accuracies at the end of a round, and of a round of trades.

    A search with short rounds is begun on a few samples. Their labels are made up, since they do not change the time.
    """
    few = loader.data.subset(torch.arange(min(len(loader.data), _BATCHES * loader.batch_size)))
    classes = torch.arange(session.num_classes)
    target = torch.arange(len(few)) % session.num_classes
    bias = (target + torch.arange(len(few)) % 2) % session.num_classes  # every other sample is conflicting
    made_up = dataclasses.replace(loader, data=dataclasses.replace(few, target=target, bias=bias[:, None]))
    settings = dataclasses.replace(
        session.config.search, steps=ROUNDS * EVERY, select="auto", weighting="auto", rho=None
    )
    rounds = Rounds(assemble(session.on_device(session.dense), made_up, settings, aligned=classes[:, None]))
    rounds.round(1, lambda: None)
    start = time.perf_counter()
    rounds.round(2, lambda: None)
    whole, look = time.perf_counter() - start, _median_seconds(lambda: rounds.accuracies(*rounds.outputs()), session)
    gates = torch.ones_like(rounds.state.logits)
    trial = _median_seconds(lambda: rounds.judge.loss(gates), session)
    worth = _median_seconds(lambda: rounds.trades.worth(gates), session)
    trades = TRIALS * trial + (1 + _KEPT * TRIALS) * worth
    if rounds.judge.refits:  # the second start, once in a search
        trades += STEPS_DOWN / TRADING * worth
    return max(0.0, whole - look) / EVERY, look, trades


def _median_seconds(action: Callable[[], object], session: Session) -> float:
    """Median time of an action, after one that is not timed."""
    spent = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        action()
        if session.device.type == "cuda":
            torch.cuda.synchronize(session.device)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[1:])
