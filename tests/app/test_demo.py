"""The demo, and its checkpoint taken up by the literal command."""

import json
import shutil

import pytest
from projects import fails

from bise_prune.app import cli


@pytest.mark.slow
def test_the_demo_debiases_and_its_checkpoint_knows_its_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--demo", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["slim"]["unbiased_accuracy"] - record["dense"]["unbiased_accuracy"] > 0.08
    (searched,) = [point for point in record["curve"] if point["zeta"] == 0.5]
    assert searched["sparsity"] > 0.25  # of the masks; the widths that are delivered depend on the machine
    shutil.copy("bise-demo/dense.pt", "resnet18.pt")
    # The literal command finds its data by itself; the search is spared by the demo's own masks.
    assert cli.main(["resnet18.pt", "--target-sparsity", "auto", "--masks", "bise-demo/slim/masks.safetensors"]) == 0
    again = json.loads((tmp_path / "resnet18-slim" / "report.json").read_text())
    assert again["slim"]["groups"] == record["slim"]["groups"]


def test_the_demo_does_not_take_another_network_for_its_own(project, tmp_path, capsys):
    shutil.copy(project / "net.pt", tmp_path / "dense.pt")
    line = fails(capsys, "--demo", "--output", tmp_path, code=2)
    assert "dense.pt is another network; choose another folder with --output" in line
