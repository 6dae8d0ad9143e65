"""Progress on stderr: bars on a terminal, and otherwise one line for each stage and each epoch."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import TaskID

    from .progress import EpochFigures, ProgressEvent


def show(renderable: RenderableType) -> None:
    """Print tables on stdout; square brackets in names are no markup."""
    from rich.console import Console

    Console(markup=False, emoji=False, highlight=False).print(renderable)


class Display:
    """A context that shows progress; of several processes only the first one shows any."""

    def __enter__(self) -> Display:
        self._is_quiet = os.environ.get("RANK", "0") != "0"
        self._bars = _Bars() if sys.stderr.isatty() and not self._is_quiet else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def progress(self, event: ProgressEvent) -> None:
        """Show an event.

        Args:
            event: event of a run.
        """
        if self._bars is not None:
            self._bars.show(event)
        elif not self._is_quiet:
            print(line_of(event), file=sys.stderr, flush=True)


class _Bars:
    """Progress bars, one per stage, with the running figures beside them."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.table import Column

        figures = TextColumn("{task.fields[figures]}", markup=False, table_column=Column(ratio=1, no_wrap=False))
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TimeElapsedColumn(),
            figures,
        )
        self.bars = Progress(*columns, console=Console(stderr=True), expand=True)
        self.stages: dict[str, TaskID] = {}
        self.bars.start()

    def stop(self) -> None:
        """Leave the bars as they are."""
        self.bars.stop()

    def show(self, event: ProgressEvent) -> None:
        """Show the progress of a stage; the stages before it are shown as complete."""
        if event.message:
            self.bars.console.print(event.message, markup=False, highlight=False)
            return
        if event.stage not in self.stages:
            for task in self.stages.values():
                self.bars.update(task, total=1, completed=1)
            self.stages[event.stage] = self.bars.add_task(event.stage, total=None, figures="")
        task = self.stages[event.stage]
        text = _text_of(event)
        if text:
            self.bars.update(task, figures=f"{event.done}/{event.total}: {text}" if event.total else text)
        if event.total:
            self.bars.update(task, total=event.total, completed=event.done)


def line_of(event: ProgressEvent) -> str:
    """An event as one line, such as "search 3/12: loss 0.412, 1,432 of 2,880 channels open, 2 min left"."""
    if event.message:
        return event.message
    place = f"{event.stage} {event.done}/{event.total}" if event.total else event.stage
    return ": ".join(part for part in (place, _text_of(event)) if part)


def _text_of(event: ProgressEvent) -> str:
    """The figures of an event, and the time that is left."""
    if event.resumed_from is not None:
        place = f"after epoch {event.done}" if event.done else "within epoch 1"
        return f"resumed {place}, from {event.resumed_from}"
    parts = [] if event.figures is None else _figures(event.figures)
    if event.seconds_left is not None and event.done < event.total:
        parts.append(f"{_duration(event.seconds_left)} left")
    return ", ".join(parts)


def _figures(figures: EpochFigures) -> list[str]:
    """The figures that exist, in words."""
    parts = [f"loss {figures.loss:.3f}"]
    if figures.unbiased_accuracy is not None:
        parts.append(f"validation unbiased {figures.unbiased_accuracy:.1%}")
    if figures.num_open is not None and figures.num_channels is not None:
        parts.append(f"{figures.num_open:,} of {figures.num_channels:,} channels open")
    if figures.cost is not None:
        parts.append(f"cost {figures.cost:.0%}")
    if figures.backed_out:
        parts.append("collapsed: back to the masks before")
    return parts


def _duration(seconds: float) -> str:
    """A time in the unit that suits it.

    >>> _duration(12), _duration(125), _duration(9000)
    ('12 s', '2 min', '2.5 h')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
