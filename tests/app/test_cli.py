"""The command line as a user meets it: one line per mistake."""

import re

import pytest
from projects import FAST, fails


def test_the_literal_command_without_data(project, capsys, monkeypatch):
    monkeypatch.chdir(project)
    line = fails(capsys, "net.pt", "--target-sparsity", "auto", code=2)
    assert "no data to debias on" in line and "--data" in line and "e.g. bise-prune net.pt" in line
    assert not (project / "net-slim").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.pt"], 1, "no checkpoint at none.pt"),
        (["."], 1, "no checkpoint at ."),
        (["--demo", "--masks", "m"], 2, "--demo has settings of its own; it does not take --masks"),
        (["--demo", "--output", "/proc/nowhere"], 2, "cannot write to /proc/nowhere"),
        (["net.pt", "--seed", "17000000000000"], 2, "seed = 17000000000000 is out of range"),
        (["net.pt", "--data", "x" * 5000], 1, "no folder or file at"),
        ([], 2, "give either a checkpoint or --demo"),
        (["net.pt", "--demo"], 2, "give either a checkpoint or --demo"),
        (["net.pt", "--sparsity", "0.5"], 2, "unrecognized arguments: --sparsity 0.5"),
        (["net.pt", "--target-sparsity", "most"], 2, "neither 'auto' nor a number"),
        (["net.pt", "--target-sparsity", "1.5"], 2, "target_sparsity = 1.5 is out of range"),
        (["net.pt", "--anneal-every", "0"], 2, "anneal_every = 0 is out of range"),
        (["net.pt", "--data", "nowhere"], 1, "no folder or file at 'nowhere'"),
        (["net.pt", "--data", "data", "--device", "tpu"], 2, "device = 'tpu' is out of range"),
        (["net.pt", "--data", "data", "--arch", "resnet81"], 2, "did you mean resnet18"),
        (["net.pt", "--data", "data", "--arch", "resnet18"], 1, "do not fit 'resnet18'"),
        (["net.pt", "--data", "data", "--masks", "none"], 1, "no mask file at none"),
        (["net.pt", "--data", "data", "--target-sparsity", "0.995"], 1, "cannot be reached .* the most is 0."),
        (["net.pt", "--data", "data", "--output", "net.pt"], 2, "is a file; choose a folder"),
        (["data/0.png", "--data", "data"], 1, "is no checkpoint: neither safetensors nor"),
    ],
)
def test_mistakes_are_one_line(project, capsys, monkeypatch, arguments, code, message):
    monkeypatch.chdir(project)
    before = sorted(project.rglob("*"))
    assert re.search(message, fails(capsys, *arguments, code=code))
    assert sorted(project.rglob("*")) == before  # nothing half written


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--target-flops", "1.5"], "target_flops = 1.5"),
        (["--target-flops", "0.5", "--target-sparsity", "0.5"], "give one target"),
        (["--joins", "scatter"], "invalid choice: 'scatter'"),
        (["--round-to", "0"], "round_to = 0"),
        (["--round-to", "many"], "'many' is neither 'auto' nor an integer"),
        (["--round-fill", "best", "--round-to", "-4"], "round_to = -4"),
    ],
)
def test_wrong_targets_and_roundings_are_named(project, capsys, options, complaint):
    line = fails(capsys, project / "net.pt", "--data", project / "data", *options, code=2)
    assert complaint in line


def test_settings_that_contradict_each_other_are_refused(project, tmp_path, capsys):
    for extra, message in (
        (["--targets", "0.3,x"], "no list of numbers"),
        (["--targets", "0.3", "--target-flops", "0.5"], "give one target"),
        (["--criterion", "random"], "criterion 'random' only ranks: give a target"),
        (["--select", "median"], "invalid choice: 'median'"),
        (["--resume"], "nothing to resume"),
        (["--finetune", "-1"], "finetuning epochs = -1"),
        (["--layer-floor", "1"], "layer_floor = 1.0"),
        (["--unsupervised", "--probe"], "--probe needs validation and test data with true bias labels"),
    ):
        line = fails(
            capsys, project / "net.pt", "--data", project / "data", "--output", tmp_path / "o", *FAST, *extra, code=2
        )
        assert message in line
    assert not (tmp_path / "o").exists()
