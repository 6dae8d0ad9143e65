"""What users get: the command without flags on every network of the zoo.

    python benchmarks/zoo.py --data-root data --work FOLDER
    python benchmarks/defaults.py --data-root data --work FOLDER [--cells NAME ...]
    python benchmarks/defaults.py --data-root data --work FOLDER --record
    python benchmarks/defaults.py --data-root data --work FOLDER [--cells NAME ...] --unsupervised [--record]
    python benchmarks/defaults.py --data-root data --work FOLDER [--cells NAME ...] --validation natural [--record]
    python benchmarks/defaults.py --data-root data --work FOLDER [--cells NAME ...] --validation none [--record]

Runs `bise-prune CHECKPOINT --data DATA` for each cell, with no other setting than what names the cell's architecture
and columns, on one thread. Measures accuracies of the dense and the slim network on the test split, FLOPs left, latency
of both ONNX files in onnxruntime, the time of the search beside its estimate and beside the vanilla training, and the
exit code. A cell that is there is not run again; ``--record`` writes benchmarks/records/defaults.json from what is
there, in place of what the record had of these cells, and ``benchmarks/results.py`` the page of it. With
``--unsupervised``, the runs have that option, so that neither the search nor what selects its masks sees a bias label,
and the record is benchmarks/records/defaults_unsupervised.json. With ``--validation``, the balanced validation split
is replaced by one that is biased as the training set is (``natural``), or left out (``none``), and the record is
benchmarks/records/defaults_natural.json or defaults_none.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
import zoo
from records import RECORDS, base_record, commits_of

from bise_prune.app.dry_run import dry_run
from bise_prune.app.pipeline import run
from bise_prune.errors import BiseError
from bise_prune.files import write_json
from bise_prune.mask_search import SearchInterrupted

_NETWORK = ("unbiased_accuracy", "worst_group_accuracy", "accuracy", "flops", "params")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    zoo.add_arguments(parser)
    parser.add_argument("--record", action="store_true", help="write the record from the results that there are")
    parser.add_argument("--unsupervised", action="store_true", help="without bias labels")
    parser.add_argument("--validation", choices=get_args(zoo.Validation), default="balanced", help="validation split")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    situation = "" if arguments.validation == "balanced" else f"_{arguments.validation}"
    name = f"defaults{'_unsupervised' if arguments.unsupervised else ''}{situation}"
    folder, record = arguments.work / name, RECORDS / f"{name}.json"
    if arguments.record:
        found = {cell.name: folder / cell.name / "figures.json" for cell in zoo.CELLS}
        before = json.loads(record.read_text()) if record.exists() else {"cells": {}}
        rows = {name: {"commit": before["commit"], **row} for name, row in before["cells"].items()}
        rows |= {name: json.loads(place.read_text()) for name, place in found.items() if place.exists()}
        protocol = " ".join((__doc__ or "").split("Runs ")[1].split(" A cell")[0].split())
        protocol += " All runs have --unsupervised." if arguments.unsupervised else ""
        protocol += {"balanced": "", "natural": " The validation split is biased as the training set is.",
                     "none": " There is no validation split."}[arguments.validation]  # fmt: skip
        write_json(record, {**base_record([0], f"Runs {protocol}", "cpu"), "cells": rows})
        return 0
    for cell in zoo.chosen(arguments.cells):
        place = folder / cell.name
        if (arguments.work / cell.name / "about.json").exists() and not place.exists():
            place.mkdir(parents=True)
            try:
                commit = base_record([0], "", "cpu")["commit"]
                zoo.prepare_validation(cell, arguments.data_root, arguments.work, arguments.validation)
                settings = {"validation": arguments.validation, "unsupervised": arguments.unsupervised}
                figures = {"commit": commit, **_figures(cell, arguments.work, place, settings)}
            except BaseException:  # the cell is to be run again
                shutil.rmtree(place)
                raise
            write_json(place / "figures.json", figures)
            print(f"{cell.name}: {json.dumps(figures)}", flush=True)
    return 0


def _figures(cell: zoo.Cell, work: Path, place: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of one run, or its error and exit code."""
    about = json.loads((work / cell.name / "about.json").read_text())
    config = zoo.config_of(cell, work, place / "slim", **settings)
    estimate = dry_run(config)["estimate"]
    start = time.perf_counter()
    try:
        report = run(config)
    except SearchInterrupted:  # which is no result
        raise
    except BiseError as error:
        return {"exit_code": error.exit_code, "error": str(error), "run_seconds": time.perf_counter() - start}
    seconds = report["timings"]["search"]
    return {
        "exit_code": 0,
        "verdict": report["verdict"],
        **{name: {key: report[name][key] for key in _NETWORK} for name in ("dense", "slim")},
        "validation": [epoch["validation"]["unbiased_accuracy"] for epoch in report["history"] if epoch["validation"]],
        "epoch": report["selection"]["epoch"],
        "flops_left": report["slim"]["flops"] / report["dense"]["flops"],
        "latency_ratio": report["latency_ratio"],
        "round_to": [trial["multiple"] for trial in report["widths"] if trial["chosen"]],
        "search_seconds": seconds,
        "estimated_seconds": estimate["seconds"],
        "vanilla_epochs": seconds / (about["cpu_seconds"] / about["epochs"]),
        "run_seconds": time.perf_counter() - start,
        "estimated_run_seconds": estimate["run_seconds"],
        "timings": report["timings"],
        "identification": report["identification"],
        "learned_on": report["data"]["learned_on"]["split"],
    }


# -- the page ------------------------------------------------------------------------------------

PAGE = RECORDS.parents[1] / "docs" / "pages" / "evidence" / "defaults.md"
NAMES = ("defaults", "defaults_unsupervised", "defaults_natural", "defaults_none")  # records of the page
_RECORDS_URL = "https://github.com/bise-prune/bise-prune/blob/main/benchmarks/records"
_RECORD_URL = f"{_RECORDS_URL}/defaults.json"
_UNSUPERVISED_URL = f"{_RECORDS_URL}/defaults_unsupervised.json"
_TIMES = {
    "search": "search_seconds",
    "search, estimated": "estimated_seconds",
    "run": "run_seconds",
    "run, estimated": "estimated_run_seconds",
}
_HEADS = ["network", "dense", "worst", "slim", "worst", "verdict", "FLOPs left", "batch 1", "batch 16"]


def markdown(
    record: Mapping[str, Any], unsupervised: Mapping[str, Any], natural: Mapping[str, Any], none: Mapping[str, Any]
) -> str:
    """The record as a page, with those of the runs without bias labels and with other validation splits."""
    cells = record["cells"]
    lines = [
        "# The defaults",
        "",
        "This page says what the command without flags makes of small biased networks of the kinds that users bring.",
        "",
        f"**How it was measured.** {record['protocol']} Seed 0; networks: `benchmarks/zoo.py`. Command: "
        f"`{record['command']}`, {commits_of(record)}, [record]({_RECORD_URL}).",
        "",
        f"**What there is.** {len(cells)} of {len(zoo.CELLS)} networks.",
        "",
        "Unbiased accuracy and that of the worst subgroup on test data in %, the report's verdict on them, FLOPs left "
        "in %, and the slim network's latency in onnxruntime, at batch 1 and 16, as a share of the dense one's.",
        "",
        f"| {' | '.join(_HEADS)} |",
        "| --- |" + " ---: |" * 4 + " --- |" + " ---: |" * 3,
    ]
    for name, found in cells.items():
        if found["exit_code"]:
            lines.append(f"| {name} |  |  |  |  | exit code {found['exit_code']} |  |  |  |")
            continue
        row = [name]
        for network in ("dense", "slim"):
            row += [f"{100 * found[network][key]:.1f}" for key in ("unbiased_accuracy", "worst_group_accuracy")]
        row += [found["verdict"], f"{100 * found['flops_left']:.1f}"]
        row += [f"{found['latency_ratio'][batch]['median']:.2f}" for batch in ("batch_1", "batch_16")]
        lines.append(f"| {' | '.join(row)} |")
    lines += [*_times(cells), *_unsupervised(unsupervised, cells), *_other_splits(natural, none, cells)]
    return "\n".join(lines) + "\n"


def _unsupervised(record: Mapping[str, Any], labelled: Mapping[str, Any]) -> list[str]:
    """A row per cell that was run without bias labels, beside the run with them."""
    lines = [
        "",
        "## Without bias labels",
        "",
        "The same command with `--unsupervised`: pseudo bias labels in training and validation data, from the samples "
        "that a network gets wrong which was trained for a moment ([when](../training.md#no-bias-labels)). Precision: "
        "share of these that are bias-conflicting; agreement: share that both of two such networks get wrong of the "
        "samples that either does. Warned: the command says that the labels may be worth little. The rule for the "
        "moment was set [on these networks](../decisions/2026-11-29-pseudo-labels.md), so others may fare worse. "
        f"Command: `{record['command']}`, {commits_of(record)}, [record]({_UNSUPERVISED_URL}); the runs with labels "
        f"are those [above]({_RECORD_URL}).",
        "",
        "| network | dense | worst | with labels | worst | without | worst | precision | agreement | warned |",
        "| --- |" + " ---: |" * 8 + " --- |",
    ]
    for name, found in record["cells"].items():
        if found["exit_code"]:
            lines.append(f"| {name} |  |  |  |  | exit code {found['exit_code']} |  |  |  |  |")
            continue
        row = [name]
        for figures in (found["dense"], labelled[name]["slim"], found["slim"]):
            row += [f"{100 * figures[key]:.1f}" for key in ("unbiased_accuracy", "worst_group_accuracy")]
        told = found["identification"]
        row += [f"{100 * told[key]:.0f}" for key in ("precision", "agreement")]
        lines.append(f"| {' | '.join([*row, 'yes' if told['warnings'] else 'no'])} |")
    return lines


def _other_splits(natural: Mapping[str, Any], none: Mapping[str, Any], balanced: Mapping[str, Any]) -> list[str]:
    """A row per cell that was run with a biased validation split or without one, beside the run with a balanced one."""
    lines = [
        "",
        "## With a biased validation split, or none",
        "",
        "The same command where the validation split is as biased as the training split, as a random part of it is, "
        "and where there is none. Masks are then mostly learned on the training split ([why]"
        "(../search.md#the-data-that-masks-are-learned-on)), and selected by few bias-conflicting samples, or by "
        f"training samples. Commands: `{natural['command']}`, {commits_of(natural)}, "
        f"[record]({_RECORDS_URL}/defaults_natural.json); `{none['command']}`, {commits_of(none)}, "
        f"[record]({_RECORDS_URL}/defaults_none.json); balanced as [above]({_RECORD_URL}).",
        "",
        "Unbiased accuracy in %, that of the worst subgroup in brackets, and FLOPs left in %.",
        "",
        "| network | dense | balanced | FLOPs | biased | FLOPs | masks learned on | none | FLOPs |",
        "| --- |" + " ---: |" * 5 + " --- |" + " ---: |" * 2,
    ]
    for name, found in natural["cells"].items():
        if found["exit_code"]:
            lines.append(f"| {name} |  |  |  | exit code {found['exit_code']} |  |  |  |  |")
            continue
        row = [name, _accuracies(found["dense"]), *_slim(balanced[name]), *_slim(found)]
        row += [{"train": "training", "val": "validation"}[found["learned_on"]], *_slim(none["cells"].get(name))]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _slim(found: Mapping[str, Any] | None) -> list[str]:
    """Accuracies and FLOPs left of the slim network of a run; empty if there was none."""
    if found is None:
        return ["", ""]
    if found["exit_code"]:
        return [f"exit code {found['exit_code']}", ""]
    return [_accuracies(found["slim"]), f"{100 * found['flops_left']:.1f}"]


def _accuracies(figures: Mapping[str, float]) -> str:
    """Unbiased accuracy and that of the worst subgroup, in %."""
    return f"{100 * figures['unbiased_accuracy']:.1f} ({100 * figures['worst_group_accuracy']:.1f})"


def _times(cells: Mapping[str, Any]) -> list[str]:
    """A row per cell whose run was estimated: seconds of the search and of the run, each beside its estimate."""
    timed = {name: found for name, found in cells.items() if "estimated_run_seconds" in found}
    if not timed:
        return []
    heads = ["network", *_TIMES, "search, in vanilla epochs"]
    lines = [
        "",
        "## Times",
        "",
        "Seconds of the search and of the whole run, beside what the dry run had estimated just before. Epochs are "
        f"of small sets; how the time grows with them is on [the page of costs](cost.md). [Record]({_RECORD_URL}). "
        "Most runs shared two cores with others, and the vanilla training did not, so that epochs are too high.",
        "",
        f"| {' | '.join(heads)} |",
        "| --- |" + " ---: |" * (len(heads) - 1),
    ]
    for name, found in timed.items():
        row = [name, *(f"{found[key]:.0f}" for key in _TIMES.values()), f"{found['vanilla_epochs']:.1f}"]
        lines.append(f"| {' | '.join(row)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
