"""The evaluation stage: accuracies on the held-out split, and the optional curve and probes."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ...data import BatchLoader
from ...data.batch import input_map
from ...diagnostics.probe import BiasProbe, probe_bias
from ...diagnostics.sweep import SweepPoint, threshold_sweep
from ...gates.gated_model import apply_masks
from ...gates.masks import MaskSet
from ...mask_search import SearchResult
from ...metrics.accuracy import Evaluation
from ..session import Session


def picked_accuracies(session: Session, found: SearchResult) -> dict[str, Evaluation]:
    """Accuracies on the held-out split with the masks "best" and "last" of a search."""
    masks = {"best": found.best, "last": found.last}
    return {
        name: session.accuracy(apply_masks(session.dense, chosen, session.example)) for name, chosen in masks.items()
    }


def curve_of(session: Session, masks: MaskSet) -> list[SweepPoint]:
    """Accuracy against sparsity over thresholds of the masks, on the validation data or else the held-out split."""
    data = session.splits.val if session.splits.val is not None else session.held_out[1]
    loader = BatchLoader(data, max(session.config.batch_size, 256))
    example = input_map(session.example, lambda tensor: tensor.to(session.device))
    return threshold_sweep(session.on_device(session.dense), masks, loader, session.search_aligned, example)


def probes_of(session: Session, slim: nn.Module) -> Mapping[str, BiasProbe]:
    """How much of the bias label a linear head, trained on validation data, reads from the dense and slim network."""
    val = session.splits.val
    assert val is not None  # checked before the search
    probes = {}
    for name, model in (("dense", session.dense), ("slim", slim)):
        loaders = (BatchLoader(data, 256) for data in (val, session.held_out[1]))
        probes[name] = probe_bias(session.on_device(model), *loaders, seed=session.config.search.seed)
    return probes
