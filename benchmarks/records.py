"""What every benchmark record holds: command, commit, versions, device, date, seeds, mean and std of its figures."""

from __future__ import annotations

import datetime
import resource
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bise_prune.report.record import command_line, environment_record

RECORDS = Path(__file__).parent / "records"


def summary(values: Sequence[float]) -> dict[str, Any]:
    """n, mean, sample standard deviation (0 for one value), median and the values."""
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "median": statistics.median(values),
        "values": list(values),
    }


def base_record(seeds: Sequence[int], protocol: str, device: str) -> dict[str, Any]:
    """The part of a record that does not depend on the benchmark."""
    return {
        "command": f"python benchmarks/{command_line()}",
        "commit": _COMMIT,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seeds": list(seeds),
        "protocol": protocol,
        "environment": {**environment_record(device), "threads": torch.get_num_threads()},
    }


def peak_memory_bytes() -> int:
    """The process's largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def plus_minus(figures: Mapping[str, Any], scale: float = 1.0, digits: int = 1) -> str:
    """``mean +- std`` of a summary."""
    return f"{figures['mean'] * scale:.{digits}f} +- {figures['std'] * scale:.{digits}f}"


def commits_of(record: Mapping[str, Any]) -> str:
    """At which commits which cells were run, the commonest last; those of older records have none of their own."""
    names: dict[str, list[str]] = {}
    for name, cell in record["cells"].items():
        names.setdefault(cell.get("commit", record["commit"]), []).append(name)
    *few, (most, _) = sorted(names.items(), key=lambda pair: len(pair[1]))
    return "; ".join([*(f"{', '.join(found)} at commit {commit}" for commit, found in few), f"commit {most}"])


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    dirty = "+changes" if git("status", "--porcelain", "--", "../bise_prune", ".", ":!records") else ""
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + dirty


_COMMIT = _commit()  # at the start of the run: the code that is measured
