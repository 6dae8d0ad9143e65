"""The evaluation stage: accuracies on the held-out split, and the optional curve and probes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ...data import BatchLoader
from ...data.batch import input_map
from ...diagnostics.probe import BiasProbe, probe_bias
from ...diagnostics.sweep import SweepPoint, threshold_sweep
from ...errors import ChanceLevelError
from ...gates.gated_model import apply_masks
from ...gates.masks import MaskSet
from ...mask_search import SearchResult
from ...metrics.accuracy import Evaluation, subgroup_members
from ...metrics.chance import against_chance, unbiased_change
from ...report.advice import advice
from ...report.files import MASK_FILE, STATE_FILE
from ..session import Session


def check_above_chance(session: Session, predicted: Sequence[Tensor], searched: bool) -> None:
    """Check that the slim network is not worthless where the dense one is not.

    It is worthless if it predicts one class for all held-out samples, or if its unbiased accuracy is not above chance
    beyond the noise and is below the dense network's beyond the noise.

    Args:
        session: inputs of the run.
        predicted: classes that the dense and the slim network predict on the held-out split, shape (N,) each.
        searched: whether a search found the masks, which are kept then.

    Raises:
        ChanceLevelError: it is worthless; the message says what is kept, and what to try.
    """
    split, data = session.held_out
    target = data.target.cpu()
    members = [mask for _, mask in subgroup_members(target, data.bias.cpu(), session.held_out_aligned) if mask.any()]
    dense, slim = (against_chance(classes, target, members) for classes in predicted)
    right = [classes == target for classes in predicted]
    counts = [
        (int(m.sum()), int((right[1] & ~right[0])[m].sum()), int((right[0] & ~right[1])[m].sum())) for m in members
    ]
    collapsed = slim.is_constant and not dense.is_constant
    fell_to_chance = dense.is_above() and not slim.is_above() and unbiased_change(counts)[1] < 0
    if not (collapsed or fell_to_chance):
        return
    config, names = session.config, session.splits.classes
    label = int(predicted[1][0])
    what = "predicts no better than chance"
    if slim.is_constant:
        what = f"predicts class {names[label] if label < len(names) else label} for every sample"
    text = (
        f"the slim network {what} ({split} split, {len(target):,} samples: unbiased accuracy {slim.accuracy:.1%}, the "
        f"dense network's {dense.accuracy:.1%}, chance {slim.chance:.1%}), so that no network was written"
    )
    if searched:
        text += f"; the masks are kept in {config.output / MASK_FILE} and the search in {config.output / STATE_FILE}"
    help = advice(config, searched)
    raise ChanceLevelError(text + (f"; to try, with another --output: {help}" if help else ""))


def picked_accuracies(session: Session, found: SearchResult) -> dict[str, Evaluation]:
    """Accuracies on the held-out split with the masks "best" and "last" of a search."""
    masks = {"best": found.best, "last": found.last}
    return {
        name: session.accuracy(apply_masks(session.dense, chosen, session.example)) for name, chosen in masks.items()
    }


def curve_of(session: Session, masks: MaskSet) -> list[SweepPoint]:
    """Accuracy against sparsity over thresholds of the masks, on the validation data or else the held-out split."""
    data = session.val if session.val is not None else session.held_out[1]
    loader = BatchLoader(data, max(session.config.batch_size, 256))
    example = input_map(session.example, lambda tensor: tensor.to(session.device))
    return threshold_sweep(session.on_device(session.dense), masks, loader, session.search_aligned, example)


def probes_of(session: Session, slim: nn.Module) -> Mapping[str, BiasProbe]:
    """How much of the bias label a linear head, trained on validation data, reads from the dense and slim network."""
    val = session.val
    assert val is not None  # checked before the search
    probes = {}
    for name, model in (("dense", session.dense), ("slim", slim)):
        loaders = (BatchLoader(data, 256) for data in (val, session.held_out[1]))
        probes[name] = probe_bias(session.on_device(model), *loaders, seed=session.config.search.seed)
    return probes
