"""What a run reads and checks before its work."""

import json
import shutil

import pytest
import torch
from projects import ARCHITECTURE, FAST, edited, fails

from bise_prune import load_model
from bise_prune.app import cli
from bise_prune.models import build_model


def test_preprocessing_is_given_known_or_assumed(project, tmp_path, capsys):
    state = load_model(project / "net.pt")[0].state_dict()
    torch.save(state, tmp_path / "bare.pt")
    arch = f"simple_convnet(kernel_size=3,widths={ARCHITECTURE['widths']},strides={ARCHITECTURE['strides']})"
    common = [tmp_path / "bare.pt", "--data", project / "data", "--arch", arch, *FAST, "--json"]

    def report(name, *more):
        assert cli.main([str(argument) for argument in (*common, "--output", tmp_path / name, *more)]) == 0
        return json.loads(capsys.readouterr().out)

    assumed = report("assumed")
    assert any("mean 0.485, 0.456, 0.406 and std 0.229" in warning for warning in assumed["warnings"])
    given = report("given", "--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--size", "16")
    assert not any("normalised" in warning for warning in given["warnings"])
    about = load_model(tmp_path / "given" / "slim.safetensors")[1]
    assert (about.preprocessing["mean"], about.preprocessing["size"]) == ([0.5] * 3, [16, 16])
    for flags, message in (
        (["--mean", "0.5"], "belong together"),
        (["--mean", "0.5,x", "--std", "1"], "is no list of numbers"),
        (["--mean", "0.5,0.5,0.5", "--std", "0,1,1"], "std"),
        (["--size", "0"], "size"),
        (["--size", "a"], "is no size such as 224"),
    ):
        assert message in fails(capsys, *common[:-1], "--output", tmp_path / "none", *flags, code=2)


def test_labels_beyond_the_models_classes(project, tmp_path, capsys):
    folder = edited(project, tmp_path, lambda row: ["7" if row[0] == "2" else row[0], *row[1:]])
    line = fails(capsys, project / "net.pt", "--data", folder, "--output", tmp_path / "out")
    assert "labels from 0 to 7, but the model has 3 classes" in line
    assert not (tmp_path / "out").exists()


def test_no_conflicting_sample(project, tmp_path, capsys):
    folder = edited(project, tmp_path, lambda row: [row[0], row[0], *row[2:]])
    line = fails(capsys, project / "net.pt", "--data", folder, "--output", tmp_path / "out")
    assert "no bias-conflicting sample among the 90" in line


def test_an_unreadable_image(project, tmp_path, capsys):
    folder = edited(project, tmp_path, lambda row: row)
    (folder / "17.png").write_bytes(b"broken")
    line = fails(capsys, project / "net.pt", "--data", folder, "--output", tmp_path / "out")
    assert "17.png is unreadable" in line
    assert not (tmp_path / "out").exists()


def test_a_module_of_a_class_that_is_not_known_needs_the_name_of_its_architecture(project, tmp_path, capsys):
    torch.save(build_model("mlp", 3), tmp_path / "m.pt")
    line = fails(capsys, tmp_path / "m.pt", "--data", project / "data", "--output", tmp_path / "out")
    assert "cannot tell the architecture from the weights" in line and "name it with --arch" in line


def test_wrong_bias_labels_can_be_put_in(project, tmp_path, capsys):
    common = [project / "net.pt", "--data", project / "data", "--output", tmp_path / "out", "--dry-run", "--json"]
    assert cli.main([str(a) for a in [*common, "--bias-noise", "0.5"]]) == 0
    noisy = json.loads(capsys.readouterr().out)
    assert "50% of the training set's bias labels were replaced by wrong ones" in noisy["data"]["notes"]
    assert cli.main([str(a) for a in common]) == 0
    clean = json.loads(capsys.readouterr().out)
    assert noisy["biases"][0]["num_conflicting"] > clean["biases"][0]["num_conflicting"]


def test_a_slim_network_is_not_pruned_again(done, tmp_path, capsys):
    project, _ = done
    slim = project / "out" / "slim.safetensors"
    line = fails(capsys, slim, "--data", project / "data", "--output", tmp_path / "out", code=2)
    assert "slim.safetensors is a pruned network already; start from the dense checkpoint" in line


def test_a_folder_per_class_is_debiased_without_bias_labels(project, tmp_path, capsys):
    rows = [line.split(",") for line in (project / "data" / "metadata.csv").read_text().splitlines()[1:]]
    for label, _, split, name in rows:
        folder = tmp_path / "classes" / split / label
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(project / "data" / name, folder)
    command = [project / "net.pt", "--data", tmp_path / "classes", "--output", tmp_path / "out", "--dry-run", "--json"]
    assert cli.main([str(a) for a in command]) == 0
    record = json.loads(capsys.readouterr().out)
    assert any("pseudo labels are found, as by --unsupervised" in note for note in record["data"]["notes"])
    assert record["biases"] == [] and record["data"]["samples"]["train"] == 90
    command.remove("--json")
    assert cli.main([str(a) for a in command]) == 0
    assert "What was understood" in capsys.readouterr().out


def test_an_image_size_that_the_network_cannot_take(project, tmp_path, capsys):
    torch.save(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).state_dict(), tmp_path / "linear.pt")
    (tmp_path / "tiny_net.py").write_text(
        "from torch import nn\ndef net(num_classes): return nn.Sequential(nn.Flatten(), nn.Linear(12, num_classes))\n"
    )
    arguments = [tmp_path / "linear.pt", "--arch", "tiny_net:net", "--data", project / "data"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        line = fails(capsys, *arguments, "--output", tmp_path / "out")
    assert "the model does not take inputs of shape (2, 3, 8, 8)" in line
