"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from .rendering import milliseconds
from .verdict import verdict_of


def comparison_table(record: Mapping[str, Any]) -> Table:
    """A table that compares the dense and the slim network, with one row per figure, from a report record."""
    dense, slim = record["dense"], record["slim"]
    table = Table(title=f"{record['evaluated_on']} set, n = {dense['n']}", title_justify="left")
    table.add_column("")
    for name in ("dense", "slim", "change"):
        table.add_column(name, justify="right")
    for label, key in (
        ("accuracy", "accuracy"),
        ("unbiased accuracy", "unbiased_accuracy"),
        (f"worst of {len(dense['groups'])} subgroups", "worst_group_accuracy"),
    ):
        change = (slim[key] - dense[key]) * 100
        table.add_row(label, f"{dense[key]:.1%}", f"{slim[key]:.1%}", f"{change:+.1f} points")
    for label, key, unit in (
        ("parameters", "params", ""),
        ("FLOPs (1 MAC = 1)", "flops", ""),
        ("size", "size_bytes", " B"),
    ):
        change = (slim[key] / dense[key] - 1) * 100
        table.add_row(label, f"{dense[key]:,}{unit}", f"{slim[key]:,}{unit}", f"{change:+.1f} %")
    fairness = record["fairness"]
    for k, _ in enumerate(fairness["dense"]["biases"]):
        of = f", {record['data']['biases'][k]['name']}" if len(fairness["dense"]["biases"]) > 1 else ""
        for label, key in (
            ("aligned - conflicting", "aligned_conflicting_gap"),
            ("demographic parity difference", "demographic_parity_difference"),
            ("equalised odds difference", "equalized_odds_difference"),
        ):
            values = [fairness[name]["biases"][k][key]["value"] for name in ("dense", "slim", "change")]
            cells = ["undefined" if value is None else f"{value * 100:.1f}" for value in values[:2]]
            table.add_row(label + of, *cells, "" if values[2] is None else f"{values[2] * 100:+.1f} points")
    for one, other in zip(latencies_of(dense), latencies_of(slim), strict=True):
        table.add_row(
            f"latency, batch {one['batch_size']}, {one['device']}",
            f"{milliseconds(one['median_ms'])} ms",
            f"{milliseconds(other['median_ms'])} ms",
            f"x {other['median_ms'] / one['median_ms']:.2f}",
        )
    return table


def widths_table(record: Mapping[str, Any]) -> Table:
    """A table of the widths that were tried, with one row each, from a report record."""
    table = Table(title="Widths tried in onnxruntime: time / dense time", title_justify="left")
    for name in ("multiple of", "lowering", "FLOPs left", "batch 1", "batch 16", "chosen"):
        table.add_column(name, justify="right")
    for trial in record["widths"]:
        table.add_row(
            str(trial["multiple"]),
            trial["joins"],
            f"{trial['flops_left']:.1%}",
            f"{trial['latency_ratio_batch_1']:.2f}",
            f"{trial['latency_ratio_batch_16']:.2f}",
            "yes" if trial["chosen"] else "",
        )
    return table


def is_slower(record: Mapping[str, Any]) -> bool:
    """Whether the slim network of a run is slower than the dense one at some batch size."""
    return any(ratio["is_slower"] for ratio in record.get("latency_ratio", {}).values())  # before 0.2, there is none


def latencies_of(model: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The latencies of a network at all batch sizes, the smallest first, from its part of a report record."""
    return [model[key] for key in ("latency_batch_1", "latency") if key in model]  # before 0.2, there is one


def frontier_table(record: Mapping[str, Any]) -> Table:
    """A table of a frontier, with one row per target after the dense network's, from the record of a frontier."""
    points = record["frontier"]
    dense = points[0]["report"]["dense"]
    table = Table(title=f"{points[0]['report']['evaluated_on']} set, n = {dense['n']}", title_justify="left")
    for name in (
        "sparsity",
        "FLOPs left",
        "ms, batch 1",
        "ms, batch 16",
        "accuracy",
        "unbiased accuracy",
        "worst subgroup",
    ):
        table.add_column(name, justify="right")
    table.add_column("unbiased")
    reports = [point["report"] for point in points]
    rows = [(0.0, dense, "")]
    rows += [(report["sparsity"], report["slim"], verdict_of(report["fairness"]).value) for report in reports]
    for sparsity, model, verdict in rows:
        table.add_row(
            f"{sparsity:.1%}",
            f"{model['flops'] / dense['flops']:.1%}",
            milliseconds(model["latency_ms_batch_1"]) if "latency_ms_batch_1" in model else "",
            milliseconds(model["latency_ms"]),
            f"{model['accuracy']:.1%}",
            f"{model['unbiased_accuracy']:.1%}",
            f"{model['worst_group_accuracy']:.1%}",
            verdict,
        )
    return table


def side_by_side(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], title: str) -> Table:
    """A table with one column per model and one row per figure.

    Args:
        names: names of the models.
        rows: label of each figure, with its values as text.
        title: title of the table.
    """
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for label, values in rows:
        table.add_row(label, *values)
    return table
