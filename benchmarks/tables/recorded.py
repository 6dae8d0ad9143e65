"""The records of runs, read back: figures over seeds."""

from __future__ import annotations

import copy
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .settings import Size


@dataclass(frozen=True)
class Where:
    """A row of figures in the records."""

    setting: str
    size: Size
    rho: float
    method: str
    row: str


class Recorded:
    """All records of runs below a folder.

    Args:
        folder: of the records.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs: dict[tuple[str, str, float, str], dict[int, dict[str, Any]]] = {}
        for path in sorted(folder.glob("*/*/**/*-seed*.json")):
            record = json.loads(path.read_text())
            key = (record["setting"], record["size"], record["rho"] or 0.0, record["method"])
            self.runs.setdefault(key, {})[record["seed"]] = record

    def of(self, where: Where) -> list[dict[str, Any]]:
        """The records of a run, by seed."""
        found = self.runs.get((where.setting, where.size, where.rho, where.method), {})
        return [found[seed] for seed in sorted(found)]

    def matched(self, wheres: Iterable[Where]) -> Recorded:
        """The records of the seeds that all of these runs have; runs of less than three seeds are not asked."""
        seeds = [self.seeds(where) for where in wheres]
        return self.only(set.intersection(*([found for found in seeds if len(found) > 2] or [set(range(1_000))])))

    def seeds(self, where: Where) -> set[int]:
        """The seeds that a run has."""
        return {record["seed"] for record in self.of(where)}

    def only(self, shared: Set[int]) -> Recorded:
        """The records of some seeds."""
        view = copy.copy(self)
        view.runs = {
            key: {seed: record for seed, record in found.items() if seed in shared} for key, found in self.runs.items()
        }
        return view

    def values(self, where: Where, key: str) -> list[float]:
        """A figure, one per seed that has it."""
        return list(self.by_seed(where, key).values())

    def by_seed(self, where: Where, key: str) -> dict[int, float]:
        """A figure by seed."""
        found = {record["seed"]: record["rows"].get(where.row, {}).get(key) for record in self.of(where)}
        return {seed: value for seed, value in found.items() if value is not None}

    def changes(self, before: Where, after: Where, key: str) -> list[float]:
        """Differences of a figure, one for each seed that both have."""
        first, second = self.by_seed(before, key), self.by_seed(after, key)
        return [second[seed] - first[seed] for seed in first if seed in second]

    def gain(self, before: Where, after: Where, key: str) -> str:
        """Mean difference of a figure in points, over the seeds that both have."""
        found = mean(self.changes(before, after, key))
        return "" if found is None else f"{100 * found:+.1f}"

    def rhos(self, setting: str, size: Size, method: str) -> list[float]:
        """The shares of aligned samples that there are runs of."""
        return sorted(rho for name, at, rho, run in self.runs if (name, at, run) == (setting, size, method))

    def row_names(self, where: Where) -> list[str]:
        """The rows of a run, as the first seed has them."""
        records = self.of(where)
        return list(records[0]["rows"]) if records else []


def spread(values: Iterable[float], scale: float = 100.0, digits: int = 1) -> str:
    """``mean ± sample standard deviation``, or the one value; empty for none. Tables say how many seeds there are.

    >>> spread([0.5, 0.6]), spread([0.5]), spread([])
    ('55.0 ± 7.1', '50.0', '')
    """
    scaled = [value * scale for value in values]
    if not scaled:
        return ""
    if len(scaled) == 1:
        return f"{scaled[0]:.{digits}f}"
    return f"{statistics.fmean(scaled):.{digits}f} ± {statistics.stdev(scaled):.{digits}f}"


def mean(values: Iterable[float]) -> float | None:
    """The mean; None of nothing."""
    found = list(values)
    return statistics.fmean(found) if found else None


def seeds_of(records: Iterable[Mapping[str, Any]]) -> str:
    """The seeds of records in words."""
    seeds = sorted({record["seed"] for record in records})
    return f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"


def write_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table in Markdown, numbers to the right, and an empty line."""
    marks = ["---"] + ["---:"] * (len(header) - 1)
    return [*(f"| {' | '.join(line)} |" for line in (header, marks, *rows)), ""]
