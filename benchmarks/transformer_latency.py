"""What the gates inside attention are worth in time: torchvision's transformers with half of each mask closed.

    python benchmarks/transformer_latency.py --device cuda
    python benchmarks/transformer_latency.py --networks vit_b_32 --batch-sizes 1 16

Random weights, two classes, a random half of each mask closed; with placement "tied", which gates heads, values and
pairs of queries and keys, and with "feed-forward", which does not; kept channels as they are, or rounded up to
multiples of 8, in each head as well. Each slim network is compared with its masked one in float64. Times are medians
of forward passes in torch, dense and slim by turns, in float32 (with TF32 off, torch's default) and bfloat16.
``--compile`` times networks compiled by torch.compile, in which edited function calls cost no time in Python.
Writes benchmarks/records/transformer_latency.json.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
import torchvision
from records import RECORDS, base_record
from removal import scramble
from torch import nn

from bise_prune import MaskSet, gate_sites, prune
from bise_prune.files import write_json
from bise_prune.metrics.cost import measure_latency

NETWORKS = ("vit_b_16", "vit_b_32", "swin_t", "swin_v2_t")
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 16, 128])
    parser.add_argument("--types", nargs="+", choices=list(TYPES), default=list(TYPES))
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--placements", nargs="+", choices=("tied", "feed-forward"), default=["tied", "feed-forward"])
    parser.add_argument("--multiples", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, default=RECORDS / "transformer_latency.json")
    arguments = parser.parse_args()
    protocol = (
        "random weights, a random half of each mask closed, error = largest logit difference of slim and masked "
        f"network in float64; torch, median of {arguments.runs} forward passes, dense and slim by turns"
    )
    protocol += ", compiled" if arguments.compile else ""
    record = base_record([0], protocol, arguments.device) | {"rows": []}
    for name in arguments.networks:
        for placement in arguments.placements:
            for multiple in arguments.multiples:
                row = _row(name, placement, multiple, arguments)
                record["rows"].append(row)
                write_json(arguments.output, record)
                times = "  ".join(f"{case} {time['ratio']:.2f}" for case, time in row["times"].items())
                print(f"{name:10s} {placement:12s} to {multiple}  FLOPs {row['flops_left']:.3f}  {times}", flush=True)


def _row(name: str, placement: str, multiple: int, arguments: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=2).eval()
    scramble(model)  # heads begin with zeros
    model.to(arguments.device)
    images = torch.randn(1, 3, 256 if "v2" in name else 224, 256 if "v2" in name else 224, device=arguments.device)
    sites = gate_sites(model, images, placement)
    generator = torch.Generator().manual_seed(0)
    masks = MaskSet({s.name: torch.rand(s.num_channels, generator=generator) - 0.5 for s in sites})
    result = prune(model, masks, images, joins="expand", round_to=multiple, batch_sizes=(1, 2))
    row: dict[str, Any] = {
        "network": name,
        "placement": placement,
        "round_to": multiple,
        "gates": masks.num_channels,
        "closed": masks.num_closed / masks.num_channels,
        "flops_left": result.plan.macs[1] / result.plan.macs[0],
        "sparsity": result.plan.sparsity,
        "error": result.verification.max_abs_error,
        "times": {},
    }
    for dtype in arguments.types:
        networks = [copy.deepcopy(network).to(TYPES[dtype]) for network in (model, result.model)]
        if arguments.compile:
            torch.compiler.reset()
            networks = [torch.compile(network, dynamic=False) for network in networks]  # type: ignore[misc]
        for size in arguments.batch_sizes:
            batch = images.expand(size, -1, -1, -1).to(TYPES[dtype])
            dense, slim = (
                latency.median_ms
                for latency in measure_latency(networks, batch, runs=arguments.runs, device=arguments.device)
            )
            row["times"][f"{dtype}, batch {size}"] = {"dense_ms": dense, "slim_ms": slim, "ratio": slim / dense}
    return row


if __name__ == "__main__":
    main()
