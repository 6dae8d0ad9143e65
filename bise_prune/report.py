"""Results as JSON for machines and as a table for people."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from .config import portable
from .errors import QualityError, VerificationError
from .version import __version__

if TYPE_CHECKING:
    from .artifacts import Latency, Measurement
    from .evaluation import Evaluation

SCHEMA_VERSION = 1
_PACKAGES = ("torch", "torchvision", "torch-pruning", "fvcore", "onnx", "numpy")
_RUNTIMES = ("onnxruntime-gpu", "onnxruntime")


def evaluation_record(evaluation: Evaluation) -> dict[str, Any]:
    """Accuracies with the number of samples of every subgroup."""
    return {
        "n": evaluation.n,
        "accuracy": evaluation.accuracy,
        "unbiased_accuracy": evaluation.unbiased_accuracy,
        "worst_group_accuracy": evaluation.worst_group_accuracy,
        "groups": [{"name": group.name, "n": group.n, "accuracy": group.accuracy} for group in evaluation.subgroups],
    }


def model_record(measurement: Measurement, latency: Latency, evaluation: Evaluation) -> dict[str, Any]:
    """One model's size, cost and accuracies."""
    return {
        "params": measurement.params,
        "flops": measurement.flops,
        "size_bytes": measurement.size_bytes,
        "latency_ms": latency.median_ms,
        "latency": dataclasses.asdict(latency),
        "unsupported_operators": dict(measurement.unsupported_operators),
        **evaluation_record(evaluation),
    }


def environment_record(device: str) -> dict[str, Any]:
    """Versions and machine, without names or paths."""
    return {
        "bise_prune": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device,
        "packages": installed_versions(),
    }


def installed_versions() -> dict[str, str]:
    """Versions of the packages that figures depend on."""
    versions = {}
    for name in (*_PACKAGES, *_RUNTIMES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def shortcomings(record: Mapping[str, Any]) -> tuple[int, list[str]]:
    """What a finished run falls short of, in words, and the exit code for it; 0 if there is nothing."""
    runs = {point["folder"]: point["report"] for point in record.get("frontier", [])} or {"": record}
    where = {folder: f"{folder}: " if folder else "" for folder in runs}
    refused = [f"{where[f]}{form['refused']}" for f, run in runs.items() for form in run["formats"] if form["refused"]]
    missed = [
        f"{where[f]}quality gate --{gate['name'].replace('_', '-')} {gate['asked']:g} missed: {gate['value']:.4g}"
        for f, run in runs.items()
        for gate in run["gates"]
        if not gate["passed"]
    ]
    if missed and any(run["config"]["triton"] for run in runs.values()):
        missed.append("a gate was missed, so that nothing was added to the Triton repository")
    code = VerificationError.exit_code if refused else QualityError.exit_code if missed else 0
    return code, refused + missed


def comparison_table(record: Mapping[str, Any]) -> Table:
    """Dense against slim, one row a figure."""
    dense, slim = record["dense"], record["slim"]
    table = Table(title=f"{record['evaluated_on']} set, n = {dense['n']}", title_justify="left")
    table.add_column("")
    for name in ("dense", "slim", "change"):
        table.add_column(name, justify="right")
    for label, key in (
        ("accuracy", "accuracy"),
        ("unbiased accuracy", "unbiased_accuracy"),
        (f"worst of {len(dense['groups'])} subgroups", "worst_group_accuracy"),
    ):
        change = (slim[key] - dense[key]) * 100
        table.add_row(label, f"{dense[key]:.1%}", f"{slim[key]:.1%}", f"{change:+.1f} points")
    for label, key, unit in (
        ("parameters", "params", ""),
        ("FLOPs (1 MAC = 1)", "flops", ""),
        ("size", "size_bytes", " B"),
    ):
        change = (slim[key] / dense[key] - 1) * 100
        table.add_row(label, f"{dense[key]:,}{unit}", f"{slim[key]:,}{unit}", f"{change:+.1f} %")
    fairness = record["fairness"]
    for k, _ in enumerate(fairness["dense"]["biases"]):
        of = f" of bias {k}" if len(fairness["dense"]["biases"]) > 1 else ""
        for label, key in (
            ("aligned - conflicting", "aligned_conflicting_gap"),
            ("demographic parity difference", "demographic_parity_difference"),
            ("equalised odds difference", "equalized_odds_difference"),
        ):
            values = [fairness[name]["biases"][k][key]["value"] for name in ("dense", "slim", "change")]
            cells = ["undefined" if value is None else f"{value * 100:.1f}" for value in values[:2]]
            table.add_row(label + of, *cells, "" if values[2] is None else f"{values[2] * 100:+.1f} points")
    latency, ratio = dense["latency"], slim["latency_ms"] / dense["latency_ms"]
    table.add_row(
        f"latency, batch {latency['batch_size']}, {latency['device']}",
        f"{dense['latency_ms']:.2f} ms",
        f"{slim['latency_ms']:.2f} ms",
        f"x {ratio:.2f}",
    )
    return table


def frontier_table(record: Mapping[str, Any]) -> Table:
    """One row a target, the dense network first."""
    points = record["frontier"]
    dense = points[0]["report"]["dense"]
    table = Table(title=f"{points[0]['report']['evaluated_on']} set, n = {dense['n']}", title_justify="left")
    for name in ("sparsity", "FLOPs left", "latency", "accuracy", "unbiased accuracy", "worst subgroup"):
        table.add_column(name, justify="right")
    for sparsity, model in [(0.0, dense), *((p["report"]["sparsity"], p["report"]["slim"]) for p in points)]:
        table.add_row(
            f"{sparsity:.1%}",
            f"{model['flops'] / dense['flops']:.1%}",
            f"{model['latency_ms']:.2f} ms",
            f"{model['accuracy']:.1%}",
            f"{model['unbiased_accuracy']:.1%}",
            f"{model['worst_group_accuracy']:.1%}",
        )
    return table


def side_by_side(names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], title: str) -> Table:
    """One column per model, one row per figure."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for label, values in rows:
        table.add_row(label, *values)
    return table


def command_line() -> str:
    """The command that made a record, with files and folders by their names alone."""
    name = Path(sys.argv[0]).name
    words = ["python -m bise_prune" if name == "__main__.py" else name]
    for argument in sys.argv[1:]:
        flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        words.append(f"{flag}{equals}{portable(value) if '/' in value else value}")
    return " ".join([words[0], *map(shlex.quote, words[1:])])
