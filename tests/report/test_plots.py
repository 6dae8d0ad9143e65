"""Plots in the colours of their page."""

import re

from bise_prune.report.plots import Line, plot


def test_a_plot_is_drawn_in_the_colours_of_its_page():
    lines = [Line("a", [0, 1, None], [1.0, 2.0, 3.0]), Line("b", [0, 1], [None, 1.0])]
    drawn = plot("one", 'says "this"', lines, "x", "y", mark_x=(0.5, "here"))
    other = plot("two", "that", lines, "x", "y")
    assert drawn.startswith("<svg") and 'aria-label="says &quot;this&quot;"' in drawn
    assert "currentColor" in drawn and "#010203" not in drawn and "http://matplotlib" not in drawn
    ids = [set(re.findall(r'id="([^"]+)"', svg)) for svg in (drawn, other)]
    assert ids[0] and not ids[0] & ids[1]
    assert len(drawn) < 40_000
