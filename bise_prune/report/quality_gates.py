"""Quality gates, targets without a result and refused files: what a finished run lacks, and its exit code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..config import RunConfig
from ..errors import BiseError, ChanceLevelError, PruningError, QualityError, VerificationError

GATES = ("min_worst_group", "max_accuracy_drop", "min_speedup")
# Why a target of a frontier has no result, by the error; all others stop the frontier.
FAILURES: Mapping[type[BiseError], str] = {
    ChanceLevelError: "chance", PruningError: "target", VerificationError: "verification",
}  # fmt: skip
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
    """The exit code of a finished run, and a line for everything that it lacks; 0 if that is nothing.

    Args:
        record: report record of a run, or the record of a frontier.

    Returns:
        The exit code, and lines about refused files, targets of a frontier without a result and missed quality gates.
    """
    failed = record.get("failed", [])
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
    without = [f"{point['folder']} has no result: {point['reason']}" for point in failed]
    unverified = refused or any(point["kind"] == FAILURES[VerificationError] for point in failed)
    code = VerificationError.exit_code if unverified else QualityError.exit_code if without or missed else 0
    return code, refused + without + missed
