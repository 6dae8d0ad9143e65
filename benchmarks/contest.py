"""The contest of searches and criteria on the zoo: what a network is worth at 100, 50, 33 and 20 % of its FLOPs.

    python benchmarks/zoo.py --data-root data --work FOLDER
    python benchmarks/contest.py --data-root data --work FOLDER [--cells NAME ...] [--methods NAME ...]
    python benchmarks/contest.py --work FOLDER --data-root data --record

Every method closes channels of a cell's network; the masked network is then judged as it is, with its batch-norm
statistics re-estimated, and with its last layer refitted, on training or on validation data. Each result is kept in
FOLDER and not computed again, so that the contest can be stopped and resumed, and several processes can share it.
``--record`` writes benchmarks/records/contest.json from what is there, and ``benchmarks/results.py`` the page of it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import zoo
from records import RECORDS, base_record
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from bise_prune import MaskSet, SearchConfig, search
from bise_prune.app.session import Session
from bise_prune.baselines.magnitude import magnitude_masks
from bise_prune.baselines.random_scores import random_masks
from bise_prune.config import Budget, Placement
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.files import write_json
from bise_prune.mask_search.gate_cost import GateCost
from bise_prune.mask_search.network import MaskedNetwork
from bise_prune.mask_search.projection import Projection
from bise_prune.mask_search.refitted import refitted_head
from bise_prune.mask_search.weights import sample_weights
from bise_prune.metrics.accuracy import score

BUDGETS = (0.5, 0.33, 0.2)
PROTOCOL = (
    "One run a cell, method and budget, seed 0; FLOPs are multiply-accumulates of convolutions and linear layers; at "
    "least 5 % of each mask's channels stay. Masks and scores are learned on half of the validation split if each "
    "class has ten bias-conflicting samples there, as by default, otherwise on training samples. gradual: the default "
    "search, its epoch selected on the other half; gradual, head: its trades and its epoch are judged by a refitted "
    "last layer, as --tune head sets it; paper: Algorithm 1 on the training set, its epoch selected on the validation "
    "split, with a temperature cut every epoch and E = 10, m from 0, its budgets by the penalty of weight 20; taylor: "
    "|dL/dgate| under balanced samples, re-estimated in 14 equal steps of FLOPs, the head refitted after each, and "
    "with statistics, these re-estimated too; magnitude, random: the lowest scores closed at once. But for gradual, "
    "head, searches select by unbiased validation accuracy of the network as it is. Accuracies are unbiased ones on "
    "the test split, 'validation' on the half that selects. statistics: batch norms re-estimated on 1,000 training "
    "samples drawn by weight; head: logistic regression, L2 .01 on standardised features, on 2,000 training samples "
    "drawn by weight or on the validation samples, drawn likewise."
)
_FLOOR, _STEPS, _SAMPLE = 0.05, 14, 400


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    zoo.add_arguments(parser)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="NAME",
                        help=f"these alone, in this order: {', '.join(METHODS)}")  # fmt: skip
    parser.add_argument("--budgets", nargs="+", type=float, default=[1.0, *BUDGETS])
    parser.add_argument("--record", action="store_true", help="write the record from the results that there are")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = arguments.work / "contest"
    if arguments.record:
        write_json(RECORDS / "contest.json", _record(results))
        return 0
    for method in arguments.methods:
        for cell in zoo.chosen(arguments.cells):
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


class Arena:
    """A cell of the zoo, and the means to judge masks of its network.

    Args:
        cell: the cell.
        work: folder of the zoo.
        placement: where its gates sit.
    """

    def __init__(self, cell: zoo.Cell, work: Path, placement: Placement = "feed-forward") -> None:
        self.settings = SearchConfig(placement=placement)
        self.session: Session = zoo.session_of(cell, work, work / cell.name / "unused")
        about = json.loads((work / cell.name / "about.json").read_text())
        self.epoch_seconds = about["cpu_seconds"] / about["epochs"]
        dense, example = self.session.dense, self.session.example
        whole = MaskedNetwork(dense, example, self.settings, None)
        self.sites, self.sizes = whole.sites, whole.gates.sizes
        self.projection = Projection(GateCost(whole.trace, dense, whole.sites), self.sizes)
        splits = self.session.splits
        assert splits.val is not None and splits.test is not None
        self.train, self.val, self.test = splits.train, splits.val, splits.test
        halves = self.session.halves
        self.learned, self.selecting = (self.train, self.val) if halves is None else halves

    def cost(self, masks: MaskSet) -> float:
        """Cost of the masked network, as a share of the dense one's."""
        return self.projection.cost(torch.cat([masks.keep[site.name] for site in self.sites]).float())

    def masks_of(self, scores: Tensor, share: float) -> MaskSet:
        """Masks that keep the channels of highest score at a share of the cost."""
        kept = self.projection.kept(scores, share)
        logits = torch.where(kept, 1.0, -1.0).split(self.sizes)
        return MaskSet({site.name: part.clone() for site, part in zip(self.sites, logits, strict=True)})

    def scores_of(self, masks: MaskSet) -> Tensor:
        """Mask logits of all sites, shape (M,)."""
        return torch.cat([masks.logits[site.name] for site in self.sites])

    def drawn(self, data: BiasedDataset, count: int, seed: int = 0) -> Tensor:
        """Numbers of samples, drawn by their weight."""
        return torch.multinomial(
            self._weights(data), count, replacement=True, generator=torch.Generator().manual_seed(seed)
        )

    def _weights(self, data: BiasedDataset) -> Tensor:
        """Weights of the samples of a split, by its own subgroups, float64."""
        session = self.session
        weigh = sample_weights(data.target, data.bias, session.num_classes, session.aligned, "auto", None)
        return weigh(data.target, data.bias).double()

    def masked(self, masks: MaskSet) -> MaskedNetwork:
        """The masked network."""
        return MaskedNetwork(self.session.dense, self.session.example, self.settings, masks)

    @torch.no_grad()
    def outputs(self, network: MaskedNetwork, data: BiasedDataset, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, C) and bottleneck features (N, D) of samples."""
        gates = network.gates.values.split(network.gates.sizes)
        seen = [network.forward(gates, network.placed(data.batch(part))) for part in rows.split(250)]
        logits, features = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return logits, features

    def judged(self, masks: MaskSet) -> dict[str, float]:
        """Unbiased and worst-group accuracies of the masked network, as it is and after refits."""
        return self.scored(self.masked(masks))

    def scored(self, model: MaskedNetwork) -> dict[str, float]:
        """The same of any network with gates."""
        figures: dict[str, float] = {}
        for prefix in ("", "statistics, ") if model.norms else ("",):
            if prefix:
                self.reestimate(model, self.train, self.drawn(self.train, 1_000))
            logits, features = self.outputs(model, self.test, torch.arange(len(self.test)))
            seen = {"as is": logits}
            for name, data, count in (("training", self.train, 2_000), ("validation", self.val, len(self.val))):
                rows = self.drawn(data, count)
                inputs = self.outputs(model, data, rows)[1]
                head = refitted_head(inputs, data.target[rows], self.session.num_classes)
                seen[f"head on {name}"] = linear(features, head[:, :-1], head[:, -1])
            for name, found in seen.items():
                evaluation = self._scored(found, self.test)
                figures[prefix + name] = evaluation.unbiased_accuracy
                figures[f"{prefix}{name}, worst group"] = evaluation.worst_group_accuracy
            selecting = self.outputs(model, self.selecting, torch.arange(len(self.selecting)))[0]
            figures[f"{prefix}validation"] = self._scored(selecting, self.selecting).unbiased_accuracy
            if not prefix:
                figures["classes predicted"] = len(logits.argmax(1).unique())
        return figures

    def _scored(self, logits: Tensor, data: BiasedDataset) -> Any:
        """Accuracies of logits on a split."""
        return score(logits.argmax(1), data.target, data.bias, self.session.aligned)

    def reestimate(self, network: MaskedNetwork, data: BiasedDataset, rows: Tensor) -> None:
        """Re-estimate the statistics of all batch norms on samples."""
        for norm in network.norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
        network.let_norms_follow(True)
        for part in rows.split(100):
            self.outputs(network, data, part)
        network.let_norms_follow(False)


Found = tuple[float, MaskSet, float]  # share of the cost, masks, CPU seconds


class Method:
    """A way to close channels.

    Args:
        run: function from the arena and the shares to the masks of each share.
        shares: shares of the cost at which it takes part; 1 = no budget.
    """

    def __init__(self, run: Callable[[Arena, Sequence[float]], Any], shares: Sequence[float]) -> None:
        self.run, self.shares = run, shares


def _searched(config: Mapping[str, Any]) -> Callable[[Arena, Sequence[float]], Any]:
    """A method that searches with the given settings, with a budget below a share of 1."""

    def found(arena: Arena, shares: Sequence[float]) -> Any:
        session = arena.session
        for share in shares:
            start = time.process_time()
            budget = None if share == 1 else Budget(share=share)
            settings = SearchConfig(**config, budget=budget, placement=arena.settings.placement)
            loaders = (session.search_loader(), session.val_loader())
            if not settings.is_gradual:
                loaders = (session.train_loader(), BatchLoader(arena.val, 256))
            result = search(session.dense, loaders[0], settings, loaders[1], aligned=session.aligned)
            yield share, result.masks, time.process_time() - start

    return found


def _dense(arena: Arena, shares: Sequence[float]) -> Any:
    """All channels open."""
    ones = MaskSet({site.name: torch.ones(site.num_channels) for site in arena.sites})
    for share in shares:
        yield share, ones, 0.0


def _taylor(with_statistics: bool) -> Callable[[Arena, Sequence[float]], Any]:
    """Re-estimated Taylor scores: the budgets are passed on one way down."""

    def found(arena: Arena, shares: Sequence[float]) -> Any:
        start, lowest = time.process_time(), min(BUDGETS)
        # One way for all budgets, whichever of them are asked for, so that a resumed contest has the same figures.
        way = {1 - (1 - lowest) * step / _STEPS for step in range(1, _STEPS)} | set(BUDGETS)
        closed = torch.zeros(sum(arena.sizes), dtype=torch.bool)
        masks = next(iter(_dense(arena, [1.0])))[1]
        for number, share in enumerate(sorted(way, reverse=True)):
            model = arena.masked(masks)
            data = arena.learned
            if with_statistics:
                arena.reestimate(model, data, arena.drawn(data, 500, number))
            rows = arena.drawn(data, 1_000, number)
            features = arena.outputs(model, data, rows)[1]
            head = refitted_head(features, data.target[rows], arena.session.num_classes)
            slopes = _slopes(arena, model, data.subset(arena.drawn(data, _SAMPLE, 100 + number)), head)
            scores = torch.where(closed, -1.0, slopes.abs())
            masks = arena.masks_of(scores, share)
            closed = arena.scores_of(masks) < 0
            if share in shares:
                yield share, masks, time.process_time() - start

    return found


def _slopes(arena: Arena, network: MaskedNetwork, data: BiasedDataset, head: Tensor) -> Tensor:
    """Mean of dL/dgate over samples, under a head, shape (M,)."""
    total = torch.zeros(sum(arena.sizes))
    for part in torch.arange(len(data)).split(50):
        batch, gates = data.batch(part), network.gates.values.requires_grad_()
        _, features = network.forward(gates.split(arena.sizes), network.placed(batch))
        loss = cross_entropy(linear(features, head[:, :-1], head[:, -1]), batch.target, reduction="sum")
        total += torch.autograd.grad(loss, gates)[0]
    return total / len(data)


def _scored_once(scores: Callable[[Arena], MaskSet]) -> Callable[[Arena, Sequence[float]], Any]:
    """A method that closes the channels of lowest score at once."""

    def found(arena: Arena, shares: Sequence[float]) -> Any:
        start = time.process_time()
        ranked = arena.scores_of(scores(arena))
        for share in shares:
            yield share, arena.masks_of(ranked, share), time.process_time() - start

    return found


METHODS = {
    "dense": Method(_dense, [1.0]),
    "gradual": Method(_searched({}), [1.0, *BUDGETS]),
    "gradual, head": Method(_searched({"refit": "head"}), BUDGETS),
    "taylor, statistics": Method(_taylor(True), BUDGETS),
    "taylor": Method(_taylor(False), BUDGETS),
    "paper": Method(_searched({"method": "paper", "anneal_every": 1, "head_epochs": 10}), [1.0, *BUDGETS]),
    "magnitude": Method(_scored_once(lambda a: magnitude_masks(a.session.dense, a.session.example)), BUDGETS),
    "random": Method(_scored_once(lambda a: random_masks(a.session.dense, a.session.example)), BUDGETS),
}


def _record(results: Path) -> dict[str, Any]:
    """The record of all results: cell -> method -> share -> figures."""
    cells: dict[str, Any] = {}
    before = json.loads((RECORDS / "contest.json").read_text())
    for cell in zoo.CELLS:
        for place in sorted((results / cell.name).glob("*.json")):
            method, _, share = place.stem.rpartition("-")
            known = before["cells"].get(cell.name, {}).get(method, {}).get(share, before)  # older results do not say
            figures = {"commit": known["commit"], **json.loads(place.read_text())}
            figures |= {key: round(value, 4) for key, value in figures.items() if key != "commit"}
            cells.setdefault(cell.name, {}).setdefault(method, {})[share] = figures
    summary = {f"{share:g}": _summaries(cells, f"{share:g}") for share in BUDGETS}
    return {**base_record([0], PROTOCOL, "cpu"), "cells": cells, "summary": summary}


# -- the page ------------------------------------------------------------------------------------

PAGE = RECORDS.parents[1] / "docs" / "pages" / "evidence" / "contest.md"
_RECORD_URL = "https://github.com/bise-prune/bise-prune/blob/main/benchmarks/records/contest.json"
_VIEWS = {
    "as is": "as it is",
    "head on training": "head refitted on training data",
    "head on validation": "head refitted on validation data",
}
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
