"""A network with a module that adds to its state dict what is no tensor, from the command to the files."""

import json

import pytest
import torch

from bise_prune.app import cli
from bise_prune.checkpoint.networks import load_slim
from bise_prune.data import BatchLoader, load_data
from bise_prune.tuning.vanilla import train_vanilla

CODE = """
from torch import nn
class Versioned(nn.BatchNorm2d):
    version = "2"
    def get_extra_state(self):
        return {"version": self.version}
    def set_extra_state(self, state):
        self.version = state["version"]
def net(num_classes):
    layers = nn.Conv2d(3, 6, 3), Versioned(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), Versioned(8), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""


@pytest.mark.parametrize("rule", ["all --finetune 1", pytest.param("norms", marks=pytest.mark.slow)])
def test_extra_state_that_is_no_tensor(rule, project, tmp_path, monkeypatch, capsys):
    (tmp_path / "versioned_net.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    model = __import__("versioned_net").net(3)
    data = load_data(str(project / "data"), {"mean": [0.5] * 3, "std": [0.25] * 3})
    train_vanilla(model, BatchLoader(data.train, 30), torch.optim.Adam(model.parameters(), lr=0.01), epochs=12)
    torch.save(model.state_dict(), "own.pt")
    command = ["own.pt", "--arch", "versioned_net:net", "--data", project / "data", "--mean", ".5,.5,.5", "--std",
               ".25,.25,.25", "--device", "cpu", "--batch-size", "20", "--round-to", "1", "--steps", "24",
               "--tune", *rule.split(), "--target-flops", "0.6", "--output", "out"]  # fmt: skip
    assert cli.main([str(part) for part in command]) == 0
    assert "'1._extra_state' in own.pt is no tensor and left out" in capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "report.json").read_text())
    assert record["slim"]["flops"] < 0.65 * record["dense"]["flops"]
    slim = load_slim("out/slim.safetensors", __import__("versioned_net").net(3))
    assert slim(torch.zeros(2, 3, 8, 8)).shape == (2, 3)
