"""The contest of searches and criteria on the zoo: what a network is worth at 100, 50, 33 and 20 % of its FLOPs.

    python benchmarks/zoo.py --data-root data --work FOLDER
    python benchmarks/contest.py --data-root data --work FOLDER [--cells NAME ...] [--methods NAME ...] [--seeds 1 2]
    python benchmarks/contest.py --work FOLDER --data-root data --record

Every method closes channels of a cell's network; the masked network is then judged as it is, with its batch-norm
statistics re-estimated, and with its last layer refitted, on training or on validation data. Each result is kept in
FOLDER and not computed again, so that the contest can be stopped and resumed, and several processes can share it.
``--record`` writes benchmarks/records/contest.json from what is there, in place of what the record had of these cells,
methods and budgets, and ``benchmarks/results.py`` the page of it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import zoo
from contest_methods import BUDGETS, METHODS, Arena
from records import RECORDS, base_record

from bise_prune.files import write_json

PROTOCOL = (
    "One run a cell, method and budget, seed 0; FLOPs are multiply-accumulates of convolutions and linear layers; at "
    "least 5 % of each mask's channels stay. Masks and scores are learned on half of the validation split. gradual: "
    "the default search, its epoch selected on the other half; gradual, head: its trades and its epoch are judged by "
    "a refitted last layer, as --tune head sets it; paper: Algorithm 1 on the training set, its epoch selected on the "
    "validation split, with a temperature cut every epoch and E = 10, m from 0, its budgets by the penalty of weight "
    "20; taylor: |dL/dgate| under balanced samples, re-estimated in 14 equal steps of FLOPs, the head refitted after "
    "each, and with statistics, these re-estimated too; magnitude, random: the lowest scores closed at once. But for "
    "gradual, head, searches select by unbiased validation accuracy of the network as it is. Accuracies are unbiased "
    "ones on the test split, 'validation' on the half that selects. statistics: batch norms re-estimated on 1,000 "
    "training samples drawn by weight; head: logistic regression, L2 .01 on standardised features, on 2,000 training "
    "samples drawn by weight or on the validation samples, drawn likewise."
)
_SEEDS = 3  # that a record takes, if there are results of them


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    zoo.add_arguments(parser)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME",
                        help=f"these alone, in this order: {', '.join(METHODS)}")  # fmt: skip
    parser.add_argument("--budgets", nargs="+", type=float, default=[1.0, *BUDGETS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of the networks and their data")
    parser.add_argument("--record", action="store_true", help="write the record from the results that there are")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = arguments.work / "contest"
    if arguments.record:
        write_json(RECORDS / "contest.json", _record(results))
        return 0
    cells = [zoo.repeated(cell, seed) for seed in arguments.seeds for cell in zoo.chosen(arguments.cells)]
    for cell in cells:
        zoo.prepare(cell, arguments.data_root, arguments.work)
    for method in arguments.methods:
        for cell in cells:
            _contend(cell, method, arguments.budgets, arguments.work, results)
    return 0


def _contend(cell: zoo.Cell, method: str, budgets: Sequence[float], work: Path, results: Path) -> None:
    """Run a method on a cell at the budgets whose results are not there yet."""
    places = {share: results / cell.name / f"{method}-{share:g}.json" for share in budgets}
    todo = [share for share, place in places.items() if share in METHODS[method].shares and not place.exists()]
    claim = results / cell.name / f"{method}.claim"
    claim.parent.mkdir(parents=True, exist_ok=True)
    if not todo or not (work / cell.name / "about.json").exists():
        return
    try:
        claim.touch(exist_ok=False)
    except FileExistsError:
        return
    try:
        arena = Arena(cell, work)
        for share, masks, seconds in METHODS[method].run(arena, todo):
            figures = arena.judged(masks)
            figures |= {"cost": arena.cost(masks), "epochs": seconds / arena.epoch_seconds}
            figures |= {"commit": base_record([0], "", "cpu")["commit"]}
            write_json(places[share], figures)
            print(f"{cell.name} {method} {share:g}: {json.dumps(figures)}", flush=True)
    finally:
        claim.unlink()


def _record(results: Path) -> dict[str, Any]:
    """What there is: cell -> method -> share -> figures; ``repeats`` has those of other seeds."""
    before = json.loads((RECORDS / "contest.json").read_text())
    cells, repeats = before["cells"], before["repeats"]
    for seed, cell in itertools.product(range(_SEEDS), zoo.CELLS):
        name = zoo.repeated(cell, seed).name
        for place in sorted((results / name).glob("*.json")):
            method, _, share = place.stem.rpartition("-")
            shares = (repeats if seed else cells).setdefault(name, {}).setdefault(method, {})
            known = shares.get(share, before)  # older results do not say
            figures = {"commit": known["commit"], **json.loads(place.read_text())}
            shares[share] = figures | {key: round(value, 4) for key, value in figures.items() if key != "commit"}
    summary = {f"{share:g}": _summaries(cells, f"{share:g}") for share in BUDGETS}
    return {**base_record([0], PROTOCOL, "cpu"), "cells": cells, "repeats": repeats, "summary": summary}


# -- the page ------------------------------------------------------------------------------------

PAGE = RECORDS.parents[1] / "docs" / "pages" / "evidence" / "contest.md"
_RECORD_URL = "https://github.com/bise-prune/bise-prune/blob/main/benchmarks/records/contest.json"
_VIEWS = {
    "as is": "as it is",
    "head on training": "head refitted on training data",
    "head on validation": "head refitted on validation data",
}
_CLOSEST, _CLOSE_IN = ("gradual, head", "taylor, statistics"), "head on validation"
# Our searches, and the views that they are judged in.
_SEARCHES = {"gradual": tuple(_VIEWS), "gradual, head": tuple(_VIEWS)[1:]}


def markdown(record: dict[str, Any]) -> str:
    """The record as a page."""
    cells = record["cells"]
    lines = [
        "# The contest",
        "",
        "This page compares searches and criteria on a zoo of small biased networks of the kinds that users bring: "
        "which channels to close at a share of the FLOPs, judged as the network is and after cheap refits.",
        "",
        f"**How it was measured.** {record['protocol']} Networks: `benchmarks/zoo.py`. Command: `{record['command']}`, "
        f"{_commits(cells)}, [record]({_RECORD_URL}).",
        "",
        f"**What there is.** {len(cells)} of {len(zoo.CELLS)} cells; a figure that is missing was not computed.",
        "",
        "## Without a target",
        "",
        "The search that was the default of version 0.1.0; what the present one makes of these networks is on [the "
        "page of the defaults](defaults.md). Unbiased accuracy and that of the worst subgroup on test data in %, and "
        "FLOPs left in %.",
        "",
        *_free_table(cells),
        "",
        f"[Record]({_RECORD_URL}).",
    ]
    for share, summaries in record["summary"].items():
        if any(summaries.values()):
            lines += ["", f"## At {float(share):.0%} of the FLOPs", ""]
            lines.append(
                "Medians over the cells that have both methods, in how many of them the search is ahead, and by how "
                "much in the cell where it does worst."
            )
            for name, summary in summaries.items():
                lines += ["", *_summary_table(name, summary)] if summary else []
            lines += ["", "The network as it is / with its head refitted on validation data, by cell:", ""]
            lines += [*_table(cells, share), "", f"[Record]({_RECORD_URL})."]
            lines += _close(cells, record["repeats"], share)
    return "\n".join(lines) + "\n"


def _commits(cells: Mapping[str, Any]) -> str:
    """At which commits which methods ran, the commonest commit last."""
    found: dict[str, Counter[str]] = {}
    for methods in cells.values():
        for method, shares in methods.items():
            for share, figures in shares.items():
                found.setdefault(figures["commit"], Counter())[f"{method} at {float(share):.0%}"] += 1
    *few, (most, _) = sorted(found.items(), key=lambda pair: pair[1].total())
    told = [
        f"at commit {commit} " + ", ".join(f"{name} ({count} cells)" for name, count in sorted(counts.items()))
        for commit, counts in few
    ]
    return "; ".join([*told, f"all else at commit {most}"])


def _percent(value: float | None) -> str:
    """A share in %, or a dash."""
    return "–" if value is None else f"{100 * value:.1f}"


def _free_table(cells: Mapping[str, Any]) -> list[str]:
    """A row per cell: the dense network, and what the paper's search without a budget makes of it."""
    lines = [
        "| network | dense | worst | paper | worst | FLOPs left |",
        "| --- |" + " ---: |" * 5,
    ]
    for cell, methods in cells.items():
        if "1" not in methods.get("paper", {}):
            continue
        row = [cell]
        for method in ("dense", "paper"):
            found = methods.get(method, {}).get("1", {})
            row += [_percent(found.get("as is")), _percent(found.get("as is, worst group"))]
            row += [_percent(found.get("cost"))] if method != "dense" else []
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _summaries(cells: Mapping[str, Any], share: str) -> dict[str, Any]:
    """For each of our searches and each other method: their medians over the cells that have both, and the wins."""
    return {name: _summary(cells, share, name, views) for name, views in _SEARCHES.items()}


def _summary(cells: Mapping[str, Any], share: str, name: str, views: Sequence[str]) -> dict[str, Any]:
    """For each other method: medians of it and of one of our searches over cells that have both, and the wins."""
    summary: dict[str, Any] = {}
    for method in METHODS:
        place = "1" if method == "dense" else share
        both = [(m[name][share], m[method][place]) for m in cells.values()
                if share in m.get(name, {}) and place in m.get(method, {})]  # fmt: skip
        if method in _SEARCHES or not both:
            continue
        summary[method] = {"cells": len(both)}
        for view in views:
            pairs = [(ours[view], theirs[view]) for ours, theirs in both]
            medians = (statistics.median(values) for values in zip(*pairs, strict=True))
            ours, theirs = (round(value, 4) for value in medians)
            summary[method][view] = {
                "search": ours,
                "method": theirs,
                "ahead": sum(ours > theirs for ours, theirs in pairs),
                "worst": round(min(ours - theirs for ours, theirs in pairs), 4),
            }
    return summary


def _summary_table(name: str, summary: Mapping[str, Any]) -> list[str]:
    """A row per method: its median, the search's in the same cells, where that is ahead, and the cell it does worst."""
    views = _SEARCHES[name]
    heads = " | ".join(f"{_VIEWS[view]} | {name} | ahead in | least" for view in views)
    lines = [f"| median, % | cells | {heads} |", "| --- | ---: |" + " ---: |" * 4 * len(views)]
    for method, found in summary.items():
        row = [method, str(found["cells"])]
        for figures in (found[view] for view in views):
            row += [_percent(figures["method"]), _percent(figures["search"]), str(figures["ahead"])]
            row += [f"{100 * figures['worst']:+.1f}"]
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _close(cells: Mapping[str, Any], repeats: Mapping[str, Any], share: str) -> list[str]:
    """A row per cell that has more seeds: both of the best methods with the head refitted, and their difference."""
    rows = []
    for name, first in cells.items():
        runs = [first, *(methods for other, methods in repeats.items() if other.partition("~")[0] == name)]
        pairs = [tuple(run.get(method, {}).get(share, {}).get(_CLOSE_IN) for method in _CLOSEST) for run in runs]
        both = [pair for pair in pairs if None not in pair]
        if len(both) > 1:
            columns = [*zip(*both, strict=True), [ours - theirs for ours, theirs in both]]
            figures = [f"{100 * statistics.fmean(c):.1f} ± {100 * statistics.stdev(c):.1f}" for c in columns]
            rows.append(f"| {' | '.join([name, str(len(both)), *figures])} |")
    if not rows:
        return []
    heads = ["network", "seeds", *_CLOSEST, "difference"]
    about = "Cells with more seeds, the head refitted on validation data, mean ± sample standard deviation in %:"
    return ["", about, "", f"| {' | '.join(heads)} |", "| --- |" + " ---: |" * (len(heads) - 1), *rows]


def _table(cells: Mapping[str, Any], share: str) -> list[str]:
    """A row per cell: each method as it is, and after the refit of its head."""
    methods = [name for name in METHODS if name != "dense" and any(share in m.get(name, {}) for m in cells.values())]
    lines = [f"| network | dense | {' | '.join(methods)} |", "| --- |" + " ---: |" * (len(methods) + 1)]
    for cell, found in cells.items():
        if share not in found.get("gradual", {}):
            continue
        row = [cell]
        for figures in (found.get("dense", {}).get("1"), *(found.get(method, {}).get(share) for method in methods)):
            both = [_percent(figures.get(view)) for view in ("as is", "head on validation")] if figures else ["–"]
            row.append(" / ".join(both))
        lines.append(f"| {' | '.join(row)} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
