"""Progress of a run: the time of each stage, running figures of its epochs, and figures for the loggers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ..report.loggers import Loggers


@dataclass(frozen=True)
class EpochFigures:
    """Running figures at the end of an epoch; None for one that does not exist.

    Attributes:
        loss: objective of the search, or loss of the training.
        unbiased_accuracy: unbiased accuracy on the validation data.
        num_open: number of channels whose mask is open.
        num_channels: number of channels that have a mask.
        cost: cost of the gated network, as a share of the dense network's.
        backed_out: whether the network collapsed, so that the next epoch starts from the masks before this one.
    """

    loss: float
    unbiased_accuracy: float | None = None
    num_open: int | None = None
    num_channels: int | None = None
    cost: float | None = None
    backed_out: bool = False


@dataclass(frozen=True)
class ProgressEvent:
    """What a run reports of its progress: a stage starts, resumes, says something, or has finished an epoch.

    Attributes:
        stage: name of the stage; with the folder before it in a frontier ("sparsity-0.5/search").
        done: number of finished epochs.
        total: number of scheduled epochs; 0 if the stage has none, or has finished none yet.
        figures: figures of the last epoch; None if there are none.
        seconds_left: estimated time until the end of the stage, by the mean time of its epochs; None if it is unknown.
        resumed_from: name of the file with the state of an earlier run that the stage goes on with; None otherwise.
        message: what the stage says; "" otherwise.
    """

    stage: str
    done: int = 0
    total: int = 0
    figures: EpochFigures | None = None
    seconds_left: float | None = None
    resumed_from: str | None = None
    message: str = ""


# Called with every event of a run.
Progress = Callable[[ProgressEvent], None]


class StageClock:
    """Times the stages of a run, and passes on their progress and figures.

    Args:
        progress: function called as stages go on; None for none.
        prefix: prefix of the names of stages, in progress and in logged figures.
        now: function that returns the time in seconds.

    Attributes:
        timings: seconds per stage.
        loggers: loggers that get the figures of the epochs and of the result.
    """

    def __init__(
        self, progress: Progress | None = None, prefix: str = "", now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.progress = progress or (lambda event: None)
        self.prefix, self.now = prefix, now
        self.timings: dict[str, float] = {}
        self.loggers = Loggers((), {})
        self._stage, self._started, self._done_before = "", 0.0, 0  # of the present stage

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A context that times a stage and reports its start."""
        self._stage = self.prefix + name
        self.progress(ProgressEvent(self._stage))
        self._started, self._done_before = self.now(), 0
        start = self._started
        yield
        self.timings[name] = self.timings.get(name, 0.0) + self.now() - start

    def resumed(self, stage: str, done: int, file: str) -> None:
        """Report that the present stage goes on with the state of an earlier run.

        Args:
            stage: name of the stage.
            done: number of epochs that the earlier run has finished.
            file: name of the file with its state.
        """
        self._done_before = done
        self.progress(ProgressEvent(self.prefix + stage, done, resumed_from=file))

    def message(self, text: str) -> None:
        """Say something in the present stage."""
        self.progress(ProgressEvent(self._stage, message=text))

    def epoch(self, stage: str, done: int, total: int, figures: EpochFigures) -> None:
        """Report a finished epoch of the present stage, with the time that is left.

        Args:
            stage: name of the stage.
            done: number of finished epochs.
            total: number of scheduled epochs.
            figures: figures of this epoch.
        """
        measured = done - self._done_before
        left = (self.now() - self._started) / measured * (total - done) if measured > 0 else None
        self.progress(ProgressEvent(self.prefix + stage, done, total, figures, left))

    def log(self, stage: str, step: int, figures: Mapping[str, Any]) -> None:
        """Send figures to the loggers of the run; see :meth:`bise_prune.report.loggers.Loggers.log`."""
        self.loggers.log(f"{self.prefix}{stage}", step, figures)

    def for_point(self, name: str) -> StageClock:
        """A clock for one point of a frontier: it starts with the timings so far, and adds those of its own stages."""
        clock = StageClock(self.progress, f"{name}/", self.now)
        clock.timings, clock.loggers = dict(self.timings), self.loggers
        return clock
