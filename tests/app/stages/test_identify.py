"""Pseudo labels of a run, beside the true ones where those are known."""

import dataclasses
import json
import shutil

import pytest
import torch
from projects import FAST, fails

from bise_prune.app import cli
from bise_prune.app.progress import StageClock
from bise_prune.app.reading import read_session
from bise_prune.app.stages import identify
from bise_prune.app.stages.identify import identified
from bise_prune.app.stages.ladder import ladder_of
from bise_prune.config import RunConfig
from bise_prune.data import BatchLoader
from bise_prune.metrics.accuracy import predictions
from bise_prune.tuning.ladder import Rung
from bise_prune.tuning.pseudo_labels import PseudoLabels, pseudo_bias_labels


def test_pseudo_labels_of_the_split_that_is_reported_are_its_own_measure(project, tmp_path, capsys):
    rows = (project / "data" / "metadata.csv").read_text().replace(",test,", ",train,")
    shutil.copytree(project / "data", tmp_path / "data")
    (tmp_path / "data" / "metadata.csv").write_text(rows)
    arguments = [project / "net.pt", "--data", tmp_path / "data", "--output", tmp_path / "out", *FAST, "--unsupervised"]
    assert cli.main([str(a) for a in [*arguments, "--json"]]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["evaluated_on"] == "val"
    (bias,) = record["fairness"]["slim"]["biases"]
    pseudo = {group["name"]: group["n"] for group in record["fairness"]["groups"]}
    assert bias["n_aligned"] == sum(n for name, n in pseudo.items() if name[2] == name[-1])
    assert record["data"]["biases"][0]["name"] == "pseudo label"  # not a column of the data
    for group in record["fairness"]["groups"]:
        assert group["label"] == f"{group['name'][2]}, taken for {group['name'][-1]}"


def test_pseudo_labels_need_a_known_architecture_and_mistakes(project, tmp_path, capsys, monkeypatch):
    layers = torch.nn.Flatten(), torch.nn.Linear(192, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)
    torch.save(torch.nn.Sequential(*layers), tmp_path / "whole.pt")
    common = ["--data", project / "data", "--output", tmp_path / "out", "--unsupervised", *FAST]
    line = fails(capsys, tmp_path / "whole.pt", *common, code=2)
    assert "--unsupervised trains a network of the same architecture: name it with --arch" in line

    def faultless(model, train, *others, **options):
        labels = tuple(data.target[:, None] for data in (train, *others))
        return PseudoLabels(
            labels, num_conflicting=0, accuracy=1.0, precision=None, recall=None, agreement=1.0, epochs=1.0, warnings=()
        )

    monkeypatch.setattr("bise_prune.app.stages.identify.pseudo_bias_labels", faultless)
    line = fails(capsys, project / "net.pt", *common)
    assert "the identification model classifies every training sample correctly" in line


@pytest.mark.parametrize("warnings", [(), ("the labels say little",)])
def test_doubted_labels_are_told_at_once_and_change_nothing_without_a_validation_split(
    project, tmp_path, monkeypatch, warnings
):
    """Training samples alone would say nothing against what wrong labels ask for."""

    def found(*arguments, **options):
        assert options["second"] is not arguments[0]
        return dataclasses.replace(pseudo_bias_labels(*arguments, **options), warnings=warnings)

    monkeypatch.setattr(identify, "pseudo_bias_labels", found)
    told = []
    checkpoint, data = project / "net.pt", str(project / "data")
    config = RunConfig(checkpoint=checkpoint, data=data, output=tmp_path / "out", unsupervised=True)
    session = identified(read_session(config, StageClock()), StageClock(told.append))
    first, *others = [event.message for event in told if event.message]
    assert first.startswith(f"{session.pseudo.num_conflicting} training samples of 90 count as bias-conflicting")
    assert others == [f"warning: {text}" for text in warnings]
    assert session.pseudo is not None and session.pseudo.agreement is not None
    train = session.splits.train  # the network knows it by heart:
    train = dataclasses.replace(train, target=predictions(session.dense, BatchLoader(train, 100))[0])
    alone = dataclasses.replace(session, splits=dataclasses.replace(session.splits, train=train, val=None))
    steps = ladder_of(alone, alone.dense).steps
    assert bool(steps[Rung.HEAD].changes) != bool(warnings)
