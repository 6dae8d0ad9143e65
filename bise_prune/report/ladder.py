"""What the dense and the slim network are worth at each rung of the ladder, as a record, a table and a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from .results import RunResults

# What a rung may change, as tables and pages call it.
NAMES: Mapping[str, str] = {
    "none": "nothing",
    "shift": "logit offsets",
    "norms": "+ norm layers",
    "head": "+ the last layer",
    "all": "all weights (finetuned)",
}

_WORTH_TELLING = 0.01  # gain of the masks from which on it is told how much of it is a shift

CHANGES: Mapping[str, str] = {
    "shift": "offsets of the logits",
    "norms": "norm layers",
    "head": "the last layer",
    "all": "all weights",
}


def ladder_record(results: RunResults) -> dict[str, Any] | None:
    """The part of the report record on the ladder; None for a network without a linear head."""
    ladder = results.ladder
    if ladder is None:
        return None
    sizes = {"dense": results.dense.measurement.params, "slim": results.slim.measurement.params}
    samples = {name: None if found is None else dict(zip(("split", "samples"), found, strict=True)) for name, found in
               (("fitted_on", ladder.fitted_on), ("decided_on", ladder.decided_on))}  # fmt: skip
    rows = [
        {
            "network": row.network,
            "rung": row.rung,
            "changes": list(row.changes),
            "num_changed": row.num_changed,
            "share_changed": row.num_changed / sizes[row.network],
            "accuracy": row.evaluation.accuracy,
            "unbiased_accuracy": row.evaluation.unbiased_accuracy,
            "worst_group_accuracy": row.evaluation.worst_group_accuracy,
            "delivered": (row.network, row.rung) == ("slim", ladder.delivered),
        }
        for row in ladder.rows
    ]
    unbiased = {(row.network, row.rung): row.evaluation.unbiased_accuracy for row in ladder.rows}
    masks_add = {
        rung: value - unbiased["dense", rung]
        for (network, rung), value in unbiased.items()
        if network == "slim" and ("dense", rung) in unbiased
    }
    return {
        **samples,
        "delivered": ladder.delivered,
        "trained_before": results.masks.trained_before,
        "rows": rows,
        "masks_add": masks_add,
    }


def ladder_rows(ladder: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For each rung its name in words, the rows of both networks, and what the masks add, in [-1, 1]."""
    by_rung: dict[str, dict[str, Any]] = {}
    for row in ladder["rows"]:
        by_rung.setdefault(row["rung"], {})[row["network"]] = row
    return [
        {"rung": rung, "name": NAMES[rung], "masks_add": ladder["masks_add"].get(rung), **found}
        for rung, found in by_rung.items()
    ]


def ladder_table(record: Mapping[str, Any]) -> Table:
    """A table of the ladder, with one row per rung, from a report record."""
    table = Table(title="Unbiased accuracy (worst subgroup) if this may change; * = delivered", title_justify="left")
    table.add_column("")
    for name in ("dense", "slim", "masks add"):
        table.add_column(name, justify="right")
    for row in ladder_rows(record["ladder"]):
        cells = []
        for network in ("dense", "slim"):
            found = row.get(network)
            text = "" if found is None else f"{found['unbiased_accuracy']:.1%} ({found['worst_group_accuracy']:.1%})"
            cells.append(text + (" *" if found and found["delivered"] else ""))
        added = "" if row["masks_add"] is None else f"{100 * row['masks_add']:+.1f} points"
        table.add_row(row["name"], *cells, added)
    return table


def ladder_sentence(record: Mapping[str, Any]) -> str:
    """How much of the change the masks add, and what the cheap changes alone give, from a report record."""
    ladder = record["ladder"]
    found = {row["rung"]: row for row in ladder_rows(ladder)}
    figures = []
    added = ladder["masks_add"]["none"]
    shifted = found["shift"]["dense"]["unbiased_accuracy"] - found["none"]["dense"]["unbiased_accuracy"]
    is_shift = ""
    if added >= _WORTH_TELLING and shifted >= added / 2:
        part = "all" if shifted >= added else "most"
        is_shift = f" ({part} of it a shift: offsets of the dense network's logits alone give {100 * shifted:+.1f})"
    told = {"shift": "with logit offsets", "norms": "with other norm layers", "head": "with a refitted last layer"}
    if not any("norms" in row["changes"] for row in ladder["rows"] if row["rung"] == "norms"):
        del told["norms"]
    for rung, words in told.items():
        dense, slim = (found[rung][network]["unbiased_accuracy"] for network in ("dense", "slim"))
        figures.append(f"{words} {dense:.1%} dense and {slim:.1%} slim")
    learned = ""
    if ladder["trained_before"]:
        learned = "The masks were learned on the network with its norm layers trained first. "
    return (
        f"{learned}With no weight changed, the masks add {100 * added:+.1f} points of unbiased accuracy{is_shift}; "
        f"{', '.join(figures)} (--tune)."
    )
