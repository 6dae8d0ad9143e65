"""Gates inside attention and on residual streams against gates in feed-forward blocks alone, on the zoo's transformers.

    python benchmarks/attention.py --data-root data --work FOLDER [--seeds 0 1 2]
    python benchmarks/attention.py --data-root data --work FOLDER --record

Protocol: networks of benchmarks/zoo.py with attention or layer norms; each seed has data, a bias, and a trained network
of its own (searches and refits have seed 0); one thread. The
gradual search, and Taylor scores that are re-estimated in steps, each with gates in the feed-forward blocks alone
(placement `feed-forward`), with heads, values and query-key pairs as well (`tied`), and with residual streams on top of
these, whose layer norms run over open channels (`streams`) or compute with zeros (`all`); the search also
without a budget.
Torch-Pruning's recipe for vision transformers (group magnitude; embedding, feed-forward and head widths, one ratio for
all) is cut to the same FLOPs and not finetuned, as nothing else is. Accuracy on the test set as it is, and with the
last layer refitted on validation data; FLOPs are those of the slim network: convolutions, linear layers, attention.
What is in the folder is not computed again. Writes benchmarks/records/attention.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import contest_methods
import torch
import zoo
from records import RECORDS, base_record
from torch import nn

from bise_prune import prune
from bise_prune.config import Placement, SearchConfig
from bise_prune.files import write_json
from bise_prune.mask_search.network import MaskedNetwork
from bise_prune.tracing import logits_of, trace

CELLS = ("vit-patch", "vit-background", "text-mention", "convnext-tint")
SHARES = (1.0, 0.5, 0.33)
SEEDS = (0, 1, 2)
_PLACEMENTS: dict[str, Placement] = {
    "feed-forward": "feed-forward",
    "attention too": "tied",
    "streams too": "streams",
    "streams of zeros": "all",
}
_SEARCHES = {"search": "gradual", "Taylor": "taylor, statistics"}
WAYS = [*(f"{search}, {gates}" for search in _SEARCHES for gates in _PLACEMENTS), "Torch-Pruning"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    zoo.add_arguments(parser)
    parser.add_argument("--ways", nargs="+", choices=("dense", *WAYS), default=("dense", *WAYS), metavar="WAY",
                        help=f"these alone: dense, {'; '.join(WAYS)}")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="of the networks and their data")
    parser.add_argument("--record", action="store_true", help="write the record from the results that there are")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    results = arguments.work / "attention"
    if arguments.record:
        write_json(RECORDS / "attention.json", _record(results))
        return 0
    cells = [zoo.repeated(cell, seed) for seed in arguments.seeds for cell in zoo.chosen(arguments.cells or CELLS)]
    for cell in cells:
        zoo.prepare(cell, arguments.data_root, arguments.work)
    for share in SHARES:
        for cell in cells:
            for way in arguments.ways:
                place = results / cell.name / f"{way}-{share:g}.json"
                if not place.exists() and (way == "dense") <= (share == 1) <= (way == "dense" or "search" in way):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    figures = _figures(cell, way, share, arguments.work)
                    write_json(place, figures)
                    print(f"{cell.name} {way} {share:g}: {json.dumps(figures)}", flush=True)
    return 0


def _figures(cell: zoo.Cell, way: str, share: float, work: Path) -> dict[str, float]:
    """What a way makes of a cell at a share of its FLOPs."""
    search, _, gates = way.partition(", ")
    arena = contest_methods.Arena(cell, work, _PLACEMENTS.get(gates, "tied"))
    if search == "Torch-Pruning":
        return _by_torch_pruning(arena, share)
    method = contest_methods.METHODS[_SEARCHES.get(search, search)]
    ((_, masks, seconds),) = [found for found in method.run(arena, [share]) if found[0] == share]
    plan = prune(arena.session.dense, masks, arena.session.example).plan
    figures = {"flops": plan.macs[1] / plan.macs[0], "params": plan.params[1] / plan.params[0]}
    return {**figures, **arena.judged(masks), "epochs": seconds / arena.epoch_seconds}


def _by_torch_pruning(arena: contest_methods.Arena, share: float) -> dict[str, float]:
    """Torch-Pruning's recipe, at the ratio whose FLOPs are nearest to a share."""
    start = time.process_time()
    dense, example = arena.session.dense, arena.session.example
    whole = _macs(dense, example)
    ratios = [step / 100 for step in range(2, 90, 2)]
    made = [(ratio, _pruned(dense, example, ratio)) for ratio in ratios]
    left = {ratio: _macs(network, example) / whole for ratio, network in made}
    ratio, network = min(made, key=lambda pair: abs(left[pair[0]] - share))
    seconds = time.process_time() - start
    params = [sum(parameter.numel() for parameter in model.parameters()) for model in (network, dense)]
    figures = {"flops": left[ratio], "params": params[0] / params[1], "ratio": ratio}
    judged = arena.scored(MaskedNetwork(network, example, SearchConfig(), None))
    return {**figures, **judged, "epochs": seconds / arena.epoch_seconds}


def _macs(model: nn.Module, example: Any) -> int:
    """Multiply-accumulates of convolutions, linear layers and attention."""
    return sum(call.macs for call in trace(model, example).calls)


def _pruned(dense: nn.Module, example: Any, ratio: float) -> nn.Module:
    """A copy of a transformer of timm or transformers, pruned by Torch-Pruning."""
    import torch_pruning as tp

    model = copy.deepcopy(dense).eval()
    heads: dict[nn.Module, int] = {}
    for module in model.modules():
        if isinstance(getattr(module, "qkv", None), nn.Linear):
            heads[module.qkv] = module.num_heads  # type: ignore[assignment, index]
        elif isinstance(getattr(module, "query", None), nn.Linear):
            heads |= dict.fromkeys((module.query, module.key, module.value), module.num_attention_heads)  # type: ignore
    record = trace(dense, example)
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(normalizer="mean"),
        pruning_ratio=ratio,
        ignored_layers=[model.get_submodule(call.layer or "") for call in record.heads],
        num_heads=heads,
        output_transform=logits_of,
    )
    pruner.step()
    for module in model.modules():
        if isinstance(getattr(module, "qkv", None), nn.Linear):
            module.num_heads = pruner.num_heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
            module.attn_dim = module.num_heads * module.head_dim
        elif isinstance(getattr(module, "query", None), nn.Linear):
            module.num_attention_heads = pruner.num_heads[module.query]
            module.attention_head_size = module.query.out_features // module.num_attention_heads
            module.all_head_size = module.query.out_features
    return model


def _summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, and standard deviation where there are several values."""
    mean = {"mean": round(statistics.mean(values), 5)}
    return mean | ({"std": round(statistics.stdev(values), 5)} if len(values) > 1 else {})


def _record(results: Path) -> dict[str, Any]:
    """The record of all results: cell -> way -> share -> values of each figure, by seed, with mean and deviation."""
    cells: dict[str, Any] = {}
    for seed in SEEDS:
        for cell in zoo.chosen(CELLS):
            for place in sorted((results / zoo.repeated(cell, seed).name).glob("*.json")):
                way, _, share = place.stem.rpartition("-")
                found = cells.setdefault(cell.name, {}).setdefault(way, {}).setdefault(share, {"values": {}})
                for key, value in {"seed": seed, **json.loads(place.read_text())}.items():
                    found["values"].setdefault(key, []).append(round(value, 4))
    for found in (found for ways in cells.values() for shares in ways.values() for found in shares.values()):
        seeds = found["values"].pop("seed")
        summary = {key: _summary(values) for key, values in found["values"].items()}
        found |= {"seeds": seeds, "summary": summary}
    protocol = " ".join((__doc__ or "").split("Protocol: ")[1].split("What is in")[0].split())
    return {**base_record(SEEDS, protocol[0].upper() + protocol[1:], "cpu"), "cells": cells}


# -- the page ------------------------------------------------------------------------------------

PAGE = RECORDS.parents[1] / "docs" / "pages" / "evidence" / "attention.md"
_RECORD_URL = "https://github.com/bise-prune/bise-prune/blob/main/benchmarks/records/attention.json"


def markdown(record: dict[str, Any]) -> str:
    """The record as a page."""
    lines = [
        "# Gates inside attention and on streams",
        "",
        "This page compares what a transformer is worth when only its feed-forward blocks can close channels "
        "(`--placement feed-forward`), when whole heads, channels of values and pairs of a query with a key channel "
        "can close as well (`tied`), and when residual streams can on top of that: with layer norms over open channels "
        "(`streams`), or with zeros (`all`, the default).",
        "",
        f"**How it was measured.** {record['protocol']} Command: `{record['command']}`, commit {record['commit']}, "
        f"[record]({_RECORD_URL}).",
        "",
        "Unbiased accuracy and that of the worst subgroup on test data, in %; FLOPs and parameters left, in %; mean ± "
        "standard deviation over n seeds. A row that is missing was not computed. epochs = what the search took, in "
        "epochs of the vanilla training.",
    ]
    for cell, ways in record["cells"].items():
        lines += ["", f"## {cell}", "", "| | asked | n | FLOPs | parameters | as it is | worst | head refitted | "
                  "worst | epochs |"]  # fmt: skip
        lines.append("| --- |" + " ---: |" * 9)
        for share in map("{:g}".format, SHARES):
            for way in ("dense", *WAYS):
                if (found := ways.get(way, {}).get(share)) is not None:
                    asked = "–" if share == "1" else f"{100 * float(share):.0f}"
                    keys = ("flops", "params", "as is", "as is, worst group", "head on validation",
                            "head on validation, worst group")  # fmt: skip
                    row = [_in_percent(found["summary"][key]) for key in keys]
                    epochs = f"{found['summary']['epochs']['mean']:.0f}"
                    lines.append(f"| {' | '.join([way, asked, str(len(found['seeds'])), *row, epochs])} |")
        lines += ["", f"[Record]({_RECORD_URL})."]
    return "\n".join(lines) + "\n"


def _in_percent(summary: dict[str, float]) -> str:
    """Mean and standard deviation of shares, in %."""
    mean = f"{100 * summary['mean']:.1f}"
    return f"{mean} ± {100 * summary['std']:.1f}" if "std" in summary else mean


if __name__ == "__main__":
    sys.exit(main())
