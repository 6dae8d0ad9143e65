"""A network with layer norms, from the command with gates on its stream to the files."""

import json

import numpy as np
import onnxruntime
import pytest
import torch

from bise_prune.app import cli
from bise_prune.data import BatchLoader, load_data
from bise_prune.tuning.vanilla import train_vanilla

CODE = """
import torch
from torch import nn
class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 24), nn.Linear(24, width)
    def forward(self, x):
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))
class StreamNet(nn.Module):
    def __init__(self, num_classes=3, width=16):
        super().__init__()
        self.patches, self.places = nn.Conv2d(3, width, 2, 2), nn.Parameter(torch.randn(1, 16, width) * 0.1)
        self.blocks, self.norm = nn.Sequential(Block(width), Block(width)), nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)
    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(x)).mean(1))
"""


@pytest.mark.parametrize("placement", ["all", "streams"])
def test_streams_from_the_command_to_the_files(placement, project, tmp_path, monkeypatch):
    (tmp_path / "stream_net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    model = __import__("stream_net").StreamNet()
    data = load_data(str(project / "data"), {"mean": [0.5] * 3, "std": [0.25] * 3})
    train_vanilla(model, BatchLoader(data.train, 30), torch.optim.Adam(model.parameters(), lr=0.01), epochs=12)
    torch.save(model.state_dict(), "own.pt")
    command = ["own.pt", "--arch", "stream_net:StreamNet", "--data", project / "data", "--mean", ".5,.5,.5", "--std",
               ".25,.25,.25", "--device", "cpu", "--batch-size", "20", "--round-to", "1", "--placement", placement,
               "--target-flops", "0.4", "--steps", "24", "--output", "out"]  # fmt: skip
    assert cli.main([str(part) for part in command]) == 0
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["slim"]["flops"] < 0.5 * record["dense"]["flops"]  # norms count as well
    assert record["verification"]["slim_against_masked"]["passed"] and record["open_norms"] == (
        3 if placement == "streams" else 0
    )
    for name in ("README.md", "report.html"):
        told = "3 layer norms compute mean and variance over open channels" in (tmp_path / "out" / name).read_text()
        assert told == (placement == "streams")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "slim.onnx")
    (output,) = session.run(None, {session.get_inputs()[0].name: np.zeros((2, 3, 8, 8), np.float32)})
    assert output.shape == (2, 3)
