"""Records are of the settings as they are, and full-size figures agree with the paper."""

import statistics

import pytest
from paths import ROOT
from tables import finetunings
from tables.costs import power_law
from tables.paper import EXPLAINED, TABLES, table_of
from tables.recorded import Recorded, Where
from tables.settings import setting_of

RECORDED = Recorded(ROOT / "benchmarks" / "records")


def test_records_are_of_the_settings_as_they_are():
    for by_seed in RECORDED.runs.values():
        for record in by_seed.values():
            assert record["protocol"] == setting_of(record["setting"], record["size"]).protocol


def test_power_law():
    assert power_law([1, 10, 100], [2, 20, 200]) == pytest.approx((2, 1))


def test_full_size_agrees_with_the_paper():
    checked = 0
    for table in TABLES:
        for row in table.rows:
            values = RECORDED.values(Where(table.setting, "full", row.rho, row.method, row.row), row.key)
            if len(values) >= 3:  # fewer say too little
                far = abs(statistics.fmean(values) * row.scale - row.mean) > 2 * row.std
                assert far == ((table.name, row.label) in EXPLAINED), row.label
                checked += 1
    assert checked >= 10


def test_the_explanation_of_what_is_far_from_the_paper_holds():
    """Weights for two groups come to all of the paper's finetuned figures, by the same extracted networks."""
    rows = [row for row in table_of("7").rows if row.row == "finetuned"]
    assert len(rows) == 5
    for row in rows:
        where = Where("multi_color_mnist", "full", 0.0, "finetuned-any", f"{finetunings.EPOCHS} epochs")
        values = RECORDED.values(where, row.key)
        assert len(values) >= 3
        assert abs(100 * statistics.fmean(values) - row.mean) <= 2 * row.std + 0.05, row.label  # + what rounding hides
