"""A dry run tells what was understood and writes nothing."""

import json

import torch
from projects import ARCHITECTURE, FAST, fails

from bise_prune.app import cli


def test_a_dry_run_tells_what_was_understood_and_writes_nothing(project, tmp_path, capsys):
    common = [project / "net.pt", "--data", project / "data", "--output", tmp_path / "none", "--dry-run", *FAST]
    before = sorted(path.name for path in project.iterdir())
    assert cli.main([str(argument) for argument in (*common, "--json")]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["data"]["samples"] == {"train": 90, "val": 45, "test": 45}
    (bias,) = record["biases"]
    counts, weights = torch.tensor(bias["counts"]), torch.tensor(bias["mean_weights"])
    assert int(counts.sum()) == 90 and bias["aligned"] == [0, 1, 2]
    assert bias["num_conflicting"] == 90 - int(counts.diagonal().sum())
    assert torch.allclose(weights, 90 / (9 * counts.clamp(min=1).double()).float(), atol=1e-5)  # B.8
    assert [gate["channels"] for gate in record["gates"]] == ARCHITECTURE["widths"]
    assert record["estimate"]["epochs"] == 10 and 0 < record["estimate"]["seconds"] < 60
    assert cli.main([str(argument) for argument in common]) == 0
    shown = capsys.readouterr().out
    assert "What was understood" in shown and "2 masks over 14 channels" in shown and "b = 2" in shown
    assert not (tmp_path / "none").exists() and sorted(path.name for path in project.iterdir()) == before
    torch.save({"a": 1}, tmp_path / "bad.pt")
    assert "holds no state dict" in fails(capsys, tmp_path / "bad.pt", "--dry-run", "--data", project / "data")
