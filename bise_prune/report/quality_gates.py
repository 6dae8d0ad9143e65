"""Quality gates: whether the slim network passes them, and the exit code of a run that misses one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import RunConfig
from ..errors import QualityError, VerificationError

GATES = ("min_worst_group", "max_accuracy_drop", "min_speedup")
_SLACK = 1e-9  # shares may differ from a gate's value by rounding


def gate_records(config: RunConfig, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The quality gates that were set: what was asked for, the slim network's value, and whether it passes.

    Args:
        config: settings of the run.
        record: report record, of which ``dense`` and ``slim`` are used.
    """
    dense, slim = record["dense"], record["slim"]
    drop, speedup = dense["accuracy"] - slim["accuracy"], dense["latency_ms"] / slim["latency_ms"]
    gates = []
    for name, value in zip(GATES, (slim["worst_group_accuracy"], drop, speedup), strict=True):
        asked = getattr(config, name)
        if asked is not None:
            passed = value <= asked + _SLACK if name == "max_accuracy_drop" else value >= asked - _SLACK
            gates.append({"name": name, "asked": asked, "value": value, "passed": passed})
    return gates


def shortcomings(record: Mapping[str, Any]) -> tuple[int, list[str]]:
    """The exit code of a finished run, and a line for each missed quality gate and refused file; 0 if there is none.

    Args:
        record: report record of a run, or the record of a frontier.
    """
    runs = {point["folder"]: point["report"] for point in record.get("frontier", [])} or {"": record}
    where = {folder: f"{folder}: " if folder else "" for folder in runs}
    refused = [f"{where[f]}{form['refused']}" for f, run in runs.items() for form in run["formats"] if form["refused"]]
    missed = [
        f"{where[f]}quality gate --{gate['name'].replace('_', '-')} {gate['asked']:g} missed: "
        f"it came to {gate['value']:.4g}"
        for f, run in runs.items()
        for gate in run["gates"]
        if not gate["passed"]
    ]
    if missed and any(run["config"]["triton"] for run in runs.values()):
        missed.append("a gate was missed, so that nothing was added to the Triton repository")
    code = VerificationError.exit_code if refused else QualityError.exit_code if missed else 0
    return code, refused + missed
