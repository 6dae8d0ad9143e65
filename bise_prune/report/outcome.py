"""Decides whether a finished run failed: missed quality gates and refused files give an exit code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import QualityError, VerificationError

if TYPE_CHECKING:
    pass


def shortcomings(record: Mapping[str, Any]) -> tuple[int, list[str]]:
    """The exit code of a finished run, and a line for each missed quality gate and refused file; 0 if there is none.

    Args:
        record: report record of a run, or the record of a frontier.
    """
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
