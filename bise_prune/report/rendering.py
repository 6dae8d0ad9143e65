"""Fills in the Jinja templates of the report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from ..errors import printable
from ..files import atomic_path

FEW_SAMPLES = 30  # figures of smaller subgroups are marked


def write_text(path: Path, template: str, **values: Any) -> None:
    """Fill in a template from the folder ``templates`` and write the text to a file.

    Args:
        path: file to write.
        template: file name of the template.
        values: variables of the template.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("bise_prune", "report/templates"),
        autoescape=jinja2.select_autoescape(("html.jinja",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "pct": _percent,
        "points": _points,
        "big": _big,
        "sci": _scientific,
        "span": _span,
        "plain": _plain,
        "code": _code,
        "ms": milliseconds,
    }
    with atomic_path(path) as temporary:
        temporary.write_text(
            environment.get_template(template).render(**values), encoding="utf-8", errors="backslashreplace"
        )


def _percent(value: float | None, digits: int = 1) -> str:
    """A share in percent."""
    return "undefined" if value is None else f"{100 * value:.{digits}f}"


def _points(value: float | None) -> str:
    """A difference of shares in percentage points, with its sign."""
    return "undefined" if value is None else f"{100 * value:+.1f}"


def _span(interval: Mapping[str, float | None], signed: bool = False) -> str:
    """The bounds of an interval in percent; empty if they are unknown."""
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        return ""
    return f"[{100 * low:+.1f}, {100 * high:+.1f}]" if signed else f"[{100 * low:.1f}, {100 * high:.1f}]"


def _plain(text: Any) -> str:
    """Text on one line, escaped so that Markdown shows it as it is."""
    return re.sub(r"([\\`*\[\]<>|&])", r"\\\1", printable(" ".join(str(text).split())))


def _code(text: Any) -> str:
    """Text as a code span of Markdown, which ends nowhere within it."""
    words = printable(" ".join(str(text).split()))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", words)), default=0))
    space = " " if "`" in words else ""
    return f"{fence}{space}{words}{space}{fence}"


def milliseconds(value: float) -> str:
    """A duration in milliseconds, with three digits after the point below 1 ms."""
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _big(value: float) -> str:
    """A large number with spaces between thousands."""
    return f"{value:,.0f}".replace(",", " ")


def _scientific(value: float) -> str:
    """A number in scientific notation."""
    return f"{value:.1e}"
