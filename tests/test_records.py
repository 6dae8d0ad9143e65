"""Figures in the README are those of the committed records."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def record(name):
    return json.loads((ROOT / "benchmarks" / "records" / f"{name}.json").read_text())


def cell(summary, scale=100.0, digits=1):
    return f"{summary['mean'] * scale:.{digits}f} ± {summary['std'] * scale:.{digits}f}"


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "records").glob("*.json")), ids=lambda path: path.stem)
def test_records_say_how_they_were_made(path):
    content = json.loads(path.read_text())
    assert {"command", "commit", "date", "seeds", "protocol", "environment"} <= set(content)
    assert content["command"].startswith("python benchmarks/") and "+changes" not in content["commit"]
    assert not [word for word in ("/tmp", "/home", "/root", "/work") if word in path.read_text()]


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


def test_multi_color_mnist():
    table = record("multi_color_mnist")
    for system in ("vanilla", "bise_last"):
        for figures in table[system].values():
            assert cell(figures) in README
    assert cell(table["sparsity"]) in README and cell(table["kflops"], 1) in README
    assert all(abs(deviation) < 2 for deviation in table["deviation_in_paper_std"].values())


def test_tinted_cifar10():
    table = record("tinted_cifar10")
    for model in ("dense", "slim"):
        for figure in ("unbiased_accuracy", "worst_group_accuracy"):
            assert cell(table[model][figure]) in README
        assert cell(table[model]["flops"], 1e-6) in README
        assert cell(table[model]["params"], 1e-6) in README
