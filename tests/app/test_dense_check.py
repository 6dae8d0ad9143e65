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


def refused(capsys, *command):
    """A dry run, which shows what was understood before it refuses; the line it ends with."""
    assert cli.main([str(argument) for argument in [*command, "--dry-run"]]) == 1
    captured = capsys.readouterr()
    assert "What was understood" in captured.out
    (line,) = [line for line in captured.err.splitlines() if line.startswith("bise-prune: error: ")]
    return line


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
    line = refused(capsys, *command)
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


def test_a_dense_network_at_chance_is_taken_by_force(project, tmp_path, capsys):
    def constant(head):
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))

    command = changed(project, tmp_path, constant)
    assert refused(capsys, *command).endswith("or pass --force to go on with it")
    assert cli.main([str(argument) for argument in [*command, "--dry-run", "--force"]]) == 0
    assert "the dense network is right on " in capsys.readouterr().err


def test_the_accuracy_that_a_checkpoint_claims_is_compared(project, tmp_path, capsys):
    model = load_model(project / "net.pt")[0]
    arch = "simple_convnet(kernel_size=3, widths=[6, 8], strides=[2, 1])"
    flags = ["--arch", arch, "--data", project / "data", "--mean", ".5,.5,.5", "--std", ".25,.25,.25"]
    with torch.no_grad():
        model.head.weight.add_(torch.randn(model.head.weight.shape, generator=torch.Generator().manual_seed(0)) * 0.5)
    for claimed, code in ((30.0, 0), (100.0, 1)):
        torch.save({"model": model.state_dict(), "best_acc1": claimed, "epoch": 3}, tmp_path / "m.pt")
        command = [tmp_path / "m.pt", *flags]
        if code:
            assert "but its checkpoint says 100.0%: " in refused(capsys, *command)
        else:
            assert cli.main([str(argument) for argument in [*command, "--dry-run"]]) == 0
        capsys.readouterr()


def test_the_order_of_the_classes_can_be_given(project, tmp_path, capsys):
    folder = tmp_path / "data"
    shutil.copytree(project / "data", folder)
    lines = (folder / "metadata.csv").read_text().splitlines()
    place = lines[0].split(",").index("label")
    names = {"0": "wren", "1": "owl", "2": "kiwi"}  # in another order than the alphabet's
    rows = [line.split(",") for line in lines[1:]]
    for row in rows:
        row[place] = names[row[place]]
    (folder / "metadata.csv").write_text("\n".join([lines[0], *map(",".join, rows)]) + "\n")
    command = [project / "net.pt", "--data", folder, "--output", tmp_path / "out", *FAST]
    line = refused(capsys, *command)
    assert "pass --classes wren,owl,kiwi, if that is it" in line
    assert cli.main([str(argument) for argument in [*command, "--dry-run", "--classes", "wren,owl,kiwi"]]) == 0
