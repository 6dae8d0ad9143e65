"""Every variant of the method on the embedded digits: one row each, with the paper's figure where it has one.

    python benchmarks/variants.py --seeds 0 1 2 3 4 --few-seeds 0 1 2 --work runs

Protocol: the demo's data (scikit-learn digits, rho .95, 10,000 training images of 16x16; validation and test scans in
all ten colours) and vanilla networks; searches as in the demo (the paper's settings, a temperature cut every 2
epochs) but with 10 epochs of the head; "best" by unbiased validation accuracy unless the row says otherwise;
finetuning is SGD at 1e-3, momentum .9, for 10 epochs, best by validation; FFW ends after 40 epochs. Figures are on
the 4,500 test images: unbiased accuracy, and share of the parameters that removal takes. Rows marked * are beyond the
paper and have all seeds, the others the few. The paper's figures are BiasedMNIST at rho .99, another data set and
network: only differences compare.
Writes benchmarks/records/variants.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from records import RECORDS, base_record, peak_memory_bytes, plus_minus, summary
from rich.console import Console
from torch import nn

from bise_prune import MaskSet, SearchConfig, apply_masks, evaluate, prune, search
from bise_prune.app.demo import train_demo_checkpoint
from bise_prune.baselines.ffw import ffw
from bise_prune.baselines.magnitude import magnitude_masks
from bise_prune.baselines.random_scores import random_masks
from bise_prune.baselines.taylor import taylor_masks
from bise_prune.checkpoint.networks import load_model
from bise_prune.config import FinetuneConfig
from bise_prune.data import BatchLoader, DataSplits, load_data
from bise_prune.data.noise import noisy_bias_labels
from bise_prune.diagnostics.probe import probe_bias
from bise_prune.diagnostics.sweep import threshold_sweep
from bise_prune.files import write_json
from bise_prune.mask_search import SearchResult
from bise_prune.metrics.subgroups import aligned_values
from bise_prune.report.tables import side_by_side
from bise_prune.tuning.finetuning import finetune
from bise_prune.tuning.pseudo_labels import pseudo_bias_labels, untrained_copy, with_pseudo_labels

PAGE = RECORDS.parents[1] / "docs" / "pages" / "evidence" / "variants.md"
RECORD_URL = "https://github.com/bise-prune/bise-prune/blob/main/benchmarks/records/variants.json"
BASE: dict[str, Any] = {"anneal_every": 2, "head_epochs": 10}
TUNING = FinetuneConfig(epochs=10)
# Name -> settings of the search, and what the paper reports (accuracy, sparsity; BiasedMNIST, rho .99).
SEARCHES: dict[str, tuple[dict[str, Any], str]] = {
    "BISE (best)": ({}, "96.1 +- 0.5, S 20.9 +- 4.4"),
    "no reweighting, no information": ({"weighting": "none", "mi_weight": 0.0}, "91.9 +- 0.7, S 5.8 +- 2.6"),
    "reweighting alone": ({"mi_weight": 0.0}, "96.0 +- 0.4, S 18.5 +- 6.5"),
    "information alone": ({"weighting": "none"}, "91.1 +- 0.5, S 18.7 +- 0.5"),
    "gamma 0.1": ({"mi_weight": 0.1}, "Fig. 3a"),
    "gamma 10": ({"mi_weight": 10.0}, "Fig. 3a"),
    "E 1": ({"head_epochs": 1}, "95.9 +- 0.4, S 18.9 +- 7.3"),
    "E 50": ({"head_epochs": 50}, "96.1 +- 0.5, S 20.9 +- 4.4"),
    "kappa 0.1": ({"anneal_factor": 0.1}, "96.0 +- 0.4, S 20.6 +- 3.9"),
    "kappa 0.8": ({"anneal_factor": 0.8}, "96.2 +- 0.6, S 18.9 +- 7.6"),
    "upsilon 1": ({"anneal_every": 1}, "95.9 +- 0.5, S 22.4 +- 6.3"),
    "upsilon 5": ({"anneal_every": 5}, "95.8 +- 0.5, S 18.3 +- 6.2"),
    "tau_min 0.1": ({"min_temperature": 0.1}, "95.9 +- 0.6, S 20.4 +- 5.0"),
    "tau_min 0.01": ({"min_temperature": 0.01}, "96.1 +- 0.5, S 20.9 +- 4.4"),
    "batch norm: statistics": ({"batchnorm": "statistics"}, "97.3 +- 0.1, S 18.3 +- 6.8"),
    "batch norm: statistics, affine": ({"batchnorm": "affine"}, "96.9 +- 0.4, S 32.7 +- 7.7"),
}
BEYOND: dict[str, dict[str, Any]] = {
    "pooled information, 500 samples *": {"mi_pool": 500},
    "m starts at 0.1 *": {"initial_logit": 0.1},
    "m starts at 0.5 *": {"initial_logit": 0.5},
    "stratified batches *": {"stratified": True},
}
GROUPS = ("beyond", "searches", "after", "labels", "criteria", "ffw")
NOISE = (0.1, 0.3, 0.5)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--few-seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs"), help="folder for the vanilla networks")
    parser.add_argument("--groups", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--merge", action="store_true", help="keep the other rows of the record that is there")
    parser.add_argument("--markdown", action="store_true", help="write docs/pages/evidence/variants.md, run nothing")
    parser.add_argument("--output", type=Path, default=RECORDS / "variants.json")
    arguments = parser.parse_args(argv)
    if arguments.markdown:
        PAGE.write_text(markdown(json.loads(arguments.output.read_text())))
        return 0
    torch.set_num_threads(1)
    rows: dict[str, dict[str, list[float]]] = {}
    paper = {name: figure for name, (_, figure) in SEARCHES.items()}
    record = base_record(arguments.seeds, (__doc__ or "").split("Protocol: ")[1].split("Writes")[0].strip(), "cpu")
    for seed in arguments.seeds:
        one = _Seed(seed, arguments.work, rows)
        groups = set(arguments.groups) if seed in arguments.few_seeds else set(arguments.groups) & {"beyond"}
        if groups & {"beyond", "after", "criteria"}:
            one.searches({"BISE (best)": {}})
        if "beyond" in groups:
            one.searches(BEYOND)
        if "searches" in groups:
            one.searches({name: settings for name, (settings, _) in SEARCHES.items() if name != "BISE (best)"})
        if "after" in groups:
            one.after_the_search()
        if "labels" in groups:
            one.other_labels()
        if "criteria" in groups:
            one.other_criteria()
        if "ffw" in groups:
            one.ffw()
    paper |= {
        "BISE (last)": "95.6 (Tab. 1)",
        "BISE (best), finetuned": "98.1 +- 0.1",
        "pseudo bias labels": "95.8 +- 0.5, S 19.9 +- 4.4",
        "FFW on the biased training set": "80.6 +- 6.7 (App. F)",
        "linear head reads the bias, dense": "97.6 +- 1.0 (Tab. M.1)",
        "linear head reads the bias, BISE": "82.1 +- 7.3 (Tab. M.1)",
        "vanilla": "88.9 +- 0.4",
    }
    fixed = {"commit": record["commit"]} if arguments.merge else {}
    if arguments.merge:
        record = json.loads(arguments.output.read_text()) | {"protocol": record["protocol"]}
    record["rows"] = record.get("rows", {}) | {
        name: {"paper": paper.get(name, ""), **fixed, **{key: summary(values) for key, values in figures.items()}}
        for name, figures in rows.items()
    }
    record["peak_memory_bytes"] = peak_memory_bytes()
    write_json(arguments.output, record)
    table = []
    for name, figures in record["rows"].items():
        cells = [plus_minus(figures[key], 100) if key in figures else "" for key in ("accuracy", "sparsity")]
        table.append((name, [*cells, str(figures["accuracy"]["n"]), figures["paper"]]))
    Console().print(side_by_side(("unbiased, %", "sparsity, %", "seeds", "paper"), table, "Variants, embedded digits"))
    print(json.dumps({name: figures["accuracy"]["mean"] for name, figures in record["rows"].items()}))
    return 0


def markdown(record: dict[str, Any]) -> str:
    """The record as a page; rows in the order of the record, the last epoch's masks beside the selected ones."""
    protocol = record["protocol"]
    lines = [
        "# Variants of the search",
        "",
        *textwrap.wrap(
            "This page answers what each setting of the search contributes, one row per variant. It is written by "
            f"`python benchmarks/variants.py --markdown` from [the record]({RECORD_URL}). Figures are the mean ± the "
            "standard deviation over seeds. The symbols are the paper's: gamma is the weight of the mutual "
            "information, E the epochs of the auxiliary head, kappa the factor of a temperature cut, upsilon the "
            "epochs between cuts, tau the temperature and zeta the threshold on the masks.",
            120,
        ),
        "",
        *textwrap.wrap(f"Protocol: {protocol}", 120),
        "",
        'With the seeds of the shorter runs, the row "BISE (best)" has the figures of the row "zeta 0.5".',
        "",
        "| variant | unbiased accuracy, % | sparsity, % | last epoch, unbiased accuracy, % | seeds | paper "
        "(BiasedMNIST) |",
        "| --- | ---: | ---: | ---: | ---: | --- |",
    ]
    rows = record["rows"]
    for name, figures in rows.items():
        if name.endswith(", last epoch"):
            continue
        last = rows.get(f"{name}, last epoch", {})
        cells = [_cell(figures.get("accuracy")), _cell(figures.get("sparsity")), _cell(last.get("accuracy"))]
        seeds = figures["accuracy"]["n"]
        lines.append(f"| {name} | {' | '.join(cells)} | {seeds} | {figures['paper'].replace('+-', '±')} |")
    return "\n".join(lines) + "\n"


def _cell(figures: dict[str, Any] | None) -> str:
    return "" if figures is None else plus_minus(figures, 100).replace("+-", "±")


class _Seed:
    """One vanilla network and what is made of it."""

    def __init__(self, seed: int, work: Path, rows: dict[str, dict[str, list[float]]]) -> None:
        self.seed, self.rows = seed, rows
        work.mkdir(parents=True, exist_ok=True)
        path = work / f"digits-{seed}.pt"
        if not path.exists():
            train_demo_checkpoint(path, seed)
        self.model, about = load_model(path)
        self.splits = load_data(about.data or "")
        assert self.splits.val is not None and self.splits.test is not None
        self.val, self.test = BatchLoader(self.splits.val, 256), BatchLoader(self.splits.test, 500)
        self.aligned = aligned_values(self.splits.train.target, self.splits.train.bias, 10)
        self.example = self.splits.train.example()
        self.note("vanilla", self.model)

    def note(self, name: str, model: nn.Module | None = None, **figures: float) -> None:
        if model is not None:
            figures["accuracy"] = evaluate(model, self.test, self.aligned).unbiased_accuracy
        row = self.rows.setdefault(name, {})
        for key, value in figures.items():
            row.setdefault(key, []).append(value)
        print(f"seed {self.seed}: {name}: {figures}", file=sys.stderr, flush=True)

    def note_masks(self, name: str, masks: MaskSet, **figures: float) -> None:
        try:
            pruned = prune(self.model, masks, self.example)
        except Exception as error:  # a dead network is a result, too
            print(f"seed {self.seed}: {name}: {error}", file=sys.stderr, flush=True)
            return self.note(name, apply_masks(self.model, masks, self.example), **figures)
        flops = pruned.plan.macs[1] / pruned.plan.macs[0]
        return self.note(name, pruned.model, sparsity=pruned.plan.sparsity, flops_left=flops, **figures)

    def run(self, splits: DataSplits, stratified: bool = False, **settings: Any) -> SearchResult:
        loader = BatchLoader(splits.train, 100, shuffle=True, seed=self.seed, stratified=stratified)
        config = SearchConfig(**{**BASE, **settings}, seed=self.seed)
        assert splits.val is not None
        return search(self.model, loader, config, BatchLoader(splits.val, 256))

    def searches(self, variants: dict[str, dict[str, Any]]) -> None:
        for name, settings in variants.items():
            start = time.perf_counter()
            found = self.run(self.splits, **settings)
            figures = {
                "seconds": time.perf_counter() - start,
                "epochs": float(len(found.history)),
                "silent_share": sum(epoch.silent_share for epoch in found.history) / len(found.history),
                "first_epoch_closed": float(found.history[0].closed),
            }
            self.note_masks(name, found.best, **figures)
            self.note_masks(f"{name}, last epoch", found.last)
            if not settings:
                self.base = found

    def after_the_search(self) -> None:
        for rule, label in (
            ("worst-group", "selected by worst-group accuracy"),
            ("accuracy", "selected by accuracy, without bias labels"),
            ("worst-class", "selected by worst-class accuracy, without bias labels"),
        ):
            self.note_masks(label, self.base.picks[rule].masks)
        self.note_masks("BISE (last)", self.base.last)
        pruned = prune(self.model, self.base.best, self.example)
        self.note("BISE (best), finetuned", self.tuned(pruned.model), sparsity=pruned.plan.sparsity)
        self.note("dense, finetuned with the same weights", self.tuned(self.model))
        # The bias is read off unbiased data: validation scans to learn on, test scans to judge by.
        for name, model in (("dense", self.model), ("BISE", pruned.model)):
            probe = probe_bias(model, self.val, self.test, seed=self.seed)
            self.note(f"linear head reads the bias, {name}", accuracy=probe.accuracy[0])
        points = threshold_sweep(self.model, self.base.best, self.test, self.aligned, self.example)
        for point in points:
            figures = {} if point.sparsity is None else {"sparsity": point.sparsity}
            self.note(f"zeta {point.zeta:g}", accuracy=point.evaluation.unbiased_accuracy, **figures)

    def tuned(self, model: nn.Module) -> nn.Module:
        loader = BatchLoader(self.splits.train, 100, shuffle=True, seed=self.seed)
        return finetune(model, loader, TUNING, self.val).model

    def other_labels(self) -> None:
        splits = self.splits
        assert splits.val is not None
        pseudo = pseudo_bias_labels(untrained_copy(self.model, self.seed), splits.train, splits.val, seed=self.seed)
        own = DataSplits(
            with_pseudo_labels(splits.train, pseudo.labels[0]), with_pseudo_labels(splits.val, pseudo.labels[1])
        )
        figures = {"precision": pseudo.precision or 0.0, "recall": pseudo.recall or 0.0}
        self.note_masks("pseudo bias labels", self.run(own).best, **figures)
        for share in NOISE:
            generator = torch.Generator().manual_seed(self.seed)
            noisy = splits.train.with_bias(noisy_bias_labels(splits.train.bias, share, generator))
            found = self.run(DataSplits(noisy, splits.val))
            self.note_masks(f"{share:.0%} of the bias labels wrong", found.best)

    def other_criteria(self) -> None:
        base = prune(self.model, self.base.best, self.example)
        target = base.plan.sparsity
        criteria: dict[str, Callable[[], MaskSet]] = {
            "random": lambda: random_masks(self.model, self.example, self.seed),
            "magnitude": lambda: magnitude_masks(self.model, self.example),
            "Taylor": lambda: taylor_masks(self.model, BatchLoader(self.splits.train, 256)),
        }
        for name, masks in criteria.items():
            pruned = prune(self.model, masks(), self.example, target, layer_floor=0.0)
            self.note(f"{name} channels at BISE's sparsity", pruned.model, sparsity=pruned.plan.sparsity)
            self.note(f"{name} channels, finetuned", self.tuned(pruned.model), sparsity=pruned.plan.sparsity)

    def ffw(self) -> None:
        loader = BatchLoader(self.splits.train, 100, shuffle=True, seed=self.seed)
        found = ffw(self.model, loader, max_epochs=40, seed=self.seed)
        self.note("FFW on the biased training set", found.model, sparsity=found.sparsity)


if __name__ == "__main__":
    sys.exit(main())
