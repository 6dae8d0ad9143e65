"""The networks of ``--tune norms`` and ``--tune head`` by searches that know these rungs."""

import pytest
from tables import methods
from tiny_benchmark import case_in

from bise_prune import MaskSet
from bise_prune.tuning.ladder import Ladder


@pytest.mark.parametrize("rung", ["norms", "head"])
@pytest.mark.parametrize("helps", [True, False])
def test_the_search_starts_from_trained_norms_where_that_helps(tmp_path, untimed, monkeypatch, rung, helps):
    monkeypatch.setattr(methods, "SHARES", (0.5,))
    monkeypatch.setattr(Ladder, "_is_better", lambda self, before, after, groups: helps)
    case = case_in(tmp_path)
    rows = methods.METHODS[f"rungs-{rung}"](case)
    assert list(rows) == [f"1, {rung}", f"0.5, {rung}"] and rows[f"0.5, {rung}"]["flops_left"] <= 0.5
    masks = {file.parent.name: MaskSet.load(file) for file in (case.work / "masks").glob("*/best.safetensors")}
    name = ("gradual" if rung == "norms" else "refit-head") + ("-trained" if helps else "")
    assert masks.keys() == {f"{name}-1", f"{name}-0.5"}
    assert all(found.trained_before == helps for found in masks.values())
