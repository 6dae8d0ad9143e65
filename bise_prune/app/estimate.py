"""How long a run and its search will take on this machine, by the times of a few steps."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import Budget
from ..data import BatchLoader
from ..export.onnx_file import export_onnx
from ..export.runtime import timed_files
from ..gates.bottleneck import readout_of
from ..gates.gated_model import GatedModel
from ..gates.masks import GateSite, MaskSet
from ..mask_search.assembly import VALIDATION_PART, VALIDATION_SAMPLES, assemble
from ..mask_search.gradual import EVERY, ROUNDS, TRADING, Rounds, steps_per_round
from ..mask_search.refitted import refitted_head, sample_size
from ..mask_search.schedule import temperatures
from ..mask_search.trades import STEPS_DOWN, TRIALS
from ..pruning import prune
from ..pruning.widths import MULTIPLES
from ..report.results import LATENCY_BATCHES
from ..tracing import logits_of, run, trace
from ..tuning.ladder import BALANCED, MOST_FITTED, PENALTIES
from ..tuning.norms import TRAINED_ON, batch_norms, norm_parameters
from ..tuning.pseudo_labels import SEEN
from .session import Session
from .stages.identify import epochs_of_identification
from .stages.ladder import fits_again, trains_norms_first
from .stages.search import budget_of
from .stages.widths import exported, on_device

_REPEATS = 5
_BATCHES = 8  # of the training set, on which a search is begun
_FORWARDS = 3  # forward passes that take as long as a step of training, of the whole network or of its norm layers
_ITERATIONS, _FEW_ITERATIONS = 70, 10  # of the fit of a last layer: as many as there are, and as are timed
_KEPT = 0.25  # share of the trades that are taken to lower the loss
_EXPORTS, _TIMED = 2, 4  # files that are written, and timed, beside those by which widths are chosen
_IDENTIFICATION, _LOOKS = 2, 6  # epochs of the networks that find pseudo bias labels, if it is left to them, and looks
_LEFT = 0.7  # share of the dense network's time that the slim one is taken to need without a budget


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
    per_sample = _time_of_forward(session, session.search_loader()) / config.batch_size
    return (_of_gradual if config.search.is_gradual else _of_paper)(session, sites, per_sample, _budget(session))


def seconds_of_identification(session: Session) -> float:
    """Estimated time in which pseudo bias labels are found, in seconds; 0 if they are not needed."""
    if not session.needs_pseudo_labels:
        return 0.0
    per_sample = _time_of_forward(session, session.search_loader()) / session.config.batch_size
    size, epochs = len(session.splits.train), epochs_of_identification(session.config)
    looked_at = _LOOKS * min(size, SEEN) if epochs is None else 0
    trained_on = size * (_IDENTIFICATION if epochs is None else epochs)
    return 2 * (_FORWARDS * trained_on + looked_at + size) * per_sample


def seconds_after_search(session: Session, sites: Sequence[GateSite]) -> float:
    """Estimated time of what follows a search, without finetuning, in seconds; a removal and an export are tried.

    Raises:
        BiseError: the removal or the export failed.
    """
    per_sample = _time_of_forward(session, session.search_loader()) / session.config.batch_size
    budget = _budget(session)
    judged = _time_of_ladder(session, per_sample) + per_sample * len(session.held_out[1])
    return (1 + (_LEFT if budget is None else budget.share)) * judged + _time_of_removal(session, sites)


def _budget(session: Session) -> Budget | None:
    """The budget of the search, as far as it is known before it."""
    return session.config.search.budget or budget_of(session.config, None)


def _of_paper(session: Session, sites: Sequence[GateSite], per_sample: float, budget: Budget | None) -> dict[str, Any]:
    """Epochs, steps and seconds of the paper's search."""
    settings, loader = session.config.search, session.search_loader()
    num_val = 0 if session.val is None else len(session.val)
    epochs = len(temperatures(settings.anneal_every, settings.anneal_factor, settings.min_temperature))
    steps, trainings = len(loader), epochs // settings.anneal_every + 1
    seconds = epochs * (steps * _time_of_step(session, sites, loader) + num_val * per_sample)
    seconds += (1 + trainings) * len(loader.data) * per_sample  # features for the heads
    return {"epochs": epochs, "steps_per_epoch": steps, "seconds": seconds}


def _of_gradual(
    session: Session, sites: Sequence[GateSite], per_sample: float, budget: Budget | None
) -> dict[str, Any]:
    """Rounds, steps and seconds of a gradual search."""
    settings, loader = session.config.search, session.search_loader()
    num_val, size = 0 if session.val is None else len(session.val), len(loader.data)
    steps = steps_per_round(settings)
    looked_at = min(num_val, max(VALIDATION_SAMPLES, size // VALIDATION_PART))
    # Closed channels are skipped on a CPU, which saves about half of what it could; without a budget, few may close.
    share = 1.0 if budget is None or session.device.type != "cpu" else 1 - (1 - budget.share) / 4
    step, look, trades = _times_of_round(session, loader)
    seconds = ROUNDS * share * steps * step + TRADING * share * trades
    seconds += (ROUNDS + TRADING) * share * (look + looked_at * per_sample) + size * per_sample
    if trains_norms_first(session):
        seconds += _time_of_ladder(session, per_sample, is_first=True)
    return {"epochs": ROUNDS + TRADING, "steps_per_epoch": steps, "seconds": seconds}


def _time_of_ladder(session: Session, per_sample: float, is_first: bool = False) -> float:
    """Seconds of the ladder of a network.

    Args:
        session: inputs of the run.
        per_sample: seconds of a forward pass of a sample.
        is_first: whether it is the one that is climbed before a search, which nothing is reported of.
    """
    fit = len(session.splits.train if session.halves is None else session.halves[0])
    fit, num_val = min(fit, MOST_FITTED), 0 if session.val is None else len(session.val)
    trainings, again = 1, 0
    if not is_first and session.splits.val is not None and fits_again(session):
        trainings, again = 2, min(len(session.splits.val), MOST_FITTED)
    has_statistics, is_trained = bool(batch_norms(session.dense)), bool(norm_parameters(session.dense))
    forwards = (1 + has_statistics + is_trained) * (fit + num_val) + again + has_statistics * BALANCED
    forwards += 0 if is_first else len(session.held_out[1])
    kinds, samples = 1 + has_statistics + is_trained, fit + num_val // 2 if again else fit
    if num_val:
        heads = kinds * len(PENALTIES) * (3 if again else 1)  # with those by which heads are judged on each half
    else:
        heads = len(PENALTIES) + 3  # behind one kind; by halves for two penalties or more
    passes = per_sample * (forwards + is_trained * trainings * _FORWARDS * TRAINED_ON)
    return passes + heads * _time_of_head(session, samples)


def _time_of_head(session: Session, num_samples: int) -> float:
    """Seconds of the fit of a last layer to so many samples, on made-up features; 0 if it is not linear."""
    readout = readout_of(session.dense, trace(session.dense, session.example))
    layer = session.dense.get_submodule(readout.layers[0])
    if not isinstance(layer, torch.nn.Linear):
        return 0.0
    generator = torch.Generator().manual_seed(0)
    target = (torch.arange(num_samples) % layer.out_features).to(session.device)
    features = torch.randn(num_samples, layer.in_features, generator=generator).to(session.device)
    seconds = 0.0
    for _ in range(2):  # the first fit in a process takes longer
        start = time.perf_counter()
        refitted_head(features, target, layer.out_features, penalty=0.0, iterations=_FEW_ITERATIONS)
        seconds = time.perf_counter() - start
    return seconds * _ITERATIONS / _FEW_ITERATIONS


def _time_of_removal(session: Session, sites: Sequence[GateSite]) -> float:
    """Seconds of removal, export and timing in onnxruntime, by those of a network of which half is removed."""
    half = MaskSet({site.name: 0.5 - torch.arange(site.num_channels) % 2 for site in sites})
    with tempfile.TemporaryDirectory() as folder:
        path, start = Path(folder) / "half.onnx", time.perf_counter()
        slim = prune(*on_device(session, half))
        export_onnx(exported(session, slim.model.cpu()), path, session.example, opset=session.config.opset)
        made = time.perf_counter()
        timed_files([path], session.held_out[1], LATENCY_BATCHES, session.device)
        timed = time.perf_counter()
    rounded = {tuple(-(-(site.num_channels // 2) // multiple) * multiple for site in sites) for multiple in MULTIPLES}
    widths = len(rounded) if session.config.round_to == "auto" else 0
    return (1 + widths + _EXPORTS) * (made - start) + (1 + widths + _TIMED) * (timed - made)


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
    larger = sample_size(settings, len(loader.data)) / sample_size(settings, len(few))
    return max(0.0, whole - look) / EVERY, larger * look, larger * trades


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
