"""Print parameters and FLOPs of models side by side, per layer and in total.

    python tools/flops_report.py dense.pt slim/slim.safetensors

FLOPs are fvcore's count for one sample: 1 multiply-accumulate = 1 FLOP. Operators that it does not count are listed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import models
from rich.console import Console

from bise_prune.metrics.cost import FLOPS_CONVENTION, measure
from bise_prune.report.tables import side_by_side


def main(argv: Sequence[str] | None = None) -> int:
    arguments = models.parser(__doc__).parse_args(argv)
    return models.guarded(lambda: report(models.load(arguments), arguments.json))


def report(loaded: Sequence[models.LoadedModel], as_json: bool) -> int:
    """Print the table, or one JSON object."""
    records: list[dict[str, Any]] = []
    for item in loaded:
        figures = measure(item.model, item.example)
        leaves = {
            name.removeprefix("model."): flops
            for name, flops in figures.flops_by_layer.items()
            if not list(item.model.get_submodule(name).children())
        }
        records.append(
            {
                "name": item.name,
                "input_shape": list(item.example.shape[1:]),
                "params": figures.params,
                "flops": figures.flops,
                "flops_by_layer": leaves,
                "unsupported_operators": dict(figures.unsupported_operators),
            }
        )
    if as_json:
        print(json.dumps({"flops_convention": FLOPS_CONVENTION, "models": records}))
        return 0
    layers = list(dict.fromkeys(layer for record in records for layer in record["flops_by_layer"]))
    rows = [
        ("input", ["x".join(map(str, record["input_shape"])) for record in records]),
        ("parameters", [f"{record['params']:,}" for record in records]),
        *((layer, [f"{record['flops_by_layer'].get(layer, 0):,}" for record in records]) for layer in layers),
        ("total FLOPs", [f"{record['flops']:,}" for record in records]),
        ("of the first", [f"{record['flops'] / records[0]['flops']:.1%}" for record in records]),
    ]
    console = Console()
    console.print(side_by_side([record["name"] for record in records], rows, f"FLOPs: {FLOPS_CONVENTION}"))
    for record in records:
        uncounted = ", ".join(f"{name} x{count}" for name, count in record["unsupported_operators"].items())
        print(f"{record['name']}: not counted: {uncounted or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
