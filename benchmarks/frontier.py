"""Accuracy against FLOPs: a search that meets the budget, and rankings cut at the same FLOPs.

    python benchmarks/frontier.py --seeds 0 1 2 3 4 --work runs

Protocol: the demo's data (scikit-learn digits, rho .95) and vanilla networks; searches as in the demo with 10 epochs
of the head (a temperature cut every 2 epochs); "best" of the epochs within a point of the budget, by unbiased
validation accuracy. Budgets are FLOPs left. "budget" = a search for each, under it from the first epoch; "descent" =
the same with a budget that comes down over half of the schedule; "warm" = the same as "budget" from the masks of the
budget before; "m" = one free search, channels ranked by m; magnitude, Taylor (of the reweighted cross-entropy) and
random = the same ranking by another score. All are met as nearly as whole channels allow, within 1.2 points. As is,
and after the same finetuning (SGD at 1e-3, momentum .9, 10 epochs, the search's sample weights, best by validation).
Unbiased accuracy on the 4,500 test images.
Writes benchmarks/records/frontier.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from records import RECORDS, base_record, peak_memory_bytes, plus_minus, summary
from rich.console import Console
from torch import nn

from bise_prune import MaskSet, SearchConfig, evaluate, prune, search
from bise_prune.app.demo import train_demo_checkpoint
from bise_prune.baselines.magnitude import magnitude_masks
from bise_prune.baselines.random_scores import random_masks
from bise_prune.baselines.taylor import taylor_masks
from bise_prune.checkpoint.networks import load_model
from bise_prune.config import Budget, FinetuneConfig
from bise_prune.data import BatchLoader, load_data
from bise_prune.files import write_json
from bise_prune.mask_search.weights import sample_weights
from bise_prune.metrics.subgroups import aligned_values
from bise_prune.report.tables import side_by_side
from bise_prune.tuning.finetuning import finetune

BASE: dict[str, Any] = {"anneal_every": 2, "head_epochs": 10}
BUDGETS = (0.5, 0.33, 0.2)
METHODS = ("budget", "descent", "warm", "m", "magnitude", "Taylor", "random")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--work", type=Path, default=Path("runs"), help="folder for the vanilla networks")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="the record's other rows stay as they are"
    )
    parser.add_argument("--output", type=Path, default=RECORDS / "frontier.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    runs = [one_seed(seed, arguments.work, arguments.methods) for seed in arguments.seeds]
    record = base_record(arguments.seeds, (__doc__ or "").split("Protocol: ")[1].split("Writes")[0].strip(), "cpu")
    rows: dict[str, Any] = {
        name: {key: summary([run[name][key] for run in runs]) for key in runs[0][name]} for name in runs[0]
    }
    if len(arguments.methods) < len(METHODS):
        commit = {"commit": record["commit"]}
        record = json.loads(arguments.output.read_text()) | {"protocol": record["protocol"]}
        rows = record["rows"] | {name: commit | figures for name, figures in rows.items() if "," in name}
    record["rows"] = rows
    record["peak_memory_bytes"] = peak_memory_bytes()
    write_json(arguments.output, record)
    table = []
    for name, figures in record["rows"].items():
        keys = ("flops_left", "as_is", "finetuned")
        table.append((name, [plus_minus(figures[key], 100) if key in figures else "" for key in keys]))
    title = f"Unbiased accuracy at equal FLOPs, {len(runs)} seeds"
    Console().print(side_by_side(("FLOPs left, %", "as is, %", "finetuned, %"), table, title))
    print(json.dumps({name: figures["as_is"]["mean"] for name, figures in record["rows"].items()}))
    return 0


def one_seed(seed: int, work: Path, methods: Sequence[str]) -> dict[str, dict[str, float]]:
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"digits-{seed}.pt"
    if not path.exists():
        train_demo_checkpoint(path, seed)
    model, about = load_model(path)
    splits = load_data(about.data or "")
    train = splits.train
    assert splits.val is not None and splits.test is not None
    val, test = BatchLoader(splits.val, 256), BatchLoader(splits.test, 500)
    aligned = aligned_values(train.target, train.bias, 10)
    example = train.example()
    rows: dict[str, dict[str, float]] = {}

    def loader() -> BatchLoader:
        return BatchLoader(train, 100, shuffle=True, seed=seed)

    def note(name: str, network: nn.Module, flops_left: float) -> None:
        tuned = finetune(network, loader(), FinetuneConfig(epochs=10), val).model
        rows[name] = {
            "flops_left": flops_left,
            "as_is": evaluate(network, test, aligned).unbiased_accuracy,
            "finetuned": evaluate(tuned, test, aligned).unbiased_accuracy,
        }
        print(f"seed {seed}: {name}: {rows[name]}", file=sys.stderr, flush=True)

    def searched(budget: float | None, start: MaskSet | None = None, descent: float = 0.0) -> MaskSet:
        limit = None if budget is None else Budget(share=budget, descent=descent)
        return search(model, loader(), SearchConfig(**BASE, seed=seed, budget=limit), val, start=start).masks

    note("dense", model, 1.0)
    free = searched(None)
    result = prune(model, free, example)
    note("free search", result.model, result.plan.macs[1] / result.plan.macs[0])
    weights = sample_weights(train.target, train.bias, 10, aligned, "auto", None)
    scores = {
        "m": free,
        "magnitude": magnitude_masks(model, example),
        "Taylor": taylor_masks(model, loader(), weights=weights),
        "random": random_masks(model, example, seed),
    }
    start = free
    for budget in BUDGETS:
        for method in methods:
            if method == "warm":
                masks = start = searched(budget, start)
            elif method in scores:
                masks = scores[method]
            else:
                masks = searched(budget, descent=0.5 if method == "descent" else 0.0)
            result = None if method in scores else prune(model, masks, example)
            if result is None or abs(result.plan.macs[1] / result.plan.macs[0] - budget) > 0.01:
                result = prune(model, masks, example, target_flops=budget, layer_floor=0.0)
            note(f"{method}, {budget:g}", result.model, result.plan.macs[1] / result.plan.macs[0])
    return rows


if __name__ == "__main__":
    sys.exit(main())
