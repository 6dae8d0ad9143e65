"""Tables of the benchmarks that have one record each: the demo, frontiers, speed, servers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from typing import Any

from .recorded import Recorded, write_table

Record = Mapping[str, Any]


def _read(records: Recorded, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((records.folder / f"{name}.json").read_text())
    return found


def _cell(summary: Record, scale: float = 100.0, digits: int = 1) -> str:
    return f"{summary['mean'] * scale:.{digits}f} ± {summary['std'] * scale:.{digits}f}"


def _both(record: Record, key: str, scale: float = 100.0) -> list[str]:
    return [_cell(record[model][key], scale) for model in ("dense", "slim")]


def demo(records: Recorded) -> list[str]:
    """The demo over seeds."""
    record = _read(records, "demo")
    rows = [
        ["accuracy, %", *_both(record, "accuracy")],
        ["unbiased accuracy, %", *_both(record, "unbiased_accuracy")],
        ["worst of 100 subgroups, %", *_both(record, "worst_group_accuracy")],
        ["sparsity, %", "0", _cell(record["sparsity"])],
        ["FLOPs left, %", "100", _cell(record["flops_left"])],
        ["gain in unbiased accuracy, points, median", "", f"{record['gain']['median'] * 100:.1f}"],
        ["largest logit difference to the masked network, float64", "", f"{record['max_abs_error']:.0e}"],
        ["largest logit difference of the ONNX file, float32", "", f"{record['onnx_max_abs_error']:.0e}"],
        ["seconds of a whole run with training, one thread, beside other work", "", _cell(record["seconds"], 1, 0)],
    ]
    return write_table((f"{len(record['seeds'])} seeds, {record['n']:,} test images", "dense", "slim"), rows)


def resnet18(records: Recorded) -> list[str]:
    """The ResNet-18 on tinted CIFAR-10 over seeds."""
    record = _read(records, "tinted_cifar10")
    rows = [
        ["accuracy, %", *_both(record, "accuracy")],
        ["unbiased accuracy, %", *_both(record, "unbiased_accuracy")],
        ["worst of 4 subgroups, %", *_both(record, "worst_group_accuracy")],
        ["unbiased accuracy of the last epoch's masks, %", "", _cell(record["masked_last"]["unbiased_accuracy"])],
        ["sparsity, %", "0", _cell(record["sparsity"])],
        ["sparsity by seed, %", "", ", ".join(f"{value * 100:.1f}" for value in record["sparsity"]["values"])],
        ["parameters, millions", *_both(record, "params", 1e-6)],
        ["MFLOPs", *_both(record, "flops", 1e-6)],
        ["latency in torch, batch 16, one CPU thread, ms", *_both(record, "latency_ms", 1)],
    ]
    return write_table((f"{len(record['seeds'])} seeds, {record['n_test']:,} test images", "dense", "slim"), rows)


_WAYS = {
    "warm": "search that starts from the larger budget's masks (`--targets`)",
    "descent": "search with a budget that decreases (`--target-flops`)",
    "budget": "search with the whole budget from the start",
    "m": "one free search, ranked by mask logits",
    "Taylor": "ranked by Taylor scores",
    "magnitude": "ranked by magnitude",
    "random": "ranked at random",
}


def frontier(records: Recorded) -> list[str]:
    """Unbiased accuracy at equal FLOPs, as extracted and finetuned."""
    record = _read(records, "frontier")
    found, budgets = record["rows"], (0.5, 0.33, 0.2)
    lines = []
    for title, key in (("not finetuned", "as_is"), ("finetuned", "finetuned")):
        rows = [
            [label, *(_cell(found[f"{way}, {budget:g}"][key]) for budget in budgets)] for way, label in _WAYS.items()
        ]
        lines += write_table(
            (f"{title}, {len(record['seeds'])} seeds", *(f"{b:.0%} of the FLOPs" for b in budgets)), rows
        )
    rows = [
        [label, _cell(found[name]["flops_left"]), _cell(found[name]["as_is"]), _cell(found[name]["finetuned"])]
        for name, label in (("dense", "dense network"), ("free search", "one free search"))
    ]
    return lines + write_table(("for comparison", "FLOPs left, %", "not finetuned", "finetuned"), rows)


def search_speed(records: Recorded) -> list[str]:
    """Seconds of the search and of the literal Algorithm 1, and of single steps."""
    networks = {"MLP, Multi-Color MNIST": "mlp", "SimpleConvNet, the demo's digits": "simple_convnet"}
    rows = []
    for label, name in networks.items():
        found = _read(records, f"search_speed_{name}")[name]
        seconds = [_cell(found[key], 1, 0) for key in ("literal_seconds", "ours_seconds")]
        accuracy = [_cell(found[key]) for key in ("literal", "ours")]
        rows.append([label, str(found["times_faster"]["n"]), *seconds, _cell(found["times_faster"], 1), *accuracy])
    header = (
        "network", "seeds", "literal, s", "bise-prune, s", "times faster", "literal: unbiased accuracy, %",
        "bise-prune: unbiased accuracy, %",
    )  # fmt: skip
    lines = write_table(header, rows)
    rows = []
    for label, name in networks.items():
        found = _read(records, f"search_speed_{name}")[name]["times_faster_without_weight_gradients"]
        rows.append([label, str(found["n"]), _cell(found, 1)])
    lines += write_table(("against a literal version without gradients of weights", "seeds", "times faster"), rows)
    steps = _read(records, "search_speed_mlp")["steps"]
    rows = [[name, f"{step['time_ratio']:.2f}", f"{step['memory_ratio']:.2f}"] for name, step in steps.items()]
    return lines + write_table(("mask step / vanilla training step", "time", "memory"), rows)


def transformers(records: Recorded) -> list[str]:
    """Times on a GPU of transformers with half of each mask closed, slim divided by dense."""
    rows = _read(records, "transformer_latency")["rows"]
    cases = ("float32, batch 1", "float32, batch 128", "bfloat16, batch 1", "bfloat16, batch 128")
    cells = [
        [
            row["network"],
            f"`{row['placement']}`",
            "not rounded" if row["round_to"] == 1 else f"multiples of {row['round_to']}",
            "yes" if row["compiled"] else "no",
            f"{row['flops_left'] * 100:.1f}",
            *(f"{row['times'][case]['ratio']:.2f}" for case in cases),
        ]
        for row in rows
    ]
    return write_table(("network", "placement", "widths", "compiled", "FLOPs left, %", *cases), cells)


def speedup(records: Recorded) -> list[str]:
    """The share of the FLOPs saved that is saved in time."""
    rows = _read(records, "speedup")["rows"]
    cells = []
    for network in ("resnet18", "simple_convnet"):
        for multiple in (16, 8, 1):
            found = [row for row in rows if (row["network"], row["round_to"]) == (network, multiple)]
            shares = [time["realised"] for row in found for time in row["times"].values()]
            rounding = f"multiples of {multiple}" if multiple > 1 else "not rounded"
            cells.append([network, rounding, *(f"{value:.2f}" for value in _range(shares))])
    return write_table(("network", "widths", "median", "lowest", "highest"), cells)


def _range(values: Iterable[float]) -> tuple[float, float, float]:
    found = list(values)
    return statistics.median(found), min(found), max(found)


def serving(records: Recorded) -> list[str]:
    """Requests per second behind a server."""
    record = _read(records, "serving")
    rows = []
    for name, label in (("resnet18", "ResNet-18, a third of its FLOPs"), ("demo", "the demo's network")):
        for protocol in ("http", "grpc"):
            found = record[name]["no delay"][protocol]
            speeds = [_cell(found[model]["requests_per_second"], 1, 0) for model in ("dense", "slim")]
            rows.append([label, protocol.upper().replace("GRPC", "gRPC"), *speeds, _cell(found["ratio"], 1)])
    lines = write_table(("network", "protocol", "dense, requests/s", "slim, requests/s", "ratio"), rows)
    rows = [
        [label, *(f"{record[name]['alone'][key]:.2f}" for key in ("dense", "slim", "ratio"))]
        for name, label in (("resnet18", "ResNet-18, a third of its FLOPs"), ("demo", "the demo's network"))
    ]
    return lines + write_table(("onnxruntime alone, batch 1", "dense, ms", "slim, ms", "slim / dense"), rows)


def removal_cost(records: Recorded) -> list[str]:
    """FLOPs left by lowering, and seconds and memory of the removal."""
    record = _read(records, "removal_cost")
    rows = []
    for engine in ("exact, expand", "exact, intersection", "torch-pruning"):
        found = sorted(
            (row for row in record["engines"] if (row["engine"], row["placement"]) == (engine, "paper")),
            key=lambda row: row["share_closed"],
        )
        rows.append([engine.removeprefix("exact, "), *(f"{row['flops_left'] * 100:.0f}" for row in found)])
    lines = write_table(("ResNet-18, FLOPs left, %", "30% closed", "50% closed", "70% closed"), rows)
    rows = [
        [name, f"{row['seconds']:.1f}", f"{row['peak_over_model']:.1f}", f"{row['error']:.0e}"]
        for name, row in record["cost"].items()
    ]
    header = ("network", "seconds", "peak memory / model", "largest logit difference, float64")
    return lines + write_table(header, rows)
