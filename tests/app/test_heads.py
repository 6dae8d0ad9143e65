"""Networks that end in more than a linear layer, from the command to the servers' files."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from projects import fails

from bise_prune.app import cli
from bise_prune.data import BatchLoader, load_data
from bise_prune.tuning.vanilla import train_vanilla

CODE = """
from torch import nn
class Net(nn.Module):
    def __init__(self, num_classes=3):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.classifier = nn.Conv2d(12, num_classes, 1)
    def logits(self, x):
        return self.classifier(self.features(x)).mean((2, 3))
    def forward(self, x):
        return self.logits(x).{end}(1)
"""


@pytest.mark.parametrize("end", ["log_softmax", "softmax"])
def test_a_pooled_convolution_and_a_softmax(project, tmp_path, monkeypatch, capsys, end):
    module = f"net_with_{end}"
    (tmp_path / f"{module}.py").write_text(CODE.format(end=end))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = __import__(module).Net()
    model.forward = model.logits
    data = load_data(str(project / "data"), {"mean": [0.5] * 3, "std": [0.25] * 3})
    train_vanilla(model, BatchLoader(data.train, 30), torch.optim.Adam(model.parameters(), lr=0.01), epochs=12)
    torch.save(model.state_dict(), "own.pt")
    command = ["own.pt", "--arch", f"{module}:Net", "--data", project / "data", "--mean", ".5,.5,.5", "--std",
               ".25,.25,.25", "--device", "cpu", "--batch-size", "20", "--round-to", "1"]  # fmt: skip
    for extra in (["--tune", "head"], ["--refit", "head"], *([["--finetune", "1"]] if end == "softmax" else [])):
        line = fails(capsys, *command, "--output", "refused", *extra, code=2 if "--tune" not in extra else 1)
        assert "linear" in line or "softmax" in line
    assert cli.main([str(part) for part in [*command, "--output", "out", "--target-flops", "0.6", "--probe"]]) == 0
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["ladder"] is None and record["verification"]["slim_against_masked"]["passed"]
    assert record["slim"]["flops"] < 0.7 * record["dense"]["flops"]
    assert (tmp_path / "out" / "report.html").exists() and "If a little more" not in (
        tmp_path / "out" / "README.md"
    ).read_text()
    session = onnxruntime.InferenceSession(tmp_path / "out" / "slim.onnx")
    (output,) = session.run(None, {session.get_inputs()[0].name: np.zeros((2, 3, 8, 8), np.float32)})
    assert np.allclose((np.exp(output) if end == "log_softmax" else output).sum(1), 1, atol=1e-5)
