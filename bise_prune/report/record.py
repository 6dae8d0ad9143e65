"""Results as JSON for machines and as a table for people."""

from __future__ import annotations

import dataclasses
import platform
import shlex
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import portable
from ..version import __version__

if TYPE_CHECKING:
    from ..metrics.accuracy import Evaluation
    from ..metrics.cost import Latency, Measurement

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


def command_line() -> str:
    """The command that made a record, with files and folders by their names alone."""
    name = Path(sys.argv[0]).name
    words = ["python -m bise_prune" if name == "__main__.py" else name]
    for argument in sys.argv[1:]:
        flag, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
        words.append(f"{flag}{equals}{portable(value) if '/' in value else value}")
    return " ".join([words[0], *map(shlex.quote, words[1:])])
