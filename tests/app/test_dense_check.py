"""A dense network that does not work at all is told before the search."""

import dataclasses
import shutil

import torch
from projects import FAST, fails

from bise_prune import load_model
from bise_prune.app import cli
from bise_prune.checkpoint import save_checkpoint


def changed(project, tmp_path, change):
    """The project's network with other weights of its classifier head."""
    model, about = load_model(project / "net.pt")
    with torch.no_grad():
        change(model.head)
    save_checkpoint(tmp_path / "net.pt", dataclasses.replace(about, state=model.state_dict()))
    return [tmp_path / "net.pt", "--data", project / "data", "--output", tmp_path / "out", *FAST]


def test_classes_in_another_order_are_named(project, tmp_path, capsys):
    def rotated(head):
        head.weight.copy_(head.weight.roll(1, 0))
        head.bias.copy_(head.bias.roll(1, 0))

    line = fails(capsys, *changed(project, tmp_path, rotated))
    assert "the dense network does no better than chance" in line and "train " in line and "test " in line
    assert (
        "with its outputs in another order it would be right for" in line and "order of the classes (0, 1, 2)" in line
    )
    assert not (tmp_path / "out").exists()


def test_a_constant_is_told_with_what_to_check(project, tmp_path, capsys):
    def constant(head):
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))

    command = changed(project, tmp_path, constant)
    line = fails(capsys, *command, "--dry-run")
    assert "the dense network predicts one class for every sample" in line
    assert "--mean, now 0.5, 0.5, 0.5" in line and "--size, now 8 x 8" in line


def test_a_network_that_has_learned_the_bias_alone_passes(project, tmp_path):
    """Its unbiased accuracy is near chance, but most training samples are bias-aligned."""
    shutil.copytree(project / "data", tmp_path / "data")
    lines = (project / "data" / "metadata.csv").read_text().splitlines()
    rows = [line.split(",") for line in lines[1:]]
    swapped = [",".join([row[1], row[0], *row[2:]]) for row in rows]  # the bias is the class now, and other way round
    (tmp_path / "data" / "metadata.csv").write_text("\n".join([lines[0], *swapped]) + "\n")
    command = [project / "net.pt", "--data", tmp_path / "data", "--output", tmp_path / "out", *FAST, "--dry-run"]
    assert cli.main([str(argument) for argument in command]) == 0
