"""Compare channels and parameters of slim networks with those of the dense network, per layer.

    python tools/sparsity_report.py dense.pt slim/slim.safetensors

The first checkpoint is the dense network. Sparsity is the share of its parameters that was removed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import models
from rich.console import Console
from torch import nn

from bise_prune.channels.edited_model import RewiredModel
from bise_prune.report.tables import side_by_side


def main(argv: Sequence[str] | None = None) -> int:
    arguments = models.parser(__doc__).parse_args(argv)
    return models.guarded(lambda: report(models.load(arguments), arguments.json))


def report(loaded: Sequence[models.LoadedModel], as_json: bool) -> int:
    """Print the table, or one JSON object."""
    networks = [item.model.model if isinstance(item.model, RewiredModel) else item.model for item in loaded]
    tables = [_layers(network) for network in networks]
    totals = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    sparsity = [1 - total / totals[0] for total in totals]
    if as_json:
        records: list[dict[str, Any]] = [
            {"name": item.name, "params": total, "sparsity": share, "layers": table}
            for item, total, share, table in zip(loaded, totals, sparsity, tables, strict=True)
        ]
        print(json.dumps({"models": records}))
        return 0
    rows = [(name, [_cell(table.get(name), tables[0][name]) for table in tables]) for name in tables[0]]
    rows.append(("parameters", [f"{total:,}" for total in totals]))
    rows.append(("sparsity", [f"{share:.1%}" for share in sparsity]))
    Console().print(side_by_side([item.name for item in loaded], rows, "output channels (parameters)"))
    return 0


def _layers(network: nn.Module) -> dict[str, dict[str, int]]:
    """Output channels and parameters of each convolution and linear layer."""
    return {
        name: {
            "channels": module.weight.shape[0],
            "params": sum(parameter.numel() for parameter in module.parameters()),
        }
        for name, module in network.named_modules()
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
    }


def _cell(layer: dict[str, int] | None, dense: dict[str, int]) -> str:
    """Channels and parameters of a layer as text, with the share of the dense layer's parameters."""
    if layer is None:
        return "-"
    share = f" {layer['params'] / dense['params']:.0%}" if layer is not dense else ""
    return f"{layer['channels']} ({layer['params']:,}{share})"


if __name__ == "__main__":
    sys.exit(main())
