"""The programs of tools/."""

import json

import pytest
import torch
from cases import images, network, random_masks
from projects import tool

from bise_prune import MaskSet, export_onnx, gate_sites, prune
from bise_prune.checkpoint import Checkpoint, save_checkpoint
from bise_prune.checkpoint.networks import save_slim
from bise_prune.models import build_model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    model = build_model("resnet18", 10).eval()
    dense = Checkpoint(model.state_dict(), arch="resnet18", num_classes=10, preprocessing={"size": [32, 32]})
    save_checkpoint(folder / "dense.pt", dense)
    inputs = images(size=32)
    save_slim(folder / "slim.safetensors", prune(model, random_masks(model, inputs, "paper"), inputs).model, dense)
    return [str(folder / "dense.pt"), str(folder / "slim.safetensors")]


def test_flops_report(checkpoints, capsys, monkeypatch):
    flops_report = tool("flops_report", monkeypatch)
    assert flops_report.main([*checkpoints, "--json"]) == 0
    dense, slim = json.loads(capsys.readouterr().out)["models"]
    assert (dense["params"], dense["flops"]) == (11_181_642, 37_118_464)
    assert sum(dense["flops_by_layer"].values()) == dense["flops"]
    assert slim["flops"] < dense["flops"] and sum(slim["flops_by_layer"].values()) == slim["flops"]
    assert set(slim["flops_by_layer"]) == set(dense["flops_by_layer"])
    assert flops_report.main(checkpoints) == 0
    table = capsys.readouterr().out
    assert "37,118,464" in table and "1 multiply-accumulate" in table and "layer1.0.conv1" in table


def test_sparsity_report(checkpoints, capsys, monkeypatch):
    sparsity_report = tool("sparsity_report", monkeypatch)
    assert sparsity_report.main([*checkpoints, "--json"]) == 0
    dense, slim = json.loads(capsys.readouterr().out)["models"]
    assert dense["sparsity"] == 0 and slim["sparsity"] == 1 - slim["params"] / dense["params"] > 0.1
    assert dense["layers"]["conv1"] == {"channels": 64, "params": 9408}
    assert sparsity_report.main(checkpoints) == 0
    assert "sparsity" in capsys.readouterr().out


@pytest.mark.slow
def test_latency_report(checkpoints, capsys, monkeypatch):
    latency_report = tool("latency_report", monkeypatch)
    assert latency_report.main([*checkpoints, "--runs", "5", "--batch-sizes", "1", "2", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [(m["runtime"], m["batch_size"]) for m in record["measurements"]] == [
        ("torch", 1), ("torch", 2), ("onnxruntime", 1), ("onnxruntime", 2),
    ]  # fmt: skip
    for measurement in record["measurements"]:
        dense, slim = measurement["models"]
        assert dense["ratio"] == 1 and slim["ratio"] > 0
        assert slim["p10_ms"] <= slim["median_ms"] <= slim["p90_ms"]


@pytest.mark.slow
def test_latency_report_of_onnx_files(tmp_path, capsys, monkeypatch):
    latency_report = tool("latency_report", monkeypatch)
    for size in (8, 16):
        export_onnx(network("simple_convnet"), tmp_path / f"{size}.onnx", images(size=size))
    files = [str(tmp_path / f"{size}.onnx") for size in (8, 16)]
    assert latency_report.main([*files, "--runs", "20", "--json"]) == 0
    (measured,) = json.loads(capsys.readouterr().out)["measurements"]
    small, large = measured["models"]
    assert measured["runtime"] == "onnxruntime" and small["ratio_low"] == small["ratio_high"] == 1
    assert large["ratio_low"] <= large["ratio"] <= large["ratio_high"] and large["p99_ms"] >= large["median_ms"]
    assert latency_report.main([*files, "--runs", "5"]) == 0
    assert "[" in capsys.readouterr().out
    for arguments, complaint in (
        ([files[0], "net.pt"], "give one or the other"),
        ([*files, "--runtimes", "torch"], "for torch give the checkpoints"),
        ([*files, "--runtimes", "tensorrt"], "tensorrt runs on CUDA alone"),
    ):
        assert latency_report.main(arguments) == 2
        assert complaint in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_latency_report_does_not_fall_back_to_the_cpu(checkpoints, capsys, monkeypatch):
    assert tool("latency_report", monkeypatch).main([*checkpoints, "--devices", "cuda"]) == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err
    for runtime in ("onnxruntime", "tensorrt"):
        options = ["--devices", "cuda", "--runtimes", runtime]
        assert tool("latency_report", monkeypatch).main([*checkpoints, *options]) == 2
        assert "ExecutionProvider" in capsys.readouterr().err


def test_tools_say_what_is_wrong_in_one_line(checkpoints, capsys, monkeypatch):
    flops_report = tool("flops_report", monkeypatch)
    assert flops_report.main(["none.pt"]) == 1
    assert capsys.readouterr().err == "error: no checkpoint at none.pt\n"
    assert flops_report.main([checkpoints[0], "--shape", "1,32,32"]) == 1
    assert "pass --shape" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["flops_report", "sparsity_report", "latency_report"])
def test_tools_read_slim_files_of_users_classes(tmp_path, capsys, monkeypatch, name):
    (tmp_path / "users_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, num_classes=2):\n"
        "        super().__init__()\n"
        "        self.features = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
        "        self.head = nn.Linear(8, num_classes)\n"
        "    def forward(self, x):\n"
        "        return self.head(self.features(x))\n"
    )
    monkeypatch.chdir(tmp_path)
    model, inputs = build_model("users_net:Net", 3).eval(), torch.rand(2, 1, 8, 8)
    masks = MaskSet({site.name: torch.arange(8.0) - 3.5 for site in gate_sites(model, inputs)})
    result = prune(model, masks, inputs)
    about = Checkpoint({}, arch="users_net:Net", num_classes=3, preprocessing={"channels": 1, "size": [8, 8]})
    save_slim("known.safetensors", result.model, about, result.plan)
    save_slim("unknown.safetensors", result.model, plan=result.plan)
    program = tool(name, monkeypatch)
    flags = ["--shape", "1,8,8", "--json"]
    assert program.main(["known.safetensors", "unknown.safetensors", "--arch", "users_net:Net", *flags]) == 0
    assert len(json.loads(capsys.readouterr().out)["models"]) == 2
    assert program.main(["known.safetensors", *flags]) == 1
    assert "pass --arch users_net:Net" in capsys.readouterr().err
