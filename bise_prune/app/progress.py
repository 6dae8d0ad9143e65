"""What a run tells of itself as it goes on: stages, their times, and figures for loggers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..report.loggers import Loggers

# Called with a stage's name, and with steps done and in all where a stage has steps.
Progress = Callable[[str, int, int], None]


class StageClock:
    """Times the stages of a run and passes on what happens in them.

    Args:
        progress: called as stages go on; None = nobody.
        prefix: in front of the names under which figures are logged.

    Attributes:
        timings: seconds per stage.
        loggers: where the figures of epochs and the result go besides.
    """

    def __init__(self, progress: Progress | None = None, prefix: str = "") -> None:
        self.progress = progress or (lambda stage, done, total: None)
        self.prefix = prefix
        self.timings: dict[str, float] = {}
        self.loggers = Loggers((), {})

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and tell of it."""
        self.progress(name, 0, 0)
        start = time.perf_counter()
        yield
        self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start

    def log(self, stage: str, step: int, figures: Mapping[str, Any]) -> None:
        """Send figures to the run's loggers."""
        self.loggers.log(f"{self.prefix}{stage}", step, figures)

    def for_point(self, name: str) -> StageClock:
        """A clock for one point of a frontier: what was timed before counts for it, what follows is its own."""
        clock = StageClock(self.progress, f"{name}/")
        clock.timings, clock.loggers = dict(self.timings), self.loggers
        return clock
