"""The widths stage: slim networks with rounded widths are timed in onnxruntime, and the one to deliver is chosen."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from torch import nn

from ...config import Target
from ...data.batch import input_map
from ...export.onnx_file import export_onnx
from ...export.runtime import timed_files
from ...gates.masks import MaskSet
from ...pruning import PruningResult, fuse_batchnorm
from ...pruning.plan import PruningPlan
from ...pruning.rounded import prune_as_planned
from ...pruning.widths import MULTIPLES, WidthTrial, choose, coarser
from ...report.results import LATENCY_BATCHES
from ..session import Session


def with_measured_widths(
    session: Session, masks: MaskSet, planned: PruningResult, dense_file: Path
) -> tuple[PruningResult, list[WidthTrial]]:
    """Round the widths of a slim network up by the multiple that serves best in onnxruntime on this machine.

    Where masks that meet disagree and the settings leave the lowering open, both are tried. Without a target, coarser
    multiples are tried one after the other if no network was as fast as the dense one, up to the full width.

    Args:
        session: inputs of the run.
        masks: masks that the slim network was made from.
        planned: the slim network with widths that are not rounded.
        dense_file: ONNX file of the dense network, which every other one is timed by turns with.

    Returns:
        The chosen network, and the measurements of all that were tried, in the order in which they were tried.
    """
    results = _without_doubles([planned, *_candidates(session, masks, planned, MULTIPLES)])
    trials = _measured(session, results, dense_file)
    widest = max((layer.num_outputs for layer in planned.plan.layers.values()), default=0)
    for multiple in coarser(widest) if session.config.target is None else ():
        if any(trial.is_as_fast for trial in trials):
            break
        known = len(results)
        results = _without_doubles([*results, *_candidates(session, masks, planned, [multiple])])
        if len(results) > known:
            trials += _measured(session, results[known:], dense_file)
    return results[choose(trials)], trials


def exported(session: Session, model: nn.Module) -> nn.Module:
    """The network as it is exported: with its batch norms folded, if the settings say so."""
    return fuse_batchnorm(model, session.example) if session.config.fuse else model


def _candidates(
    session: Session, masks: MaskSet, planned: PruningResult, multiples: Sequence[int]
) -> Iterator[PruningResult]:
    """The networks with widths rounded up to each multiple, in each lowering that is open."""
    config = session.config
    lowerings = ["expand", "intersection"] if config.joins == "auto" else [config.joins]
    if planned.plan.joins == "dense":  # no masks that meet disagree
        lowerings = lowerings[:1]
    dense = session.on_device(session.dense)
    example = input_map(session.example, lambda tensor: tensor.to(session.device))
    for joins in lowerings:
        for multiple in multiples:
            if multiple > 1 or planned.plan.joins not in (joins, "dense"):
                yield prune_as_planned(
                    dense, planned, masks, example, joins=joins, round_to=multiple, round_fill=config.round_fill
                )


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


def _measured(session: Session, results: Sequence[PruningResult], dense_file: Path) -> list[WidthTrial]:
    """Time networks by turns with the dense one, as ONNX files."""
    config = session.config
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.onnx" for i in range(len(results))]
        for path, result in zip(paths, results, strict=True):
            export_onnx(exported(session, result.model.cpu()), path, session.example, opset=config.opset)
        dense, *files = timed_files([dense_file, *paths], session.held_out[1], LATENCY_BATCHES, session.device)
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
    """Whether a plan removes the share that it was to remove, within the tolerance; True without a target."""
    target = plan.target
    return not target or abs(target["reached"] - target["asked"]) <= Target(target["kind"], 0.5).tolerance
