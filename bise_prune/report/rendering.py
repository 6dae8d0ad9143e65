"""Templates beside this file, filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from ..files import atomic_path


def write_text(path: Path, template: str, **values: Any) -> None:
    """Fill one of the templates beside this file in."""
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
    }
    with atomic_path(path) as temporary:
        temporary.write_text(environment.get_template(template).render(**values), encoding="utf-8")


def _percent(value: float | None, digits: int = 1) -> str:
    return "undefined" if value is None else f"{100 * value:.{digits}f}"


def _points(value: float | None) -> str:
    return "undefined" if value is None else f"{100 * value:+.1f}"


def _span(interval: Mapping[str, float | None], signed: bool = False) -> str:
    """Bounds of an interval in percent."""
    low, high = interval["low"], interval["high"]
    if low is None or high is None:
        return ""
    return f"[{100 * low:+.1f}, {100 * high:+.1f}]" if signed else f"[{100 * low:.1f}, {100 * high:.1f}]"


def _plain(text: Any) -> str:
    """Text as one line of Markdown that means itself."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", " ".join(str(text).split()))


def _big(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


def _scientific(value: float) -> str:
    return f"{value:.1e}"
