"""Networks of other than three channels, and with one logit, from the data to the ONNX file."""

import json

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import nn

from bise_prune.app import cli
from bise_prune.models import build_model

NET = """
from torch import nn
class Net(nn.Module):
    def __init__(self, num_classes=2, channels=1):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
        self.head = nn.Linear(8, num_classes)
    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))
"""
FAST = ["--anneal-every", "1", "--head-epochs", "2", "--batch-size", "20", "--device", "cpu", "--round-to", "1"]


def _samples(n, channels, seed):
    """Bars (class 1) and squares, bright or dark by the bias label, which agrees with the class in two of three."""
    rng = np.random.default_rng(seed)
    target = np.arange(n) % 2
    bias = np.where(rng.random(n) < 0.67, target, 1 - target)
    images = rng.integers(0, 60, (n, 10, 10, channels)).astype("uint8")
    for image, y, b in zip(images, target, bias, strict=True):
        part = image[4:6, :] if y else image[2:6, 2:6]
        part[:] = 120 + 100 * b
    return images, np.stack([target, bias], 1)


def _trained(root, monkeypatch, channels, outputs=2):
    (root / "channels_net.py").write_text(NET)
    monkeypatch.chdir(root)
    torch.manual_seed(0)
    model = build_model("channels_net:Net", outputs, {"channels": channels})
    images, labels = _samples(200, channels, 0)
    inputs = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    target = torch.from_numpy(labels[:, 0])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(80):
        logits = model(inputs)
        loss = (
            nn.functional.cross_entropy(logits, target) if outputs == 2
            else nn.functional.binary_cross_entropy_with_logits(logits[:, 0], target.float())
        )  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save(model.state_dict(), root / "net.pt")
    return ["net.pt", "--arch", f"channels_net:Net(channels={channels})", "--output", "out", *FAST]


def _input_of(path):
    (found,) = onnx.load(path).graph.input
    return [dim.dim_value for dim in found.type.tensor_type.shape.dim][1:]


@pytest.mark.parametrize("channels", [1, 5])
def test_arrays_of_as_many_channels(tmp_path, monkeypatch, channels):
    command = _trained(tmp_path, monkeypatch, channels)
    for part, n in (("train", 200), ("valid", 80), ("test", 80)):
        (tmp_path / "data" / part).mkdir(parents=True)
        images, labels = _samples(n, channels, len(part))
        np.save(tmp_path / "data" / part / "images.npy", images)
        np.save(tmp_path / "data" / part / "attrs.npy", labels)
    assert cli.main([*command, "--data", "data", "--image-input"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["data"]["preprocessing"]["channels"] == channels and report["dense"]["accuracy"] > 0.8
    assert _input_of(tmp_path / "out" / "slim.onnx") == [channels, 10, 10]
    assert _input_of(tmp_path / "out" / "slim.images.onnx") == [10, 10, channels]


def _folder(root):
    rows = ["file,label,bias,split"]
    for part, n in (("train", 200), ("val", 80), ("test", 80)):
        images, labels = _samples(n, 1, len(part))
        for i, (image, (y, b)) in enumerate(zip(images, labels, strict=True)):
            Image.fromarray(image[..., 0]).save(root / f"{part}{i}.png")
            rows.append(f"{part}{i}.png,{y},{b},{part}")
    (root / "metadata.csv").write_text("\n".join(rows) + "\n")


def test_grey_files(tmp_path, monkeypatch):
    command = _trained(tmp_path, monkeypatch, 1)
    (tmp_path / "data").mkdir()
    _folder(tmp_path / "data")
    assert cli.main([*command, "--data", "data"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["dense"]["accuracy"] > 0.8 and _input_of(tmp_path / "out" / "slim.onnx") == [1, 10, 10]
    assert any("mean 0.5 and std 0.5 are assumed" in warning for warning in report["warnings"])


def test_one_logit(tmp_path, monkeypatch):
    command = _trained(tmp_path, monkeypatch, 1, outputs=1)
    (tmp_path / "data").mkdir()
    _folder(tmp_path / "data")
    assert cli.main([*command, "--data", "data"]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["dense"]["accuracy"] > 0.8
    assert any("single logit z is read as the logits 0 and z" in warning for warning in report["warnings"])
    (found,) = onnx.load(tmp_path / "out" / "slim.onnx").graph.output
    assert found.type.tensor_type.shape.dim[1].dim_value == 2
