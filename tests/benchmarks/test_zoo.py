"""The zoo of biased networks, and the contest on it."""

import csv
import itertools
import json
from collections import Counter
from pathlib import Path

import contest
import defaults
import ladder
import numpy as np
import pytest
import torch
import zoo
import zoo_networks

from bise_prune.mask_search import SearchInterrupted
from bise_prune.models import build_model, parse_architecture


def test_the_zoo_has_many_kinds():
    names = [cell.name for cell in zoo.CELLS]
    assert len(set(names)) == len(names) >= 24
    assert {cell.bias for cell in zoo.CELLS} >= {"tint", "corruption", "patch", "background", "mention"}
    assert {cell.num_classes for cell in zoo.CELLS} == {2, 10}
    conflicting = [round(cell.train * (1 - cell.rho)) for cell in zoo.CELLS]
    assert min(conflicting) < 100 and max(conflicting) >= 2000
    assert any(cell.imbalance >= 4 for cell in zoo.CELLS) and any(cell.clean for cell in zoo.CELLS)


def test_networks_of_the_zoo_are_built_by_their_names():
    for arch in {cell.arch for cell in zoo.CELLS if cell.bias != "mention" and not cell.arch.startswith("timm")}:
        cell = next(cell for cell in zoo.CELLS if cell.arch == arch)
        name, arguments = parse_architecture(arch)
        model = build_model(name, cell.num_classes, arguments).eval()
        assert model(torch.zeros(2, 3, cell.side, cell.side)).shape == (2, cell.num_classes)


def test_resnet20_has_the_published_number_of_parameters():
    assert sum(p.numel() for p in zoo_networks.CifarResNet(10).parameters()) == 269_722  # 0.27 million in He et al.


@pytest.mark.parametrize("bias", ["tint", "patch", "corruption", "colour"])
def test_a_bias_is_seen_in_the_images_and_nowhere_else(bias):
    cell = zoo.Cell("test", "resnet18", "animal", bias, 0.9, 8, 1)
    images = torch.randint(0, 200, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for value in (0, 1):
        labels = torch.full((8, 1), value)
        made = zoo._biased(cell, images.clone(), labels, None, "train", (0, 0), torch.Generator().manual_seed(1))
        again = zoo._biased(cell, images.clone(), labels, None, "train", (0, 0), torch.Generator().manual_seed(1))
        other = zoo._biased(cell, images.clone(), 1 - labels, None, "train", (0, 0), torch.Generator().manual_seed(1))
        assert made.shape == images.shape and made.dtype == torch.uint8
        assert torch.equal(made, again) and not torch.equal(made, other)


def test_training_is_biased_and_the_rest_is_not():
    cell = zoo.Cell("test", "resnet18", "cifar10", "tint", 0.9, 1000, 1)
    labels, generator = torch.arange(1000) % 10, torch.Generator().manual_seed(0)
    assert (zoo._bias_labels(cell, labels, "train", generator)[:, 0] == labels).double().mean() == 0.9
    held_out = zoo._bias_labels(cell, labels, "test", generator)[:, 0]
    assert torch.bincount(labels * 10 + held_out).float().std() < 3


def test_a_natural_validation_split_is_biased_as_the_training_split_which_stays(tmp_path, monkeypatch):
    cell = zoo.Cell("test", "resnet18", "animal", "tint", 0.9, 1000, 1)

    def images_of(cell, root, part, amount, generator):
        images = torch.randint(0, 200, (amount, 3, 32, 32), dtype=torch.uint8, generator=generator)
        return images, torch.arange(amount) % 2

    monkeypatch.setattr(zoo, "_plain_images", images_of)
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "val", "test"):
        images, labels = images_of(cell, None, part, 40, generator)
        bias = zoo._bias_labels(cell, labels, part, generator)
        zoo._write_images(cell, None, tmp_path / "test" / "data", part, images, labels, bias, 0, generator)
    for kind in ("natural", "none", "balanced"):
        zoo.prepare_validation(cell, None, tmp_path, kind)
        folder = Path(zoo.config_of(cell, tmp_path, tmp_path / "out", kind).data)
        for part in ("train", "test"):
            before = tmp_path / "test" / "data" / part / "images.npy"
            assert (folder / part / "images.npy").read_bytes() == before.read_bytes()
    natural = tmp_path / "test" / "data-natural" / "val"
    labels, bias = np.load(natural / "attrs.npy").T
    assert len(labels) == 1000 and (labels == bias).mean() == 0.9
    assert {path.name for path in (tmp_path / "test").iterdir()} == {"data", "data-natural", "data-none"}
    assert not (tmp_path / "test" / "data-none" / "val").exists()
    (natural / "images.npy").write_bytes(b"")
    zoo.prepare_validation(cell, None, tmp_path, "natural")
    assert not (natural / "images.npy").read_bytes()  # what is there is not made again


def test_conflicting_texts_of_a_natural_validation_split_are_thinned_out(tmp_path):
    cell = next(cell for cell in zoo.CELLS if cell.bias == "mention")
    (tmp_path / cell.name).mkdir()
    kinds = itertools.product(("train", "val", "test"), "01", "01", range(90))
    rows = [(split, y, b, f"text {i}") for split, y, b, i in kinds]
    with (tmp_path / cell.name / "texts.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("split", "label", "bias", "text"), *rows])
    sizes = {}
    for kind in ("natural", "none"):
        zoo.prepare_validation(cell, None, tmp_path, kind)
        with (tmp_path / cell.name / f"texts-{kind}.csv").open(encoding="utf-8", newline="") as file:
            found = [tuple(row) for row in csv.reader(file)][1:]
        assert [row for row in found if row[0] != "val"] == [row for row in rows if row[0] != "val"]
        sizes[kind] = Counter(row[1:3] for row in found if row[0] == "val")
    assert sizes["natural"] == {("0", "0"): 90, ("1", "1"): 90, ("0", "1"): 10, ("1", "0"): 10}  # rho is .9
    assert not sizes["none"]


def test_the_page_of_the_contest_has_every_cell():
    figures = {"as is": 0.5, "as is, worst group": 0.1, "head on training": 0.6, "head on validation": 0.7, "cost": 0.5}
    figures["commit"] = "aaa"
    cells = {
        "a": {
            "dense": {"1": figures},
            "gradual": {"0.5": figures},
            "paper": {"1": figures},
            "taylor": {"0.5": figures},
            "gradual, head": {"0.5": figures},
        },
        "b": {"dense": {"1": figures}, "gradual": {"0.5": {**figures, "head on validation": 0.9, "commit": "bbb"}}},
    }  # fmt: skip
    summary = {share: contest._summaries(cells, share) for share in ("0.5", "0.33")}
    assert not any(summary["0.33"].values()) and list(summary["0.5"]["gradual"]) == ["dense", "taylor"]
    found = summary["0.5"]["gradual"]["dense"]["head on validation"]
    assert found == {"search": 0.8, "method": 0.7, "ahead": 1, "worst": 0.0}
    about = {"protocol": "p", "command": "c", "commit": "x"}
    page = contest.markdown({**about, "cells": cells, "repeats": {}, "summary": summary})
    assert "| a | 50.0 | 10.0 | 50.0 | 10.0 | 50.0 |" in page
    assert "`c`, at commit bbb gradual at 50% (1 cells); all else at commit aaa, " in page
    assert "| dense | 2 | 50.0 | 50.0 | 0 | +0.0 | 60.0 | 60.0 | 0 | +0.0 | 70.0 | 80.0 | 1 | +0.0 |" in page
    assert "| taylor | 1 | 60.0 | 60.0 | 0 | +0.0 | 70.0 | 70.0 | 0 | +0.0 |" in page
    assert "| b | 50.0 / 70.0 | 50.0 / 90.0 | – | – |" in page and "33 %" not in page and "33%" not in page


def test_the_page_of_the_contest_has_the_seeds_of_close_cells():
    def run(ours, theirs):
        pairs = zip(("gradual, head", "taylor, statistics"), (ours, theirs), strict=True)
        return {method: {"0.5": {"head on validation": value}} for method, value in pairs}

    cells = {"a": run(0.5, 0.4), "b": run(0.5, 0.4)}
    lines = contest._close(cells, {"a~1": run(0.7, 0.6), "a~2": {"gradual, head": {}}, "b~1": {}}, "0.5")
    assert lines[-1] == "| a | 2 | 60.0 ± 14.1 | 50.0 ± 14.1 | 10.0 ± 0.0 |" and not any(
        "| b" in line for line in lines
    )
    assert not contest._close(cells, {}, "0.5")


def test_a_record_holds_what_is_there_and_what_it_had(tmp_path):
    folder = tmp_path / zoo.CELLS[0].name
    folder.mkdir()
    before = json.loads((contest.RECORDS / "contest.json").read_text())
    known = before["cells"][zoo.CELLS[0].name]["taylor, statistics"]
    unsaid = {key: value for key, value in known["0.33"].items() if key != "commit"}
    for share, figures in {
        "0.5": known["0.5"] | {"as is": 0.123456, "commit": "abc"}, "0.33": unsaid | {"as is": 0.2}, "0.9": unsaid,
    }.items():  # fmt: skip
        (folder / f"taylor, statistics-{share}.json").write_text(json.dumps(figures))
    repeat = tmp_path / f"{zoo.CELLS[0].name}~2"
    repeat.mkdir()
    (repeat / "gradual-0.5.json").write_text(json.dumps({"as is": 0.25, "commit": "def"}))
    record = contest._record(tmp_path)
    assert record["repeats"].pop(repeat.name)["gradual"]["0.5"] == {"as is": 0.25, "commit": "def"}
    assert record["repeats"] == {name: row for name, row in before["repeats"].items() if name != repeat.name}
    assert record["cells"].pop(zoo.CELLS[0].name)["taylor, statistics"] == known | {
        "0.5": known["0.5"] | {"as is": 0.1235, "commit": "abc"}, "0.33": known["0.33"] | {"as is": 0.2},
        "0.9": unsaid | {"commit": before["commit"]},
    }  # fmt: skip
    assert record["cells"] == {name: row for name, row in before["cells"].items() if name != zoo.CELLS[0].name}


def test_the_page_of_the_ladder_counts_who_is_ahead():
    def rungs(*unbiased):
        figures = zip(("none", "shift", "norms", "head"), unbiased, strict=True)
        return {rung: {"unbiased_accuracy": value, "worst_group_accuracy": value / 2} for rung, value in figures}

    cells = {
        "a": {"flops_left": 0.5, "dense": rungs(0.5, 0.6, 0.6, 0.9), "slim": rungs(0.7, 0.7, 0.7, 0.8)},
        "b": {"flops_left": 0.25, "dense": rungs(0.5, 0.6, 0.6, 0.7), "slim": rungs(0.504, 0.5, 0.5, 0.8)},
    }
    record = {"protocol": "p", "command": "c", "commit": "x"}
    alone = rungs(0.2, 0.2, 0.4, 0.6) | {
        "pseudo labels": rungs(0.2, 0.2, 0.2, 0.2),
        "doubted": rungs(0.2, 0.1, 0.1, 0.3),
        "identification": {"precision": 0.126, "recall": 0.3, "agreement": 0.504, "is_trusted": False},
    }
    page = ladder.markdown(record | {"cells": cells}, record | {"cells": {"c": alone}})
    assert "| nothing | 50 | 60 | 1 | 1 | 0 | 25 | 30 |" in page
    assert "| + the last layer | 80 | 80 | 1 | 0 | 1 | 40 | 40 |" in page
    assert "| b | 25.0 | 50.0 (25.0) | 50.4 (25.2) | 60.0 (30.0) | 50.0 (25.0) | 70.0 (35.0) | 80.0 (40.0) |" in page
    assert "| c | 20.0 (10.0) | 20.0 (10.0) | 40.0 (20.0) | 60.0 (30.0) |  |  |" in page
    assert "| c, pseudo labels | 20.0 (10.0) | 20.0 (10.0) | 20.0 (10.0) | 20.0 (10.0) | 13 | 50 |" in page
    assert "| c, doubted labels used | 20.0 (10.0) | 10.0 (5.0) | 10.0 (5.0) | 30.0 (15.0) | 13 | 50 |" in page


def test_the_times_of_runs_stand_beside_their_estimates():
    network = {"unbiased_accuracy": 0.5, "worst_group_accuracy": 0.25}
    times = {"search_seconds": 12.4, "estimated_seconds": 11.0, "run_seconds": 40.0, "estimated_run_seconds": 38.6}
    row = {"exit_code": 0, "dense": network, "slim": network, "verdict": "equal", "flops_left": 0.5, "commit": "x"}
    row |= {"latency_ratio": {batch: {"median": 0.5} for batch in ("batch_1", "batch_16")}, "vanilla_epochs": 4.0}
    record = {"cells": {"a": row}, "protocol": "p", "command": "c", "commit": "x"}
    told = {"precision": 0.126, "recall": 0.5, "agreement": 0.3, "warnings": ["two models"]}
    without = {**record, "cells": {"a": row | {"slim": {key: 0.4 for key in network}, "identification": told}}}
    biased = {**record, "cells": {"a": row | {"learned_on": "train", "slim": {key: 0.3 for key in network}}}}
    others = (without, biased, {**record, "cells": {"b": row}})
    assert "## Times" not in defaults.markdown(record, *others)  # of a run that was not estimated
    record["cells"] = {"a": row, "b": row | times}
    times, others = defaults.markdown(record, *others).split("## Times")[1].split("## Without bias labels")
    unsupervised, splits = others.split("## With a biased validation split")
    assert "| a | 50.0 | 25.0 | 50.0 | 25.0 | 40.0 | 40.0 | 13 | 30 | yes |" in unsupervised
    assert "| a | 50.0 (25.0) | 50.0 (25.0) | 50.0 | 30.0 (30.0) | 50.0 | training |  |  |" in splits
    assert "| b | 12 | 11 | 40 | 39 | 4.0 |" in times and "| a |" not in times


def test_a_cell_that_was_interrupted_has_no_figures_and_is_run_again(tmp_path, monkeypatch):
    name = zoo.CELLS[0].name
    (tmp_path / name).mkdir()
    (tmp_path / name / "about.json").write_text('{"cpu_seconds": 1, "epochs": 1}')
    monkeypatch.setattr(zoo, "config_of", lambda *_, **__: None)
    monkeypatch.setattr(defaults, "dry_run", lambda _: {"estimate": {"seconds": 1.0, "run_seconds": 2.0}})
    asked = []

    def interrupted(config):
        asked.append(config)
        raise SearchInterrupted("interrupted")

    monkeypatch.setattr(defaults, "run", interrupted)
    for _ in range(2):
        with pytest.raises(SearchInterrupted):
            defaults.main(["--data-root", str(tmp_path), "--work", str(tmp_path), "--cells", name])
    assert len(asked) == 2 and not (tmp_path / "defaults" / name).exists()
