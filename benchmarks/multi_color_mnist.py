"""Multi-Color MNIST at the paper's full size (Table 7): vanilla MLP, BISE (last), sparsity and FLOPs.

    python benchmarks/multi_color_mnist.py --data-root FOLDER_WITH_MNIST --seeds 0 1 2

Protocol: 60,000 training and 10,000 test images, two biases at rho .99 and .95 (test .1 and .1); MLP
2352-100-100-100-10; vanilla: Adam 1e-3, weight decay 1e-4, 100 epochs, batch 256; BISE with the paper's settings, two
heads, Eq. (B.9) at the nominal rho. There is no validation set, so the masks of the last epoch are reported, and
"unbiased" is the mean of the four alignment groups. Minutes per seed on one thread; run it with OMP_NUM_THREADS=1.
Writes benchmarks/records/multi_color_mnist.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from records import RECORDS, base_record, peak_memory_bytes, plus_minus, summary
from rich.console import Console

from bise_prune import SearchConfig, evaluate, measure, prune, search
from bise_prune.data import BatchLoader
from bise_prune.data.multi_color_mnist import TRAIN_RHO, load_multi_color_mnist
from bise_prune.evaluation import Evaluation
from bise_prune.files import write_json
from bise_prune.models import build_model
from bise_prune.report import side_by_side
from bise_prune.subgroups import aligned_values
from bise_prune.training import train_vanilla

GROUPS = ("aligned, aligned", "aligned, conflicting", "conflicting, aligned", "conflicting, conflicting")
# Table 7: mean and standard deviation over three seeds, in percent; S in percent, FLOPs in thousands.
PAPER = {
    "vanilla": {"groups": [(100.0, 0.0), (97.2, 0.8), (30.3, 1.4), (5.2, 0.3)], "unbiased": (58.2, 0.6)},
    "bise_last": {"groups": [(100.0, 0.0), (88.8, 2.2), (44.5, 2.3), (7.7, 0.4)], "unbiased": (60.3, 1.0)},
    "sparsity": (17.1, 5.3),
    "kflops": (212.3, 13.5),
}
BATCH = 256


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with MNIST's idx files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=100, help="vanilla epochs (the paper's 100)")
    parser.add_argument("--anneal-every", type=int, default=10, help="the paper's 10")
    parser.add_argument("--output", type=Path, default=RECORDS / "multi_color_mnist.json")
    arguments = parser.parse_args(argv)
    config = SearchConfig(placement="paper", weighting="alignment", rho=TRAIN_RHO, anneal_every=arguments.anneal_every)
    runs = [one_seed(arguments, config, seed) for seed in arguments.seeds]
    record = base_record(arguments.seeds, (__doc__ or "").split("Protocol: ")[1].split("Minutes")[0].strip(), "cpu")
    record["config"] = dataclasses.asdict(config)
    record["n_test"] = runs[0]["n_test"]
    for system in ("vanilla", "bise_last"):
        record[system] = {key: summary([run[system][key] for run in runs]) for key in ("unbiased", *GROUPS)}
    for key in ("sparsity", "kflops", "kept_neurons", "seconds_vanilla", "seconds_search", "last_flip_epoch"):
        record[key] = summary([run[key] for run in runs])
    record["silent_share"] = summary([run["silent_share"] for run in runs])
    record["max_abs_error"] = max(run["max_abs_error"] for run in runs)
    record["peak_memory_bytes"] = peak_memory_bytes()
    record["paper"] = PAPER
    record["deviation_in_paper_std"] = {
        "vanilla_unbiased": _deviation(record["vanilla"]["unbiased"], PAPER["vanilla"]["unbiased"], 100),
        "bise_last_unbiased": _deviation(record["bise_last"]["unbiased"], PAPER["bise_last"]["unbiased"], 100),
        "sparsity": _deviation(record["sparsity"], PAPER["sparsity"], 100),
        "kflops": _deviation(record["kflops"], PAPER["kflops"], 1),
    }
    write_json(arguments.output, record)
    _show(record)
    print(json.dumps(record["deviation_in_paper_std"]))
    return 0


def one_seed(arguments: argparse.Namespace, config: SearchConfig, seed: int) -> dict[str, Any]:
    splits = load_multi_color_mnist(arguments.data_root, seed)
    assert splits.test is not None
    aligned = aligned_values(splits.train.target, splits.train.bias, 10)
    test = BatchLoader(splits.test, 1000)
    torch.manual_seed(seed)
    model = build_model("mlp", 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    start = time.perf_counter()
    train_vanilla(model, BatchLoader(splits.train, BATCH, shuffle=True, seed=seed), optimizer, epochs=arguments.epochs)
    trained = time.perf_counter()
    vanilla = evaluate(model, test, aligned)
    print(f"seed {seed}: vanilla {vanilla.unbiased_accuracy:.1%}, {trained - start:.0f} s", file=sys.stderr, flush=True)
    found = search(
        model,
        BatchLoader(splits.train, BATCH, shuffle=True, seed=seed),
        dataclasses.replace(config, seed=seed),
    )
    searched = time.perf_counter()
    example = splits.train.batch(torch.arange(2)).input
    pruned = prune(model, found.last, example)
    slim = evaluate(pruned.model, test, aligned)
    print(
        f"seed {seed}: BISE {slim.unbiased_accuracy:.1%}, S {pruned.plan.sparsity:.1%}, {searched - trained:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return {
        "n_test": vanilla.n,
        "vanilla": _figures(vanilla),
        "bise_last": _figures(slim),
        "sparsity": pruned.plan.sparsity,
        "kflops": measure(pruned.model, example).flops / 1e3,
        "kept_neurons": found.last.num_channels - found.last.num_closed,
        "seconds_vanilla": trained - start,
        "seconds_search": searched - trained,
        "last_flip_epoch": max((record.epoch for record in found.history if record.mask_flips), default=0),
        "silent_share": sum(record.silent_share for record in found.history) / len(found.history),
        "max_abs_error": pruned.verification.max_abs_error,
    }


def _figures(evaluation: Evaluation) -> dict[str, float]:
    figures = {group.name: group.accuracy for group in evaluation.subgroups}
    return {"unbiased": evaluation.unbiased_accuracy, **figures}


def _deviation(ours: dict[str, Any], paper: tuple[float, float], scale: float) -> float:
    return (ours["mean"] * scale - paper[0]) / paper[1]


def _show(record: dict[str, Any]) -> None:
    rows = []
    for i, name in enumerate((*GROUPS, "unbiased")):
        cells = []
        for system in ("vanilla", "bise_last"):
            paper = PAPER[system]["unbiased"] if name == "unbiased" else PAPER[system]["groups"][i]
            cells += [f"{paper[0]:.1f} +- {paper[1]:.1f}", plus_minus(record[system][name], 100)]
        rows.append((name, cells))
    for name, key, scale in (("sparsity, %", "sparsity", 100), ("kFLOPs", "kflops", 1)):
        rows.append((name, ["", "", "{:.1f} +- {:.1f}".format(*PAPER[key]), plus_minus(record[key], scale)]))
    names = ("vanilla, paper", "vanilla, ours", "BISE (last), paper", "BISE (last), ours")
    title = f"Multi-Color MNIST, accuracy in % on {record['n_test']} test images, {len(record['seeds'])} seeds"
    Console().print(side_by_side(names, rows, title))


if __name__ == "__main__":
    sys.exit(main())
