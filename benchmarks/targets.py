"""What a target is worth: the search counts widths in steps of 4 channels, or channel by channel.

    python benchmarks/zoo.py --data-root data --work FOLDER [--cells NAME ...]
    python benchmarks/targets.py --data-root data --work FOLDER [--cells NAME ...] [--shares 0.5 0.33]
    python benchmarks/targets.py --data-root data --work FOLDER --record

Runs `bise-prune CHECKPOINT --data DATA --target-flops SHARE` for each cell, on one thread: once as it is, with a search
that counts widths rounded up to multiples of 4, and once with a search that counts every channel. In both, the widths
that are delivered are chosen by latency in onnxruntime afterwards. Measures accuracies of the dense and the slim
network on the test split, FLOPs left, and latency of both ONNX files in onnxruntime. What is there is not run again;
``--record`` writes benchmarks/records/targets.json from what is there, and ``benchmarks/results.py`` the page of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import zoo
from records import RECORDS, base_record, commits_of

from bise_prune.app.pipeline import run
from bise_prune.config import Budget, SearchConfig
from bise_prune.errors import BiseError
from bise_prune.files import write_json
from bise_prune.mask_search import SearchInterrupted

_NETWORK = ("unbiased_accuracy", "worst_group_accuracy", "flops", "params")
_COUNTED = {"steps of 4": None, "single channels": 1}  # multiples of the search; None for that of the command


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    zoo.add_arguments(parser)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.33], help="shares of the FLOPs")
    parser.add_argument("--record", action="store_true", help="write the record from the results that there are")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    folder = arguments.work / "targets"
    if arguments.record:
        rows = {place.parent.name: json.loads(place.read_text()) for place in sorted(folder.glob("*/figures.json"))}
        protocol = " ".join((__doc__ or "").split("Runs ")[1].split(" What is")[0].split())
        write_json(
            RECORDS / "targets.json",
            {
                **base_record([0], f"Runs {protocol}", "cpu"),
                "cells": rows,
                "medians": {f"{share:g}": _medians(_pairs(rows.values(), share)) for share in _shares(rows.values())},
            },
        )
        return 0
    for cell in zoo.chosen(arguments.cells):
        if not (arguments.work / cell.name / "about.json").exists():
            continue
        for share in arguments.shares:
            for counted, multiple in _COUNTED.items():
                place = folder / f"{cell.name}, {share:g}, {counted}"
                if place.exists():
                    continue
                place.mkdir(parents=True)
                try:
                    figures = _figures(cell, arguments.work, place, share, multiple)
                except BaseException:  # it is to be run again
                    shutil.rmtree(place)
                    raise
                about = {"cell": cell.name, "share": share, "counted": counted}
                figures = {"commit": base_record([0], "", "cpu")["commit"], **about, **figures}
                write_json(place / "figures.json", figures)
                print(f"{place.name}: {json.dumps(figures)}", flush=True)
    return 0


def _figures(cell: zoo.Cell, work: Path, place: Path, share: float, multiple: int | None) -> dict[str, Any]:
    """Figures of one run, or its error and exit code."""
    search = SearchConfig() if multiple is None else SearchConfig(budget=Budget(share=share, multiple=multiple))
    try:
        report = run(zoo.config_of(cell, work, place / "slim", target_flops=share, search=search))
    except SearchInterrupted:  # which is no result
        raise
    except BiseError as error:
        return {"exit_code": error.exit_code, "error": str(error)}
    return {
        "exit_code": 0,
        **{name: {key: report[name][key] for key in _NETWORK} for name in ("dense", "slim")},
        "flops_left": report["slim"]["flops"] / report["dense"]["flops"],
        "latency_ratio": {batch: report["latency_ratio"][batch]["median"] for batch in ("batch_1", "batch_16")},
        "round_to": [trial["multiple"] for trial in report["widths"] if trial["chosen"]],
        "search_seconds": report["timings"]["search"],
    }


# -- the page ------------------------------------------------------------------------------------

PAGE = RECORDS.parents[1] / "docs" / "pages" / "evidence" / "targets.md"
_RECORD_URL = "https://github.com/bise-prune/bise-prune/blob/main/benchmarks/records/targets.json"
_COLUMNS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "FLOPs left, %": lambda found: 100 * found["flops_left"],
    "unbiased, %": lambda found: 100 * found["slim"]["unbiased_accuracy"],
    "worst, %": lambda found: 100 * found["slim"]["worst_group_accuracy"],
    "batch 1": lambda found: found["latency_ratio"]["batch_1"],
    "batch 16": lambda found: found["latency_ratio"]["batch_16"],
}


def markdown(record: dict[str, Any]) -> str:
    """The record as a page."""
    runs = record["cells"].values()
    lines = [
        "# Targets",
        "",
        "This page says what `--target-flops` delivers: FLOPs, accuracy and speed, and what a search gains that counts "
        "widths as they are delivered.",
        "",
        f"**How it was measured.** {record['protocol']} Seed 0; networks: `benchmarks/zoo.py`. Command: "
        f"`{record['command']}`, {commits_of(record)}, [record]({_RECORD_URL}).",
        "",
        "Each cell has the figure with a search in steps of 4 channels, and in brackets that with a search of single "
        "channels; latency in onnxruntime is a share of the dense network's.",
    ]
    for share in _shares(runs):
        pairs = _pairs(runs, share)
        lines += [
            "",
            f"## {share:.0%} of the FLOPs, {len(pairs)} networks",
            "",
            f"[Record]({_RECORD_URL}).",
            "",
            f"| network | dense | {' | '.join(_COLUMNS)} |",
            "| --- |" + " ---: |" * (1 + len(_COLUMNS)),
        ]
        for name, pair in pairs.items():
            dense = 100 * pair[0]["dense"]["unbiased_accuracy"]
            lines.append(
                _row(name, f"{dense:.1f}", [[column(found) for found in pair] for column in _COLUMNS.values()])
            )
        lines.append(_row("median", "", list(record["medians"][f"{share:g}"].values())))
    return "\n".join(lines) + "\n"


def _shares(runs: Collection[Mapping[str, Any]]) -> list[float]:
    """The shares of the FLOPs that there are, the largest first."""
    return sorted({found["share"] for found in runs}, reverse=True)


def _pairs(runs: Collection[Mapping[str, Any]], share: float) -> dict[str, list[Mapping[str, Any]]]:
    """The runs of each cell at a share, in the order of ``_COUNTED``, where both delivered a network."""
    found = {cell.name: _pair(runs, cell.name, share) for cell in zoo.CELLS}
    return {name: pair for name, pair in found.items() if pair is not None}


def _medians(pairs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[float]]:
    """The medians over cells, a pair for each column."""
    return {
        name: [statistics.median(column(pair[i]) for pair in pairs.values()) for i in range(len(_COUNTED))]
        for name, column in _COLUMNS.items()
    }


def _pair(runs: Collection[Mapping[str, Any]], name: str, share: float) -> list[Mapping[str, Any]] | None:
    """The runs of a cell at a share, in the order of ``_COUNTED``; None unless both delivered a network."""
    own = {found["counted"]: found for found in runs if (found["cell"], found["share"]) == (name, share)}
    if set(own) != set(_COUNTED) or any(found["exit_code"] for found in own.values()):
        return None
    return [own[counted] for counted in _COUNTED]


def _row(name: str, dense: str, figures: Sequence[Sequence[float]]) -> str:
    """A row of the table: percentages with one decimal, ratios with two."""
    digits = [1, 1, 1, 2, 2]
    cells = [f"{ours:.{d}f} ({other:.{d}f})" for (ours, other), d in zip(figures, digits, strict=True)]
    return f"| {name} | {dense} | {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
