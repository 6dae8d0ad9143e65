"""The dry run: it reads and checks everything, and shows what was understood and how long the search may take."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Group
from rich.table import Table
from torch import Tensor

from ..config import RunConfig, portable
from ..errors import counted
from ..gates.sites import gate_sites
from ..mask_search.weights import sample_weights
from ..metrics.subgroups import count_subgroups, is_aligned
from ..report.warnings import warnings_of_inputs
from .estimate import estimated, seconds_after_search, seconds_of_identification
from .progress import Progress, StageClock
from .reading import read_session
from .session import Session
from .stages.prune import pruned

_MOST_CELLS = 30  # most subgroups that are shown one by one


def dry_run(config: RunConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Read and check everything that a run needs, without writing anything.

    Returns:
        What ``--dry-run --json`` prints: checkpoint, data, biases, gates, the estimated time of the search, and why a
        run would refuse the dense network, if it would.

    Raises:
        BiseError: the run itself would refuse these settings or files.
    """
    with tempfile.TemporaryDirectory() as scratch:
        clock = StageClock(progress)
        session = read_session(config, clock, Path(scratch))
        if session.plan is not None:
            pruned(session, session.plan, None)
        sites = gate_sites(session.dense, session.example, config.search.placement)
        estimate = estimated(session, sites)
        estimate["run_seconds"] = 0.0
        if estimate["epochs"]:
            after = seconds_of_identification(session) + seconds_after_search(session, sites)
            estimate["run_seconds"] = sum(clock.timings.values()) + estimate["seconds"] + after
    checkpoint, splits = session.checkpoint, session.splits
    return {
        "checkpoint": {
            "arch": checkpoint.arch,
            "arguments": {key: value for key, value in checkpoint.arguments.items() if key != "config"},
            "num_classes": session.num_classes,
            "params": sum(parameter.numel() for parameter in session.dense.parameters()),
            "sha256": checkpoint.sha256,
            "preprocessing": dict(checkpoint.preprocessing),
            "notes": list(checkpoint.notes),
        },
        "data": {
            "specification": portable(session.specification),
            "samples": {name: 0 if data is None else len(data) for name, data in splits.by_name.items()},
            "classes": list(splits.classes),
            "input": list(session.example.shape[1:]) if isinstance(session.example, Tensor) else list(session.example),
            "notes": list(splits.notes),
            "warnings": [text for text in warnings_of_inputs(session.subject) if text not in checkpoint.notes],
        },
        "biases": _biases(session),
        "gates": [{"name": s.name, "channels": s.num_channels} for s in sites],
        "estimate": estimate,
        "doubt": session.doubt,
    }


def _biases(session: Session) -> list[dict[str, Any]]:
    """For each bias: training samples and mean weight per subgroup (y, b), the aligned values, and their share."""
    train, config = session.splits.train, session.config.search
    if not train.has_bias:
        return []
    weights = sample_weights(
        train.target, train.bias, session.num_classes, session.aligned, config.weighting, config.rho
    )(train.target, train.bias)
    found, values_of = [], session.splits.bias_values
    for k, column in enumerate(train.bias.unbind(1)):
        values = int(column.max()) + 1
        counts = count_subgroups(train.target, column, session.num_classes, values)
        sums = torch.zeros(counts.numel(), dtype=torch.float64)
        sums.index_add_(0, train.target * values + column, weights.double())
        mean = (sums.view_as(counts) / counts.clamp(min=1)).tolist()
        aligned = is_aligned(train.target, train.bias, session.aligned)[:, k]
        found.append({
            "counts": counts.tolist(),
            "mean_weights": mean,
            "aligned": session.aligned[:, k].tolist(),
            "share_aligned": float(aligned.double().mean()),
            "num_conflicting": int((~aligned).sum()),
            "name": session.splits.bias_name(k),
            "values": [str(name) for name in values_of[k]] if k < len(values_of) else [],
        })  # fmt: skip
    return found


def dry_run_tables(record: dict[str, Any]) -> Group:
    """The result of a dry run as tables for the terminal."""
    about, data, estimate = record["checkpoint"], record["data"], record["estimate"]
    summary = Table(title="What was understood", title_justify="left", show_header=False)
    given = ", ".join(f"{key}={value}" for key, value in about["arguments"].items())
    samples = ", ".join(f"{name} {number:,}" for name, number in data["samples"].items())
    channels = sum(gate["channels"] for gate in record["gates"])
    summary.add_row("network", f"{about['arch'] or 'as in the file'}{f'({given})' if given else ''}")
    summary.add_row("parameters", f"{about['params']:,}; {about['num_classes']} classes")
    summary.add_row("data", f"{data['specification']}; {samples}")
    summary.add_row("classes", ", ".join(map(str, data["classes"][:10])) or "unnamed")
    summary.add_row("input", " x ".join(map(str, data["input"])))
    summary.add_row("gates", f"{counted(len(record['gates']), 'mask')} over {counted(channels, 'channel')}")
    if estimate["epochs"]:
        summary.add_row(
            "search",
            f"{counted(estimate['epochs'], 'epoch')} of {counted(estimate['steps_per_epoch'], 'step')}, about "
            f"{math.ceil(estimate['seconds'] / 60):,} min on this device, and the run without finetuning about "
            f"{math.ceil(estimate['run_seconds'] / 60):,} min",
        )
    for k, bias in enumerate(record["biases"]):
        summary.add_row(
            f"bias label {bias['name']}" if bias["name"] != f"bias {k}" else bias["name"],
            f"{bias['share_aligned']:.1%} of the training samples are aligned, {bias['num_conflicting']:,} conflicting",
        )
    for note in (*about["notes"], *data["notes"]):
        summary.add_row("note", note)
    for warning in data["warnings"]:
        summary.add_row("warning", warning)
    return Group(summary, *(_bias_table(bias, data["classes"]) for bias in record["biases"]))


def _bias_table(bias: dict[str, Any], classes: list[str]) -> Table:
    """A table of one bias: training samples per class and bias value, or per class if there are many."""
    counts = bias["counts"]
    wide = len(counts) * len(counts[0]) > _MOST_CELLS
    table = Table(title=f"{bias['name']}: training samples{'' if wide else ' (mean weight)'}", title_justify="left")
    table.add_column("class")
    table.add_column("aligned with", justify="right")
    columns = [] if wide else list(range(len(counts[0])))
    named = bias["values"] if len(bias["values"]) >= len(counts[0]) else [f"b = {b}" for b in range(len(counts[0]))]
    for value in columns:
        table.add_column(named[value], justify="right")
    if wide:
        table.add_column("aligned", justify="right")
        table.add_column("conflicting", justify="right")
    for y, row in enumerate(counts):
        name = str(classes[y]) if y < len(classes) else str(y)
        aligned = bias["aligned"][y]
        cells = [f"{row[value]:,} ({bias['mean_weights'][y][value]:.2f})" for value in columns]
        if wide:
            cells = [f"{row[aligned]:,}", f"{sum(row) - row[aligned]:,}"]
        table.add_row(name, named[aligned], *cells)
    return table
