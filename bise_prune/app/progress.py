"""Progress of a run: the time of each stage, and figures for the loggers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..report.loggers import Loggers

# Called with the name of a stage, its finished steps and all its steps; 0 and 0 if it has no steps.
Progress = Callable[[str, int, int], None]


class StageClock:
    """Times the stages of a run, and passes on their progress and figures.

    Args:
        progress: function called as stages go on; None for none.
        prefix: prefix of the names under which figures are logged.

    Attributes:
        timings: seconds per stage.
        loggers: loggers that get the figures of the epochs and of the result.
    """

    def __init__(self, progress: Progress | None = None, prefix: str = "") -> None:
        self.progress = progress or (lambda stage, done, total: None)
        self.prefix = prefix
        self.timings: dict[str, float] = {}
        self.loggers = Loggers((), {})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A context that times a stage and reports its start."""
        self.progress(name, 0, 0)
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    def log(self, stage: str, step: int, figures: Mapping[str, Any]) -> None:
        """Send figures to the loggers of the run; see :meth:`bise_prune.report.loggers.Loggers.log`."""
        self.loggers.log(f"{self.prefix}{stage}", step, figures)

    def for_point(self, name: str) -> StageClock:
        """A clock for one point of a frontier: it starts with the timings so far, and adds those of its own stages."""
        clock = StageClock(self.progress, f"{name}/")
        clock.timings, clock.loggers = dict(self.timings), self.loggers
        return clock
