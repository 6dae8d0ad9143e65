"""How long the search of a run will take on this machine, by the times of a few steps."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..gates.gated_model import GatedModel
from ..gates.masks import GateSite
from ..mask_search.assembly import VALIDATION_PART, VALIDATION_SAMPLES
from ..mask_search.gate_cost import GateCost
from ..mask_search.gradual import EVERY, ROUNDS, SAMPLE, num_steps
from ..mask_search.projection import Projection
from ..mask_search.schedule import temperatures
from ..tracing import logits_of, run, trace
from .session import Session
from .stages.search import budget_of

_REPEATS = 5


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
    settings, loader = config.search, session.train_loader()
    step, forward = _times(session, sites, loader)
    num_val = 0 if session.splits.val is None else len(session.splits.val)
    per_sample, size = forward / config.batch_size, len(session.splits.train)
    seconds = per_sample * (size + 2 * len(session.held_out[1]))  # features for the heads, and accuracies at the end
    if not settings.is_gradual:
        epochs = len(temperatures(settings.anneal_every, settings.anneal_factor, settings.min_temperature))
        steps, trainings = len(loader), epochs // settings.anneal_every + 1
        seconds += epochs * (steps * step + num_val * per_sample) + trainings * size * per_sample
        return {"epochs": epochs, "steps_per_epoch": steps, "seconds": seconds}
    steps = -(-num_steps(settings.steps, len(loader)) // ROUNDS)
    looked_at = min(num_val, max(VALIDATION_SAMPLES, size // VALIDATION_PART))
    budget = settings.budget or budget_of(config, None)
    # Closed channels are skipped on a CPU, which saves about half of what it could; without a budget, few may close.
    share = 1.0 if budget is None or session.device.type != "cpu" else 1 - (1 - budget.share) / 4
    projections = _time_of_projection(session, sites) / EVERY
    seconds += ROUNDS * share * (steps * (step + projections) + (looked_at + SAMPLE) * per_sample)
    return {"epochs": ROUNDS, "steps_per_epoch": steps, "seconds": seconds}


def _times(session: Session, sites: Sequence[GateSite], loader: Any) -> tuple[float, float]:
    """Seconds of one step, and of one forward pass of a batch."""
    model = session.on_device(session.dense).requires_grad_(False)
    gated = GatedModel(model, sites, torch.nn.Identity())
    inputs = next(iter(loader)).to(session.device).input

    def step() -> None:
        ones = [torch.ones(site.num_channels, device=session.device, requires_grad=True) for site in sites]
        with gated.gating(ones):
            output = run(model, inputs)
        logits_of(output).float().logsumexp(1).sum().backward()

    def forward() -> None:
        with torch.no_grad():
            run(model, inputs)

    return _median_seconds(step, session), _median_seconds(forward, session)


def _time_of_projection(session: Session, sites: Sequence[GateSite]) -> float:
    """Seconds in which a gradual search closes the channels for which there is no room."""
    record = trace(session.dense, session.example)
    sizes = [site.num_channels for site in sites]
    projection = Projection(GateCost(record, session.dense, sites), sizes)
    worth, none = torch.randn(sum(sizes)), torch.zeros(sum(sizes), dtype=torch.bool)
    return _median_seconds(lambda: projection.without_room(worth, none, 0.7), session)


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
