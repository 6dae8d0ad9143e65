"""A dry run tells what was understood and writes nothing."""

import json
import shutil

import pytest
import torch
from projects import ARCHITECTURE, FAST, fails

from bise_prune.app import cli, estimate
from bise_prune.app.progress import StageClock
from bise_prune.app.reading import read_session
from bise_prune.config import RunConfig, SearchConfig


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
    assert record["estimate"]["run_seconds"] > record["estimate"]["seconds"]
    assert cli.main([str(argument) for argument in common]) == 0
    shown = capsys.readouterr().out
    assert "What was understood" in shown and "2 masks over 14 channels" in shown and "b = 2" in shown
    assert not (tmp_path / "none").exists() and sorted(path.name for path in project.iterdir()) == before
    torch.save({"a": 1}, tmp_path / "bad.pt")
    assert "holds no state dict" in fails(capsys, tmp_path / "bad.pt", "--dry-run", "--data", project / "data")


def test_a_dry_run_of_what_searches_nothing_takes_no_time(project, tmp_path, capsys):
    command = [project / "net.pt", "--data", project / "data", "--output", tmp_path / "none", "--dry-run", "--json"]
    assert cli.main([str(a) for a in [*command, "--criterion", "magnitude", "--target-sparsity", "0.3"]]) == 0
    assert json.loads(capsys.readouterr().out)["estimate"] == {
        "epochs": 0, "steps_per_epoch": 0, "seconds": 0.0, "run_seconds": 0.0,
    }  # fmt: skip


def test_many_subgroups_are_shown_by_alignment_alone(project, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(project / "data", data)
    lines = (data / "metadata.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    for i, row in enumerate(rows):  # many values of the bias
        row[1] = row[0] if i % 3 else str(3 + i % 50)
    (data / "metadata.csv").write_text("\n".join([lines[0], *map(",".join, rows)]) + "\n")
    command = [project / "net.pt", "--data", data, "--output", tmp_path / "none", "--dry-run"]
    assert cli.main([str(a) for a in command]) == 0
    shown = capsys.readouterr().out
    assert "conflicting" in shown and "b = 2" not in shown.split("aligned with")[1].split("\n")[0]


def test_a_dry_run_carries_a_plan_out(done, tmp_path, capsys):
    root, _ = done
    command = [root / "net.pt", "--data", root / "data", "--output", tmp_path / "out", "--device", "cpu", "--dry-run"]
    assert cli.main([str(part) for part in [*command, "--plan", root / "out" / "plan.json"]]) == 0
    plan = json.loads((root / "out" / "plan.json").read_text())
    (tmp_path / "plan.json").write_text(json.dumps(plan | {"fingerprint": "0" * 64}))
    capsys.readouterr()
    assert "plan" in fails(capsys, *command, "--plan", tmp_path / "plan.json")


@pytest.mark.parametrize(("method", "epochs", "passes"), [("paper", "auto", 4), ("auto", 3, 10), ("auto", "auto", 13)])
def test_the_time_in_which_pseudo_labels_are_found_counts(project, tmp_path, monkeypatch, method, epochs, passes):
    """Two networks; three forward passes a step, one for the labels, and looks where the moment is left to them."""
    monkeypatch.setattr(estimate, "_time_of_forward", lambda session, loader: float(session.config.batch_size))

    def estimated(unsupervised):
        checkpoint, data = project / "net.pt", str(project / "data")
        more = {"identification_epochs": epochs, "search": SearchConfig(method=method), "unsupervised": unsupervised}
        session = read_session(
            RunConfig(checkpoint=checkpoint, data=data, output=tmp_path / "none", **more), StageClock()
        )
        return estimate.seconds_of_identification(session)

    assert estimated(True) == 2 * passes * 90 and estimated(False) == 0
