"""What the masks add on the zoo if a little more may change: logit offsets, norm layers, the last layer.

    python benchmarks/zoo.py --data-root data --work FOLDER
    python benchmarks/defaults.py --data-root data --work FOLDER
    python benchmarks/ladder.py --data-root data --work FOLDER
    python benchmarks/ladder.py --data-root data --work FOLDER --alone

Climbs the ladder of `bise-prune --tune` for the dense network of each cell, and for the slim one by the masks that
`benchmarks/defaults.py` has found and left in FOLDER, without rounding of widths. Changes are fitted to what masks are
learned on by default, half of the validation split or the training split, and decided on the other half, or on the
validation split; if they were fitted to a half, they are fitted again to the whole split. Accuracies are those on the
test split. Writes benchmarks/records/ladder.json, in place of what the record had of these cells;
``benchmarks/results.py`` writes the page of it. With ``--alone``, the dense networks' changes are fitted to training
samples and decided by them, as in a run without a validation split, by their bias labels and by pseudo labels, and the
record is benchmarks/records/ladder_alone.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import zoo
from records import RECORDS, base_record, commits_of

from bise_prune import MaskSet, prune
from bise_prune.app.progress import StageClock
from bise_prune.app.session import Session
from bise_prune.app.stages.identify import identified
from bise_prune.app.stages.ladder import ladder_of
from bise_prune.files import write_json
from bise_prune.report.ladder import NAMES
from bise_prune.tuning.ladder import Ladder, Rung

_FIGURES = ("unbiased_accuracy", "worst_group_accuracy")
_OF_PSEUDO_LABELS = ("precision", "recall", "agreement")
_ALONE = (
    "The ladder of the dense networks, fitted to training samples and decided by them, as in a run without a "
    "validation split, by their bias labels and by pseudo labels as of --unsupervised. Pseudo labels that are warned "
    "of are not used there; what they would have led to is shown as well. Precision: share of the samples that count "
    "as bias-conflicting that are. Agreement: share that both of two identification models get wrong of the samples "
    "that either does. Accuracies are those on the test split."
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    zoo.add_arguments(parser)
    parser.add_argument("--alone", action="store_true", help="dense networks, by training samples alone")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    protocol = "Climbs " + " ".join((__doc__ or "").split("Climbs ")[1].split(" Writes")[0].split())
    about = base_record([0], _ALONE if arguments.alone else protocol, "cpu")
    path = RECORDS / ("ladder_alone.json" if arguments.alone else "ladder.json")
    before = json.loads(path.read_text())
    cells = {name: {"commit": before["commit"], **row} for name, row in before["cells"].items()}
    for cell in zoo.chosen(arguments.cells):
        if found := (_alone if arguments.alone else _climbed)(cell, arguments.work):
            cells[cell.name] = {"commit": about["commit"], **found}
            print(f"{cell.name}: {cells[cell.name]}", flush=True)
            write_json(path, {**about, "cells": cells})
    return 0


def _climbed(cell: zoo.Cell, work: Path) -> dict[str, Any] | None:
    """Figures of both networks at each rung, the FLOPs left, and the seconds that it took; None without masks."""
    masks = work / "defaults" / cell.name / "slim" / "masks.safetensors"
    if not masks.exists():
        return None
    session = zoo.session_of(cell, work, work / cell.name / "unused")
    pruned = prune(session.dense, MaskSet.load(masks), session.example, joins="expand", batch_sizes=(1, 2))
    found: dict[str, Any] = {"flops_left": round(pruned.plan.macs[1] / pruned.plan.macs[0], 4)}
    start = time.process_time()
    for name, model in (("dense", session.dense), ("slim", pruned.model)):
        found[name] = _rungs(ladder_of(session, model), session)
    return {**found, "trains_norms": True, "cpu_seconds": round(time.process_time() - start, 1)}


def _rungs(ladder: Ladder, session: Session) -> dict[str, Any]:
    """Figures of a network at each rung on the test split, and what changes there."""
    rungs = ladder.evaluations(session.held_out[1], session.held_out_aligned)
    return {
        rung.value: {
            **{figure: round(getattr(evaluation, figure), 4) for figure in _FIGURES},
            "changes": list(ladder.steps[rung].changes),
        }
        for rung, evaluation in rungs.items()
    }


def _alone(cell: zoo.Cell, work: Path) -> dict[str, Any] | None:
    """Figures of the dense network, by training samples alone, and seconds; None if there is no network."""
    if not (work / cell.name / "about.json").exists():
        return None
    session = zoo.session_of(cell, work, work / cell.name / "unused")
    session = replace(session, splits=replace(session.splits, val=None), halves=None)
    start = time.process_time()
    found = identified(session, StageClock())
    assert found.pseudo is not None
    pseudo = {key: round(value, 3) for key in _OF_PSEUDO_LABELS if (value := getattr(found.pseudo, key)) is not None}
    rows = {"pseudo labels": _rungs(ladder_of(found, found.dense), found)}
    if not found.pseudo.is_trusted:
        rows["doubted"] = _rungs(Ladder(found.dense, found.splits.train, None, found.search_aligned), found)
    by_labels = _rungs(ladder_of(session, session.dense), session)
    seconds = round(time.process_time() - start, 1)
    return {
        **by_labels,
        **rows,
        "identification": {**pseudo, "is_trusted": found.pseudo.is_trusted},
        "cpu_seconds": seconds,
    }


# -- the page ------------------------------------------------------------------------------------

PAGE = RECORDS.parents[1] / "docs" / "pages" / "evidence" / "ladder.md"
_ALONE_URL = "https://github.com/bise-prune/bise-prune/blob/main/benchmarks/records/ladder_alone.json"
_RECORD_URL = "https://github.com/bise-prune/bise-prune/blob/main/benchmarks/records/ladder.json"


def markdown(record: Mapping[str, Any], alone: Mapping[str, Any]) -> str:
    """The record as a page, with that of dense networks whose changes are decided by training samples alone."""
    cells = record["cells"]
    lines = [
        "# If a little more may change",
        "",
        "This page says what the masks add to cheap changes of a network, on small biased networks of the kinds that "
        "users bring.",
        "",
        f"**How it was measured.** {record['protocol']} Seed 0; networks: `benchmarks/zoo.py`. Command: "
        f"`{record['command']}`, {commits_of(record)}, [record]({_RECORD_URL}).",
        "",
        f"**What there is.** {len(cells)} of {len(zoo.CELLS)} networks. Unbiased accuracy on test data in %, and that "
        f"of the worst subgroup in brackets. Each column may change what those before it may.{_older(cells)}",
        "",
        "## All networks",
        "",
        "Medians over the networks in whole points, and for how many of them the slim one is ahead of the dense one at "
        "the same rung, level within half a point, or behind.",
        "",
        *_summary(cells),
        "",
        f"[Record]({_RECORD_URL}).",
        "",
        "## Each network",
        "",
        *_table(cells),
        "",
        f"[Record]({_RECORD_URL}).",
        "",
        "## Dense networks without a validation split",
        "",
        f"{alone['protocol']} Seed 0. When identification models are stopped was set "
        "[on the same networks](../decisions/2026-11-29-pseudo-labels.md), resnet20-tint excepted. "
        f"Command: `{alone['command']}`, {commits_of(alone)}.",
        "",
        *_table_of_alone(alone["cells"]),
        "",
        f"[Record]({_ALONE_URL}).",
    ]
    return "\n".join(lines) + "\n"


def _older(cells: Mapping[str, Any]) -> str:
    """What is told of cells that were run before weights of norm layers were trained."""
    count = sum(not cell.get("trains_norms", False) for cell in cells.values())
    told = f" For {count} networks, norm layers are statistics of batch norms alone, as that rung was then."
    return told if count else ""


def _summary(cells: Mapping[str, Any]) -> list[str]:
    """A row per rung: medians of both networks, and how often the slim one is ahead."""
    lines = [
        "| may change | dense | slim | ahead | level | behind | worst subgroup, dense | slim |",
        "| --- |" + " ---: |" * 7,
    ]
    for rung in Rung:
        figures = {
            (network, figure): [cell[network][rung.value][figure] for cell in cells.values()]
            for network in ("dense", "slim") for figure in _FIGURES
        }  # fmt: skip
        pairs = zip(figures["slim", _FIGURES[0]], figures["dense", _FIGURES[0]], strict=True)
        gains = [slim - dense for slim, dense in pairs]
        ahead, behind = sum(gain > 0.005 for gain in gains), sum(gain < -0.005 for gain in gains)
        medians = {key: f"{100 * statistics.median(values):.0f}" for key, values in figures.items()}
        row = [NAMES[rung], medians["dense", _FIGURES[0]], medians["slim", _FIGURES[0]], str(ahead)]
        row += [str(len(gains) - ahead - behind), str(behind)]
        row += [medians[network, _FIGURES[1]] for network in ("dense", "slim")]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _table(cells: Mapping[str, Any]) -> list[str]:
    """A row per cell: both networks as they are, with offsets, and with a refitted head."""
    shown = (Rung.NONE, Rung.SHIFT, Rung.HEAD)
    heads = [f"{network}, {NAMES[rung].removeprefix('+ ')}" for rung in shown for network in ("dense", "slim")]
    lines = [f"| network | FLOPs left | {' | '.join(heads)} |", "| --- |" + " ---: |" * (1 + len(heads))]
    for name, cell in cells.items():
        row = [name, f"{100 * cell['flops_left']:.1f}"]
        for rung in shown:
            for network in ("dense", "slim"):
                unbiased, worst = (100 * cell[network][rung.value][figure] for figure in _FIGURES)
                row.append(f"{unbiased:.1f} ({worst:.1f})")
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _table_of_alone(cells: Mapping[str, Any]) -> list[str]:
    """A row per cell and kind of labels: the dense network at each rung, and what tells of pseudo labels."""
    heads = ["network", *(NAMES[rung] for rung in Rung), "precision", "agreement"]
    lines = [f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1)]
    for name, cell in cells.items():
        told = cell.get("identification", {})
        for label, key in (("", None), (", pseudo labels", "pseudo labels"), (", doubted labels used", "doubted")):
            rungs = cell if key is None else cell.get(key)
            if rungs is not None:
                found = [[100 * rungs[rung.value][figure] for figure in _FIGURES] for rung in Rung]
                row = [name + label, *(f"{unbiased:.1f} ({worst:.1f})" for unbiased, worst in found)]
                row += [f"{100 * told[what]:.0f}" if key and what in told else "" for what in heads[-2:]]
                lines.append(f"| {' | '.join(row)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
