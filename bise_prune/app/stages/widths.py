"""The widths stage: slim networks with rounded widths are timed in onnxruntime, and the one to deliver is chosen."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ...channels import Joins
from ...config import Target, lowering_of
from ...data.batch import input_map
from ...export.onnx_file import export_onnx
from ...export.runtime import timed_files
from ...pruning import PruningResult, fuse_batchnorm
from ...pruning.plan import PruningPlan
from ...pruning.widths import MULTIPLES, WidthTrial, choose, coarser
from ...report.results import LATENCY_BATCHES
from ..session import Session

# Makes the slim network of a lowering, with widths rounded up to a multiple.
Make = Callable[[Joins, int], PruningResult]


def with_measured_widths(
    session: Session, make: Make, multiples: Sequence[int] = MULTIPLES
) -> tuple[PruningResult, list[WidthTrial]]:
    """Choose the multiple to round widths up to, and the lowering, that serve best in onnxruntime on this machine.

    Where masks that meet disagree and the settings leave the lowering open, the other lowering is tried as well: with
    the best multiple of the first one, or with all of them if none was as fast as the dense network. Without a target,
    coarser multiples follow one by one, up to the full width, as long as no network is as fast as the dense one.

    Args:
        session: inputs of the run.
        make: makes a slim network.
        multiples: the multiples to choose from.

    Returns:
        The chosen network, and the measurements of all that were tried, in the order in which they were tried.
    """
    config = session.config
    results: list[PruningResult] = []
    trials: list[WidthTrial] = []

    def attempt(found: Iterable[PruningResult]) -> None:
        """Measure networks of new widths."""
        new = _without_doubles([*results, *found])[len(results) :]
        results.extend(new)
        trials.extend(_measured(session, new) if new else [])

    lowerings: list[Joins] = [lowering_of(config.joins)]
    attempt(make(lowerings[0], multiple) for multiple in multiples)
    if config.joins == "auto" and any(result.plan.joins != "dense" for result in results):
        lowerings.append("intersection")
        best = trials[choose(trials)]
        attempt(make("intersection", multiple) for multiple in ([best.multiple] if best.is_as_fast else multiples))
    widest = max((layer.num_outputs for layer in results[0].plan.layers.values()), default=0)
    for multiple in coarser(widest) if config.target is None else ():
        if any(trial.is_as_fast for trial in trials):
            break
        attempt([make(joins, multiple) for joins in lowerings])
    return results[choose(trials)], trials


def exported(session: Session, model: nn.Module) -> nn.Module:
    """The network as it is exported: with its batch norms folded, if the settings say so."""
    return fuse_batchnorm(model, session.example) if session.config.fuse else model


def on_device(session: Session, masks: Any) -> tuple[Any, Any, Any]:
    """The dense network, masks or a plan, and the example input, on the device of the run."""
    example = input_map(session.example, lambda tensor: tensor.to(session.device))
    return session.on_device(session.dense), masks, example


def _without_doubles(results: Iterable[PruningResult]) -> list[PruningResult]:
    """The networks, without those that have the widths and rewirings of one before them."""
    found: list[PruningResult] = []
    for result in results:
        if all(_widths(result) != _widths(other) for other in found):
            found.append(result)
    return found


def _widths(result: PruningResult) -> tuple[object, ...]:
    """What networks of the same widths and rewirings have in common."""
    return result.plan.layers, result.plan.edits_digest


def _measured(session: Session, results: Sequence[PruningResult]) -> list[WidthTrial]:
    """Time networks by turns with the dense one, as ONNX files."""
    config = session.config
    assert session.dense_file is not None
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.onnx" for i in range(len(results))]
        for path, result in zip(paths, results, strict=True):
            export_onnx(exported(session, result.model.cpu()), path, session.example, opset=config.opset)
        dense, *files = timed_files([session.dense_file, *paths], session.held_out[1], LATENCY_BATCHES, session.device)
    return [
        WidthTrial(
            multiple=result.plan.rounding.get("multiple", 1),
            joins=result.plan.joins,
            flops_left=result.plan.macs[1] / max(result.plan.macs[0], 1),
            meets_target=_meets_target(result.plan),
            ratios={batch_size: file.ratio_to(dense, batch_size) for batch_size in LATENCY_BATCHES},
        )
        for result, file in zip(results, files, strict=True)
    ]


def _meets_target(plan: PruningPlan) -> bool:
    """Whether a plan removes the share that it was to remove, within the tolerance, or more; True without a target."""
    target = plan.target
    return not target or target["reached"] - target["asked"] >= -Target(target["kind"], 0.5).tolerance
