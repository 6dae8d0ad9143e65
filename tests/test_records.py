"""Records hold what they must hold, stay within bounds, and are shown on a page.

tests/test_documentation.py holds pages and records together; nothing here depends on a sentence or on a page's name.
"""

import json
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "benchmarks" / "records"
PAGES = "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))])


def record(name):
    return json.loads((RECORDS / f"{name}.json").read_text())


def shown(summary, scale=100.0, digits=1):
    """Whether a page shows a figure with its spread."""
    return f"| {summary['mean'] * scale:.{digits}f} ± {summary['std'] * scale:.{digits}f} |" in PAGES


@pytest.mark.parametrize("folder", [".", "*/*", "*/*/*"])
def test_records_say_how_they_were_made(folder):
    paths = sorted(RECORDS.glob(f"{folder}/*.json"))
    assert paths
    for path in paths:
        text = path.read_text()
        content = json.loads(text)
        assert {"command", "commit", "date", "seeds", "protocol", "environment"} <= set(content), path
        assert content["command"].startswith("python benchmarks/") and "+changes" not in content["commit"], path
        assert not [word for word in ("/tmp", "/home", "/root", "/work") if word in text], path


def test_demo():
    demo = record("demo")
    assert len(demo["seeds"]) >= 5 and demo["gain"]["n"] == len(demo["seeds"])
    for model in ("dense", "slim"):
        assert shown(demo[model]["unbiased_accuracy"]) and shown(demo[model]["worst_group_accuracy"])
    assert shown(demo["sparsity"]) and shown(demo["flops_left"])
    assert demo["gain"]["median"] >= 0.15 and min(demo["sparsity"]["values"]) > 0.3
    assert max(demo["seconds"]["values"]) < 120 and demo["peak_memory_bytes"] < 2e9
    assert demo["max_abs_error"] < 1e-9 and demo["onnx_max_abs_error"] < 1e-4


def test_tinted_cifar10():
    table = record("tinted_cifar10")
    assert len(table["seeds"]) >= 3
    for model in ("dense", "slim"):
        assert shown(table[model]["unbiased_accuracy"]) and shown(table[model]["worst_group_accuracy"])
        assert shown(table[model]["flops"], 1e-6) and shown(table[model]["params"], 1e-6)


@pytest.mark.parametrize(("family", "least"), [("torchvision", 80), ("timm", 14), ("hf", 6)])
def test_removal(family, least):
    rows = record(f"removal_{family}")["rows"]
    exact = [name for name, row in rows.items() if row.get("error", 1.0) <= 1e-9]
    assert len(exact) >= least and not [name for name, row in rows.items() if "failed" in row]
    assert all(max(rows[name]["ways"].values()) <= 1e-6 for name in exact)
    assert all(rows[name]["onnx_error"] < 1e-4 for name in exact if "onnx_error" in rows[name])
    assert all(f"| {name} |" in PAGES for name in rows)


def test_removal_of_networks_that_see_their_input():
    rows = record("removal_settled")["rows"]
    assert len(rows) >= 16
    assert max(row["error"] for row in rows.values()) <= 1e-9 and min(row["spread"] for row in rows.values()) > 1e-3


def test_releases():
    """What the layout changed did not change results, nor cost time or memory."""
    releases = record("releases")
    programs = releases["programs"]
    assert programs["--help"]["ratio"]["n"] >= 3
    for name, program in programs.items():
        assert name == "--help" or program["results_equal"], name
        assert program["ratio"]["median"] < 1.1, name
        memory = [program[version]["peak_memory_bytes"]["median"] for version in ("former", "present")]
        assert memory[1] < 1.1 * memory[0], name
    assert releases["structure"]["present"]["files_at_the_top"] == 7


def test_removal_cost():
    table = record("removal_cost")
    resnet50 = table["cost"]["resnet50"]
    assert resnet50["seconds"] < 10 and resnet50["peak_over_model"] < 3
    seconds = {depth: table["cost"][f"resnet{depth}"]["seconds"] for depth in (18, 34, 50, 101, 152)}
    assert seconds[152] / seconds[50] < 1.3 * 152 / 50  # linear in depth
    assert all(row["error"] < 1e-9 for row in table["engines"])
    for engine, bounds in (("exact, expand", (0.55, 0.33, 0.18)), ("exact, intersection", (0.70, 0.47, 0.27))):
        rows = [row for row in table["engines"] if (row["engine"], row["placement"]) == (engine, "paper")]
        left = [row["flops_left"] for row in sorted(rows, key=lambda row: row["share_closed"])]
        assert all(share <= bound for share, bound in zip(left, bounds, strict=True))


def test_speedup():
    rows = record("speedup")["rows"]
    for network, least in (("resnet18", 0.9), ("simple_convnet", 0.89)):
        found = [row for row in rows if (row["network"], row["round_to"]) == (network, 16)]
        assert statistics.median(t["realised"] for row in found for t in row["times"].values()) >= least


@pytest.mark.parametrize(("name", "least"), [("simple_convnet", 5), ("mlp", 10)])
def test_search_speed(name, least):
    table = record(f"search_speed_{name}")
    found = table[name]
    assert found["times_faster"]["n"] >= 5 and found["times_faster"]["median"] >= least
    assert found["ours"]["mean"] >= found["literal"]["mean"] - found["literal"]["std"]
    assert shown(found["times_faster"], 1) and shown(found["times_faster_without_weight_gradients"], 1)
    assert shown(found["literal"]) and shown(found["ours"])
    for step in table["steps"].values():
        assert step["time_ratio"] <= 0.75 and step["memory_ratio"] <= 1.02


def test_serving():
    measured = record("serving")
    for name in ("resnet18", "demo"):
        for protocol in ("http", "grpc"):
            found = measured[name]["no delay"][protocol]
            assert found["ratio"]["n"] >= 5 and shown(found["ratio"], 1)
            assert found["dense"]["errors"]["mean"] == found["slim"]["errors"]["mean"] == 0
    assert measured["resnet18"]["no delay"]["http"]["ratio"]["mean"] > 2


def test_frontier():
    rows = record("frontier")["rows"]
    for name, found in rows.items():
        method, _, budget = name.partition(", ")
        assert found["as_is"]["n"] >= 5
        assert shown(found["as_is"]) and shown(found["finetuned"])
        if budget:
            assert max(abs(left - float(budget)) for left in found["flops_left"]["values"]) < 0.012, name
        if method in ("warm", "descent"):
            assert found["as_is"]["mean"] > rows[f"m, {budget}"]["as_is"]["mean"]


def test_variants():
    for name, found in record("variants")["rows"].items():
        assert found["accuracy"]["n"] >= (5 if name.endswith("*") else 3)
        if not name.endswith(", last epoch"):
            assert shown(found["accuracy"])


def test_data_waiting():
    table = record("data_waiting")
    assert table["images"] == 10_000 and max(found["share"] for found in table["waiting"].values()) < 0.05


def test_architectures():
    rows = record("architectures")["rows"]
    told = [name for name, row in rows.items() if row["dense"].get("right") and row["dense"]["max_abs_error"] == 0]
    back = [name for name, row in rows.items() if row["slim"].get("right") and row["slim"]["max_abs_error"] == 0]
    assert len(told) == len(rows) == 82 and len(back) >= 81
    assert not [name for name, row in rows.items() if "failed" in (row["dense"] | row["slim"])]
    assert all(f"| {name} |" in PAGES for name in rows)
