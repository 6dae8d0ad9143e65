"""The networks of ``--tune norms`` and ``--tune head`` by searches that know these rungs."""

import dataclasses
import json

import pytest
import rungs
from tables import methods
from tables.recorded import Recorded
from tables.settings import setting_of
from tiny_benchmark import case_in

from bise_prune import MaskSet
from bise_prune.tuning.ladder import Ladder, Rung

_RUNGS = [rung.value for rung in Rung]


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


def test_from_clean_weights_masks_and_rungs_are_those_of_the_biased_network(tmp_path, untimed, monkeypatch):
    monkeypatch.setattr(methods, "STRONG", dataclasses.replace(methods.STRONG, epochs=1))
    case = case_in(tmp_path)
    rows = methods.METHODS["rungs-clean"](case)
    assert list(rows) == [f"{name}, {rung}" for name in ("dense", "0.5") for rung in (*_RUNGS, "all")]
    assert rows["dense, none"]["unbiased"] == case.figures(case.untrained().eval())["unbiased"]
    assert rows["0.5, all"]["flops_left"] <= 0.5 and rows["dense, all"]["flops_left"] == 1
    masks = MaskSet.load(case.work / "masks" / "gradual-0.5" / "best.safetensors")
    assert rows["0.5, none"]["flops_left"] == case.figures(case.pruned(masks).model)["flops_left"]


def test_rows_whose_worst_subgroup_is_lower_are_named(tmp_path):
    """Only those that are lower on all seeds alike, and by the search that knows the rung where there is one."""
    figures = {
        "rungs": {"dense, head": (0.9, [70, 72, 71]), "1, head": (0.8, [50, 51, 50]), "0.5, head": (0.9, [60, 80, 70])},
        "rungs-head": {"1, head": (0.91, [71, 73, 72]), "0.33, head": (0.88, [65, 67, 66])},
    }
    for method, rows in figures.items():
        for seed in range(3):
            found = {
                row: {"unbiased": unbiased, "worst_group": worst[seed] / 100} for row, (unbiased, worst) in rows.items()
            }
            about = {"setting": "digits", "size": "small", "rho": 0.95, "method": method, "seed": seed, "rows": found}
            (tmp_path / "digits" / "small").mkdir(parents=True, exist_ok=True)
            (tmp_path / "digits" / "small" / f"{method}-seed{seed}.json").write_text(json.dumps(about))
    told = " ".join(rungs._lower_worst(Recorded(tmp_path), setting_of("digits", "small"), 0.95))
    assert told.strip().endswith("in points: + the last layer, slim, 33% (-5; unbiased -2.0).")


def test_what_clean_weights_give_is_told_with_its_seeds(tmp_path):
    rows = ("dense, none", "dense, head", "dense, all", "0.5, all")
    (tmp_path / "digits" / "small").mkdir(parents=True)
    about = {"setting": "digits", "size": "small", "rho": 0.95, "method": "rungs-clean"}
    for seed in range(2):
        found = {row: {"unbiased": 0.5 + 0.1 * i + 0.02 * seed} for i, row in enumerate(rows)}
        place = tmp_path / "digits" / "small" / f"rungs-clean-seed{seed}.json"
        place.write_text(json.dumps({**about, "seed": seed, "rows": found}))
    told = " ".join(rungs._clean_start(Recorded(tmp_path), setting_of("digits", "small"), 0.95))
    assert "(2 seeds), dense: as they are 51.0 ± 1.4, with the last layer 61.0 ± 1.4" in told
    assert "with all weights 71.0 ± 1.4; with the masks of half of the FLOPs and all weights 81.0 ± 1.4." in told
    assert rungs._clean_start(Recorded(tmp_path), setting_of("biased_mnist", "small"), 0.95) == []


def test_without_norm_layers_there_is_no_row_of_them_and_whole_networks_are_counted(tmp_path):
    (tmp_path / "multi_color_mnist" / "full").mkdir(parents=True)
    about = {"setting": "multi_color_mnist", "size": "full", "rho": None, "method": "rungs"}
    for seed in range(3):
        found = {
            f"{network}, {rung}": {
                "unbiased": 0.5 + (0.1 if rung in ("head", "all") else 0.0) + 0.01 * seed,
                "worst_group": 0.2,
                "flops_left": 1.0 if network == "dense" or (network == "1" and seed) else 0.5,
            }
            for network in rungs._NETWORKS
            for rung in rungs._RUNGS
        }
        place = tmp_path / "multi_color_mnist" / "full" / f"rungs-seed{seed}.json"
        place.write_text(json.dumps({**about, "seed": seed, "rows": found}))
    page = rungs.markdown(Recorded(tmp_path))
    assert "| logit offsets | 51.0 ± 1.0 (20)" in page and "| + the last layer | 61.0" in page
    assert "norm layers |" not in page and "left the whole network in 2 of these seeds" in page
    assert "There is no validation set here" in page


@pytest.mark.parametrize("has_norms", [True, False])
def test_the_readme_has_a_row_a_set_by_the_searches_that_know_the_rungs(tmp_path, has_norms):
    (tmp_path / "digits" / "small").mkdir(parents=True)
    about = {"setting": "digits", "size": "small", "rho": 0.95}
    of_all = {"none": 0.4, "shift": 0.4, "norms": 0.45 if has_norms else 0.4, "head": 0.8, "all": 0.9}
    rows = {
        "rungs": {
            f"{name}, {rung}": {"unbiased": found + 0.01 * (name == "0.5"), "flops_left": 0.5 if name == "1" else 1.0}
            for name in rungs._NETWORKS
            for rung, found in of_all.items()
        },
        "rungs-head": {"0.5, head": {"unbiased": 0.85}},
        "rungs-criteria": {"lamp 0.5, none": {"unbiased": 0.3}, "taylor 0.5, none": {"unbiased": 0.2}},
    }
    for method, found in rows.items():
        for seed in range(2):
            place = tmp_path / "digits" / "small" / f"{method}-seed{seed}.json"
            place.write_text(json.dumps({**about, "method": method, "seed": seed, "rows": found}))
    row, _ = rungs.overview(Recorded(tmp_path))[2:]
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    norms = "45.0 ± 0.0 → 46.0 ± 0.0" if has_norms else "–"
    free, half = ["40.0 ± 0.0", "40.0 ± 0.0", "50 ± 0"], ["41.0 ± 0.0", "30.0 ± 0.0 (LAMP)"]
    assert cells == ["2", *free, *half, norms, "80.0 ± 0.0 → 85.0 ± 0.0", "90.0 ± 0.0 → 91.0 ± 0.0"]
