"""The embedded demo over several seeds: what `bise-prune --demo --seed S` gains on held-out digits.

    python benchmarks/demo.py --seeds 0 1 2 3 4

Measures accuracy of the dense and the slim network on the test scans (each in all ten colours), sparsity, FLOPs, wall
time and peak memory of each whole run, training included. Writes benchmarks/records/demo.json. With --figure FILE the
picture of the README, docs/pages/images/demo.png, is drawn from the run of seed 0 (needs matplotlib).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from records import RECORDS, base_record, peak_memory_bytes, plus_minus, summary
from rich.console import Console

from bise_prune.app.demo import RHO, run_demo
from bise_prune.data import load_data
from bise_prune.files import write_json
from bise_prune.report.tables import side_by_side

FIGURES = ("unbiased_accuracy", "worst_group_accuracy", "accuracy", "params", "flops")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--output", type=Path, default=RECORDS / "demo.json")
    parser.add_argument("--figure", type=Path, help="draw seed 0 into this file")
    arguments = parser.parse_args(argv)
    runs, seconds = [], []
    for seed in arguments.seeds:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            runs.append(run_demo(Path(folder) / "demo", seed))
        seconds.append(time.perf_counter() - start)
        print(f"seed {seed}: {_line(runs[-1])}, {seconds[-1]:.0f} s", file=sys.stderr)
    record = base_record(
        arguments.seeds,
        f"scikit-learn digits, rho {RHO}; masks of the epoch with the highest unbiased accuracy on validation scans; "
        "accuracies on test scans, each in all ten colours",
        "cpu",
    )
    record["n"] = runs[0]["dense"]["n"]
    for model in ("dense", "slim"):
        record[model] = {key: summary([run[model][key] for run in runs]) for key in FIGURES}
    for rule in ("best", "last"):
        record[f"masked_{rule}"] = {key: summary([r["selection"][rule][key] for r in runs]) for key in FIGURES[:3]}
    record["gain"] = summary([run["slim"]["unbiased_accuracy"] - run["dense"]["unbiased_accuracy"] for run in runs])
    record["sparsity"] = summary([run["sparsity"] for run in runs])
    record["flops_left"] = summary([run["slim"]["flops"] / run["dense"]["flops"] for run in runs])
    record["max_abs_error"] = max(run["verification"]["slim_against_masked"]["max_abs_error"] for run in runs)
    record["onnx_max_abs_error"] = max(run["verification"]["onnx_against_slim"]["max_abs_error"] for run in runs)
    record["seconds"] = summary(seconds)
    record["peak_memory_bytes"] = peak_memory_bytes()
    write_json(arguments.output, record)
    _show(record)
    if arguments.figure:
        draw(runs[arguments.seeds.index(0)], arguments.figure)
    print(json.dumps({"gain_median": record["gain"]["median"], "seconds_max": max(seconds)}))
    return 0


def _line(run: dict[str, Any]) -> str:
    dense, slim = run["dense"]["unbiased_accuracy"], run["slim"]["unbiased_accuracy"]
    return f"{dense:.1%} -> {slim:.1%} unbiased, sparsity {run['sparsity']:.1%}"


def _show(record: dict[str, Any]) -> None:
    rows = [
        (name, [plus_minus(record[model][key], 100) for model in ("dense", "slim")])
        for name, key in (("unbiased accuracy, %", "unbiased_accuracy"), ("worst subgroup, %", "worst_group_accuracy"))
    ]
    rows += [
        (name, [plus_minus(record[model][key], 1e-3) for model in ("dense", "slim")])
        for name, key in (("parameters, thousands", "params"), ("kFLOPs", "flops"))
    ]
    title = f"{len(record['seeds'])} seeds, mean and standard deviation; median gain {record['gain']['median']:.1%}"
    Console().print(side_by_side(("dense", "slim"), rows, title))


def draw(run: dict[str, Any], path: Path) -> None:
    """The README's picture: samples, accuracy per subgroup before and after, and channels per layer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    splits = load_data(f"digits,rho={RHO},seed=0")
    aligned = (splits.train.bias[:, 0] == splits.train.target).nonzero().flatten()
    conflicting = (splits.train.bias[:, 0] != splits.train.target).nonzero().flatten()

    def first_of_each(rows: torch.Tensor) -> torch.Tensor:
        chosen = [rows[splits.train.target[rows] == digit][0] for digit in range(10)]
        strip = splits.train.inputs[torch.stack(chosen)]
        return strip.permute(2, 0, 3, 1).reshape(strip.shape[2], -1, 3)

    figure = plt.figure(figsize=(10, 5.4), layout="constrained")
    grid = figure.add_gridspec(3, 3, height_ratios=[1, 1, 5.6])
    for row, (rows, title) in enumerate(((aligned, f"{RHO:.0%} of the training set"), (conflicting, "the other 5%"))):
        axes = figure.add_subplot(grid[row, :])
        axes.imshow(first_of_each(rows))
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_anchor("W")
        axes.axis("off")
    for column, model in enumerate(("dense", "slim")):
        axes = figure.add_subplot(grid[2, column])
        table = torch.full((10, 10), float("nan"))
        for group in run[model]["groups"]:
            digit, colour = (int(part.split("=")[1]) for part in group["name"].split())
            table[digit, colour] = group["accuracy"]
        image = axes.imshow(table, vmin=0, vmax=1, cmap="viridis")
        axes.set_title(f"{model}: {run[model]['unbiased_accuracy']:.1%} unbiased", fontsize=10)
        axes.set_xlabel("background colour of this digit")
        axes.set_ylabel("digit" if column == 0 else "")
        axes.set_xticks(range(10))
        axes.set_yticks(range(10))
    figure.colorbar(image, ax=axes, label="accuracy", fraction=0.046)
    axes = figure.add_subplot(grid[2, 2])
    positions = range(len(run["layers"]))
    for key, colour in (("dense", "#c8ccd4"), ("slim", "#2f6f8f")):
        axes.barh(positions, [layer[key] for layer in run["layers"]], color=colour, label=key)
    for i, layer in enumerate(run["layers"]):
        axes.text(layer["dense"] + 2, i, f"{layer['slim']} of {layer['dense']}", va="center", fontsize=8)
    axes.set_yticks(list(positions), [f"conv {i + 1}" for i in positions])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.35 * max(layer["dense"] for layer in run["layers"]))
    axes.set_title(f"channels; {run['slim']['flops'] / run['dense']['flops']:.0%} of the FLOPs left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
