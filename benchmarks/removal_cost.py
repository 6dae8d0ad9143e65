"""What the removal itself costs, and our engine beside torch-pruning's at equal masks.

    python benchmarks/removal_cost.py

Cost: plan, removal, verification and batch-norm fusion of ResNet-18 to 152 at 224 x 224 on one thread, random masks
that close half of the channels in the paper's placement; the peak of resident memory during it, the dense model
included, as a multiple of the dense model's size. Each network runs in a process of its own. Engines: ResNet-18.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
from records import RECORDS, base_record
from removal import random_masks, scramble

from bise_prune import fuse_batchnorm, measure, prune
from bise_prune.files import write_json
from bise_prune.metrics.cost import measure_latency
from bise_prune.models import build_model

DEPTHS = (18, 34, 50, 101, 152)
_PAGE = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RECORDS / "removal_cost.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one:
        print(json.dumps(_cost(arguments.one)))
        return
    record = base_record(
        [0], "224 x 224, one thread, random masks; memory = peak resident set above an idle one", "cpu"
    )
    record["cost"] = {}
    for depth in DEPTHS:
        command = [sys.executable, __file__, "--one", f"resnet{depth}"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        row = record["cost"][f"resnet{depth}"] = json.loads(done.stdout.splitlines()[-1])
        print(f"resnet{depth}: " + ", ".join(f"{key} {value:.3g}" for key, value in row.items()), flush=True)
    record["engines"] = _engines()
    for row in record["engines"]:
        print(row, flush=True)
    write_json(arguments.output, record)


def _network(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = build_model(name, 1000)
    scramble(model)
    return model.eval(), torch.randn(1, 3, 224, 224)


def _cost(name: str) -> dict[str, float]:
    model, inputs = _network(name)
    masks = random_masks(model, inputs, "paper", 0.5)
    with torch.no_grad():
        model(inputs)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    before = _resident()
    peak, done = [before], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    result = prune(model, masks, inputs, joins="expand", batch_sizes=(1,))
    pruned = time.perf_counter()
    fuse_batchnorm(result.model, inputs)
    fused = time.perf_counter()
    done.set()
    watcher.join()
    start_auto = time.perf_counter()
    prune(model, masks, inputs, batch_sizes=(1,))
    return {
        "seconds": fused - start,
        "prune_seconds": pruned - start,
        "fuse_seconds": fused - pruned,
        "seconds_with_measured_joins": time.perf_counter() - start_auto,
        "model_megabytes": size / 1e6,
        "peak_over_model": (peak[0] - before + size) / size,
        "error": result.verification.max_abs_error,
    }


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


def _engines() -> list[dict[str, Any]]:
    model, inputs = _network("resnet18")
    dense = measure(model, inputs)
    rows = []
    for placement in ("tied", "paper"):
        for share in (0.3, 0.5, 0.7):
            masks = random_masks(model, inputs, placement, share)
            found = {
                "torch-pruning": prune(model, masks, inputs, engine="torch-pruning", batch_sizes=(1,)),
                "exact, intersection": prune(model, masks, inputs, joins="intersection", batch_sizes=(1,)),
                "exact, expand": prune(model, masks, inputs, joins="expand", batch_sizes=(1,)),
            }
            fused = [fuse_batchnorm(m, inputs) for m in (model, *(result.model for result in found.values()))]
            times = measure_latency(fused, inputs, runs=20)
            for (engine, result), latency in zip(found.items(), times[1:], strict=True):
                figures = measure(result.model, inputs)
                rows.append(
                    {
                        "placement": placement,
                        "share_closed": share,
                        "engine": engine,
                        "params_left": figures.params / dense.params,
                        "flops_left": figures.flops / dense.flops,
                        "latency_ms": latency.median_ms,
                        "latency_left": latency.median_ms / times[0].median_ms,
                        "error": result.verification.max_abs_error,
                    }
                )
    return rows


if __name__ == "__main__":
    main()
