"""Comparison of several runs: a table, and an HTML page that plots accuracy against FLOPs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from ..errors import ConfigError
from .files import FRONTIER_FILE, REPORT_FILE
from .plots import Line, plot
from .record import SCHEMA_VERSION
from .rendering import milliseconds, write_text

Runs = Sequence[tuple[str, Mapping[str, Any]]]

_FIGURES = (
    ("accuracy", "accuracy"), ("unbiased_accuracy", "unbiased accuracy"), ("worst_group_accuracy", "worst subgroup"),
)  # fmt: skip


def read_runs(folders: Sequence[Path]) -> list[tuple[str, dict[str, Any]]]:
    """Read the report records of runs, and of every point of frontiers, each with a name made of its folder's.

    Args:
        folders: output folders of runs or frontiers.

    Raises:
        ConfigError: a folder holds no report record, or one of another version or without the figures to compare.
    """
    places = [folder.resolve() for folder in folders]
    runs: list[tuple[str, dict[str, Any]]] = []
    for folder in places:
        path = next((folder / name for name in (REPORT_FILE, FRONTIER_FILE) if (folder / name).is_file()), None)
        if path is None:
            raise ConfigError(f"{folder} holds neither a {REPORT_FILE} nor a {FRONTIER_FILE} of bise-prune")
        alike = sum(other.name == folder.name for other in places) > 1
        name = f"{folder.parent.name}/{folder.name}" if alike else folder.name
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            found = [(f"{name}/{p['folder']}", p["report"]) for p in record.get("frontier", [])] or [(name, record)]
            versions = {report["schema_version"] for _, report in found}
            summaries(found)  # raises if a figure is missing
        except (OSError, ArithmeticError, RecursionError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path} is no report with the figures to compare ({type(error).__name__}: {error}); run it again"
            ) from error
        if versions != {SCHEMA_VERSION}:
            found_versions = ", ".join(sorted(map(str, versions)))
            raise ConfigError(f"{path} is of report version {found_versions}, this is {SCHEMA_VERSION}")
        runs += found
    return runs


def summaries(runs: Runs) -> list[dict[str, Any]]:
    """The figures to compare, one row per run, and whether each row is on the Pareto front.

    A row is on the Pareto front if no other row, evaluated on the same data, has both at least its unbiased accuracy
    and at most its FLOPs, and is better in one of them. A dense network that several runs share has one row.

    Args:
        runs: names and report records, as :func:`read_runs` returns them.
    """
    rows: list[dict[str, Any]] = []
    shown = set()
    for name, report in runs:
        sources = report["sources"]["checkpoint"], report["sources"]["data"], report["evaluated_on"]
        if sources not in shown:
            rows.append(_row(f"{report['config']['checkpoint']}, dense", report, "dense", 0.0))
            shown.add(sources)
        rows.append(_row(name, report, "slim", report["sparsity"]))
    for row in rows:
        row["on_front"] = not any(_dominates(other, row) for other in rows)
    return rows


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows of :func:`summaries` as a table for the terminal."""
    title = "Accuracies in %, latency in ms at batches 1 and 16; * on the Pareto front of unbiased accuracy and FLOPs"
    if len({(row["data_sha256"], row["evaluated_on"]) for row in rows}) > 1:
        title += "\nThe runs were evaluated on different data: compare with care."
    if len({row["latency_on"] for row in rows}) > 1:
        title += "\nLatencies are of different devices or runtimes."
    table = Table(title=title, title_justify="left")
    table.add_column("", overflow="fold", min_width=16)
    for name in ("gone", "MFLOPs", "ms (1)", "ms (16)", "all", "unbiased", "worst", "gap"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["name"] + (" *" if row["on_front"] else ""),
            f"{100 * row['sparsity']:.1f}",
            f"{row['flops'] / 1e6:.2f}",
            "-" if row["latency_ms_batch_1"] is None else milliseconds(row["latency_ms_batch_1"]),
            milliseconds(row["latency_ms"]),
            *(f"{100 * row[key]['value']:.1f}" for key, _ in _FIGURES),
            "-" if row["gap"] is None else f"{100 * row['gap']:.1f}",
        )
    return table


def write_comparison(path: Path, runs: Runs, failed: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write the comparison of runs as one HTML file that needs no other files.

    Args:
        path: file to write.
        runs: names and report records, as :func:`read_runs` returns them.
        failed: points of a frontier without a result, as in the record of a frontier.
    """
    rows = summaries(runs)
    drawn = {}
    for key, label in _FIGURES:
        x, y = [row["flops"] / 1e6 for row in rows], [100 * row[key]["value"] for row in rows]
        front = sorted((a, b) for a, b, row in zip(x, y, rows, strict=True) if row["on_front"])
        lines = [Line("runs", x, y, joined=False)]
        if key == "unbiased_accuracy":
            lines.append(Line("Pareto front", [a for a, _ in front], [b for _, b in front]))
        texts = [(a, b, str(i)) for i, (a, b) in enumerate(zip(x, y, strict=True), 1)]
        words = f"{label} against FLOPs, one point per row of the table, by its number"
        drawn[label] = plot(key, words, lines, "MFLOPs", f"{label}, %", texts=texts)
    level = runs[0][1]["fairness"]["interval"]["level"]
    write_text(path, "comparison.html.jinja", rows=rows, plots=drawn, level=level, failed=failed)


def _row(name: str, report: Mapping[str, Any], which: str, sparsity: float) -> dict[str, Any]:
    """The figures of one network, "dense" or "slim", from the report record of a run."""
    model, fairness = report[which], report["fairness"][which]
    gaps = [bias["aligned_conflicting_gap"]["value"] for bias in fairness["biases"]]
    known = [gap for gap in gaps if gap is not None]
    return {
        "name": name,
        "sparsity": float(sparsity),
        "params": int(model["params"]),
        "flops": float(model["flops"]),
        "latency_ms": float(model["latency_ms"]),
        "latency_ms_batch_1": model.get("latency_ms_batch_1"),  # not measured before 0.2
        "latency_on": model["latency"]["device"],
        **{key: fairness[key] for key, _ in _FIGURES},
        "gap": max(known, key=abs) if known else None,
        "n": report["fairness"]["n"],
        "evaluated_on": report["evaluated_on"],
        "data": report["data"]["specification"],
        "data_sha256": report["sources"]["data"],
    }


def _dominates(other: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether another row on the same data has no less accuracy and no more FLOPs than this one, and is better."""
    if any(other[key] != row[key] for key in ("data_sha256", "evaluated_on")):
        return False
    figures = [(r["unbiased_accuracy"]["value"], -r["flops"]) for r in (other, row)]
    return all(a >= b for a, b in zip(*figures, strict=True)) and figures[0] != figures[1]
