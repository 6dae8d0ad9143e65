"""Figures in the README and in pages are those of the committed records."""

import json
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def record(name):
    return json.loads((ROOT / "benchmarks" / "records" / f"{name}.json").read_text())


def cell(summary, scale=100.0, digits=1):
    return f"{summary['mean'] * scale:.{digits}f} ± {summary['std'] * scale:.{digits}f}"


@pytest.mark.parametrize("folder", [".", "*/*", "*/*/*"])
def test_records_say_how_they_were_made(folder):
    paths = sorted((ROOT / "benchmarks" / "records").glob(f"{folder}/*.json"))
    assert paths
    for path in paths:
        text = path.read_text()
        content = json.loads(text)
        assert {"command", "commit", "date", "seeds", "protocol", "environment"} <= set(content), path
        assert content["command"].startswith("python benchmarks/") and "+changes" not in content["commit"], path
        assert not [word for word in ("/tmp", "/home", "/root", "/work") if word in text], path


def test_demo():
    demo = record("demo")
    for model in ("dense", "slim"):
        assert cell(demo[model]["unbiased_accuracy"]) in README
    for figure in ("sparsity", "flops_left"):
        assert cell(demo[figure]) in README
    assert f"median gain of {demo['gain']['median'] * 100:.1f} points" in README
    assert demo["gain"]["median"] >= 0.15 and min(demo["sparsity"]["values"]) > 0.3
    assert max(demo["seconds"]["values"]) < 120 and demo["peak_memory_bytes"] < 2e9
    assert demo["max_abs_error"] < 1e-9 and demo["onnx_max_abs_error"] < 1e-4


def test_tinted_cifar10():
    table = record("tinted_cifar10")
    page = (ROOT / "docs" / "resnet18.md").read_text()
    for model in ("dense", "slim"):
        for figure in ("unbiased_accuracy", "worst_group_accuracy"):
            assert cell(table[model][figure]) in page
        assert cell(table[model]["flops"], 1e-6) in page
        assert cell(table[model]["params"], 1e-6) in page


@pytest.mark.parametrize(("family", "least"), [("torchvision", 71), ("timm", 10), ("hf", 3)])
def test_removal(family, least):
    rows = record(f"removal_{family}")["rows"]
    exact = [name for name, row in rows.items() if row.get("error", 1.0) <= 1e-9]
    assert len(exact) >= least and not [name for name, row in rows.items() if "failed" in row]
    assert all(max(rows[name]["ways"].values()) <= 1e-6 for name in exact)
    assert all(rows[name]["onnx_error"] < 1e-4 for name in exact if "onnx_error" in rows[name])
    for name in rows:
        assert f"| {name} |" in (ROOT / "docs" / "removal.md").read_text()


def test_removal_cost():
    table = record("removal_cost")
    resnet50 = table["cost"]["resnet50"]
    assert resnet50["seconds"] < 10 and resnet50["peak_over_model"] < 3
    assert f"ResNet-50 take {resnet50['seconds']:.1f} s" in README
    assert f"{resnet50['peak_over_model']:.1f} times the model's memory" in README
    seconds = {depth: table["cost"][f"resnet{depth}"]["seconds"] for depth in (18, 34, 50, 101, 152)}
    assert seconds[152] / seconds[50] < 1.3 * 152 / 50  # linear in depth
    assert all(row["error"] < 1e-9 for row in table["engines"])
    for engine, bounds in (("exact, expand", (0.55, 0.33, 0.18)), ("exact, intersection", (0.70, 0.47, 0.27))):
        rows = [row for row in table["engines"] if (row["engine"], row["placement"]) == (engine, "paper")]
        left = [row["flops_left"] for row in sorted(rows, key=lambda row: row["share_closed"])]
        assert all(share <= bound for share, bound in zip(left, bounds, strict=True))
        percent = [f"{share * 100:.0f}" for share in left]
        assert f"{percent[0]}, {percent[1]} and" in README.replace("\n  ", " ") and f"{percent[2]} %" in README


def test_speedup():
    rows = record("speedup")["rows"]

    def realised(network, multiple):
        found = [row for row in rows if (row["network"], row["round_to"]) == (network, multiple)]
        return statistics.median(t["realised"] for row in found for t in row["times"].values())

    for network, multiples in (("resnet18", (16, 8, 1)), ("simple_convnet", (16, 8, 1))):
        for multiple in multiples:
            assert f"{realised(network, multiple):.2f}".lstrip("0") in README
    assert realised("resnet18", 16) >= 0.9 and realised("simple_convnet", 16) >= 0.89


@pytest.mark.parametrize(("name", "least"), [("simple_convnet", 5), ("mlp", 10)])
def test_search_speed(name, least):
    table = record(f"search_speed_{name}")
    figures = table[name]
    assert figures["times_faster"]["n"] >= 5
    assert figures["times_faster"]["median"] >= least
    assert figures["ours"]["mean"] >= figures["literal"]["mean"] - figures["literal"]["std"]
    page = (ROOT / "docs" / "decisions" / "2026-11-21-search.md").read_text()
    assert cell(figures["times_faster"], 1) in README
    assert cell(figures["times_faster_without_weight_gradients"], 1) in page
    assert cell(figures["literal"]) in README and cell(figures["ours"]) in README
    for step in table["steps"].values():
        assert step["time_ratio"] <= 0.75 and step["memory_ratio"] <= 1.02
        if name == "mlp":
            assert f"{step['time_ratio']:.2f}".lstrip("0") in README


def test_serving():
    measured = record("serving")
    networks = measured["resnet18"], measured["demo"]
    for network in networks:
        for protocol in ("http", "grpc"):
            found = network["no delay"][protocol]
            assert found["ratio"]["n"] >= 5 and cell(found["ratio"], 1) in README
            assert found["dense"]["errors"]["mean"] == found["slim"]["errors"]["mean"] == 0
    assert networks[0]["no delay"]["http"]["ratio"]["mean"] > 2
    assert f"x {networks[1]['alone']['ratio']:.2f} at batch 1" in README


def test_frontier():
    rows = record("frontier")["rows"]
    for name, figures in rows.items():
        method, _, budget = name.partition(", ")
        assert figures["as_is"]["n"] >= 5
        assert cell(figures["as_is"]) in README
        if budget:
            assert max(abs(left - float(budget)) for left in figures["flops_left"]["values"]) < 0.012, name
        if method in ("warm", "descent"):
            assert figures["as_is"]["mean"] > rows[f"m, {budget}"]["as_is"]["mean"]


def test_variants():
    rows = record("variants")["rows"]
    page = (ROOT / "docs" / "variants.md").read_text()
    for name, figures in rows.items():
        assert figures["accuracy"]["n"] >= (5 if name.endswith("*") else 3)
        if not name.endswith(", last epoch"):
            assert f"| {name} | {cell(figures['accuracy'])} |" in page


def test_data_waiting():
    table = record("data_waiting")
    shares = {workers: figures["share"] for workers, figures in table["waiting"].items()}
    assert table["images"] == 10_000 and max(shares.values()) < 0.05
    assert f"{shares['1'] * 100:.1f} %" in README and f"{shares['0'] * 100:.1f} %" in README
    assert f"decoded once ({table['loading_seconds']:.0f} s" in README


def test_removal_of_networks_that_see_their_input():
    rows = record("removal_settled")["rows"]
    worst = max(row["error"] for row in rows.values())
    assert worst <= 1e-9 and min(row["spread"] for row in rows.values()) > 1e-3
    assert f"{len(rows)} networks" in README and f"worst error {worst:.0e}" in README


def test_architectures():
    rows = record("architectures")["rows"]
    told = [name for name, row in rows.items() if row["dense"].get("right") and row["dense"]["max_abs_error"] == 0]
    back = [name for name, row in rows.items() if row["slim"].get("right") and row["slim"]["max_abs_error"] == 0]
    assert len(told) == len(rows) == 82 and f"All {len(told)} of torchvision's classifiers" in README
    assert len(back) >= 81 and not [name for name, row in rows.items() if "failed" in (row["dense"] | row["slim"])]
    page = (ROOT / "docs" / "architectures.md").read_text()
    assert all(f"| {name} |" in page for name in rows)
