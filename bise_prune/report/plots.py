"""Plots as SVG elements that take their text colour from the page around them."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_INK = "#010203"  # placeholder for the colour of the page's text
# Each has a contrast of at least 3 : 1 against white and against the dark page.
COLORS = ("#2f7ed8", "#c8641b", "#0f8f66", "#a855b8", "#b8860b")
_MARKERS = "osD^v"


@dataclass(frozen=True)
class Line:
    """A series of points; a point with a coordinate of None is left out.

    Attributes:
        label: text in the legend.
        x: abscissas.
        y: ordinates.
        joined: whether a line joins the points.
    """

    label: str
    x: Sequence[float | None]
    y: Sequence[float | None]
    joined: bool = True


def plot(
    name: str,
    description: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    log_y: bool = False,
    mark_x: tuple[float, str] | None = None,
    texts: Sequence[tuple[float, float, str]] = (),
    size: tuple[float, float] = (6.4, 3.4),
) -> str:
    """Draw a plot as an ``<svg>`` element.

    Args:
        name: prefix that keeps the ids in this plot apart from those of other plots on the page.
        description: text for readers who cannot see the plot.
        lines: series to draw.
        x_label: label of the x axis.
        y_label: label of the y axis.
        log_y: whether the y axis is logarithmic.
        mark_x: position on the x axis to mark with a vertical line, and its label.
        texts: texts to write at points, as (x, y, text).
        size: width and height in inches, of 72 units each.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 10,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
        "legend.frameon": False,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color"),
                        _INK),
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size)
        figure.subplots_adjust(left=0.12, right=0.98, top=0.96, bottom=0.16)  # a layout engine takes twice as long
        FigureCanvasSVG(figure)
        axes: Axes = figure.add_subplot()
        for k, line in enumerate(lines):
            points = [(x, y) for x, y in zip(line.x, line.y, strict=True) if x is not None and y is not None]
            axes.plot(
                [x for x, _ in points], [y for _, y in points], color=COLORS[k % len(COLORS)], label=line.label,
                marker=_MARKERS[k % len(_MARKERS)] if len(points) < 40 else None, markersize=4,
                linestyle="-" if line.joined else "none",
            )  # fmt: skip
        if mark_x is not None:
            axes.axvline(mark_x[0], color=_INK, linestyle="--", linewidth=1, label=mark_x[1])
        for x, y, text in texts:
            axes.annotate(text, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if log_y:
            axes.set_yscale("log")
        if len(lines) + (mark_x is not None) > 1:
            axes.legend()
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Type": None,
                                                                     "Format": None})  # fmt: skip
    return _inlined(file.getvalue(), name, description)


def _inlined(text: str, name: str, description: str) -> str:
    """The ``<svg>`` element alone, with unique ids and a description."""
    text = text[text.index("<svg") :].strip().replace(_INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(|href=")#([^")]+)', rf"\1#{name}-\2", text)
    text = re.sub(
        r"<svg[^>]*?viewBox=\"([^\"]+)\"[^>]*>", r'<svg viewBox="\1" role="img" aria-label="@">', text, count=1
    )
    return text.replace('aria-label="@"', f'aria-label="{_escaped(description)}"', 1)


def _escaped(text: str) -> str:
    """Text that may stand in an attribute of an element."""
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
