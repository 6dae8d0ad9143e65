"""How much of the FLOPs saved is saved in time: dense and slim networks in onnxruntime, timed by turns.

    python benchmarks/speedup.py

ResNet-18 at 224 x 224 and the SimpleConvNet at 28 x 28, random masks closing .3, .5 and .7 of the channels, tied and in
the paper's placement with both lowerings, kept channels rounded up to multiples of 1, 8 and 16 (best closed channels
opened again). Reported: (dense ms / slim ms) / (dense FLOPs / slim FLOPs); 1 = all FLOPs saved are saved in time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from records import RECORDS, base_record
from removal import random_masks, scramble
from torch import nn

from bise_prune import export_onnx, fuse_batchnorm, measure, prune
from bise_prune.files import write_json
from bise_prune.metrics.cost import time_by_turns
from bise_prune.models import build_model

NETWORKS = {"resnet18": (10, (3, 224, 224)), "simple_convnet": (10, (3, 28, 28))}
CASES = (("tied", "auto"), ("paper", "intersection"), ("paper", "expand"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.3, 0.5, 0.7])
    parser.add_argument("--multiples", nargs="+", type=int, default=[1, 8, 16])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--output", type=Path, default=RECORDS / "speedup.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = base_record([0], "onnxruntime, CPU, one thread, batch norms fused, runs by turns; median ratios", "cpu")
    record["rows"] = []
    for name in arguments.networks:
        for share in arguments.shares:
            rows = _rows(name, share, arguments)
            record["rows"] += rows
            write_json(arguments.output, record)
            for row in rows:
                speed = "  ".join(
                    f"batch {size}: x{t['speedup']:.2f}, share {t['realised']:.2f}" for size, t in row["times"].items()
                )
                print(
                    f"{name:15s} {share:g} {row['placement']:5s} {row['joins']:12s} to {row['round_to']:2d} "
                    f"FLOPs {row['flops_left']:.3f}  {speed}",
                    flush=True,
                )


def _rows(name: str, share: float, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    classes, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build_model(name, classes)
    scramble(model)
    model.eval()
    example = torch.randn(2, *shape)
    dense_flops = measure(model, example).flops
    rows: list[dict[str, Any]] = []
    slims: list[nn.Module] = []
    for placement, joins in CASES if name == "resnet18" else CASES[:1]:
        masks = random_masks(model, example, placement, share)
        for multiple in arguments.multiples:
            result = prune(model, masks, example, joins=joins, round_to=multiple, round_fill="best", batch_sizes=(1,))  # type: ignore[arg-type]
            flops = measure(result.model, example).flops
            rows.append(
                {
                    "network": name, "share_closed": share, "placement": placement, "joins": result.plan.joins,
                    "round_to": multiple, "flops_left": flops / dense_flops, "sparsity": result.plan.sparsity,
                    "edited_calls": len(result.plan.edits), "error": result.verification.max_abs_error, "times": {},
                }
            )  # fmt: skip
            slims.append(result.model)
    with tempfile.TemporaryDirectory() as folder:
        sessions = []
        for i, network in enumerate([model, *slims]):
            path = Path(folder) / f"{i}.onnx"
            export_onnx(fuse_batchnorm(network, example), path, example, tolerance=1e-3)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            sessions.append(onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]))
        for size in arguments.batch_sizes:
            feed = {"input": torch.randn(size, *shape).numpy()}
            calls = [partial(session.run, None, feed) for session in sessions]
            dense, *others = time_by_turns(calls, arguments.runs)
            for row, times in zip(rows, others, strict=True):
                ratios = [before / after for before, after in zip(dense, times, strict=True)]
                deciles = statistics.quantiles(ratios, n=10)
                row["times"][str(size)] = {
                    "dense_ms": statistics.median(dense),
                    "slim_ms": statistics.median(times),
                    "speedup": statistics.median(ratios),
                    "speedup_p10": deciles[0],
                    "speedup_p90": deciles[8],
                    "realised": statistics.median(ratios) * row["flops_left"],
                }
    return rows


if __name__ == "__main__":
    main()
