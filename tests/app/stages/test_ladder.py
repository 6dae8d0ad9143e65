"""The ladder of a run: its figures for both networks, and the network that is delivered."""

import json
from dataclasses import asdict

import numpy as np
import onnxruntime
import pytest
import torch
from projects import FAST, GRADUAL, fails, run, write_spoiled
from torch import nn

from bise_prune import MaskSet, load_slim, prune
from bise_prune.app import cli, progress
from bise_prune.checkpoint import load_checkpoint, save_checkpoint
from bise_prune.checkpoint.networks import model_of
from bise_prune.config import STRONG
from bise_prune.pruning.plan import PruningPlan
from bise_prune.tuning.ladder import Ladder

RUNGS = ["none", "shift", "norms", "head"]
ON_TRAIN = ["--search-on", "training"]


def rows(report, network):
    return {row["rung"]: row for row in report["ladder"]["rows"] if row["network"] == network}


def test_every_run_has_the_figures_of_all_rungs(done):
    _, stdout = done
    report = json.loads(stdout)
    ladder = report["ladder"]
    assert list(rows(report, "dense")) == list(rows(report, "slim")) == RUNGS
    assert ladder["fitted_on"] == {"split": "train", "samples": 90}
    assert ladder["decided_on"] == {"split": "val", "samples": 45}
    for network in ("dense", "slim"):
        assert rows(report, network)["none"]["unbiased_accuracy"] == report[network]["unbiased_accuracy"]
        assert rows(report, network)["none"]["num_changed"] == 0
    for rung in RUNGS:
        dense, slim = (rows(report, network)[rung]["unbiased_accuracy"] for network in ("dense", "slim"))
        assert ladder["masks_add"][rung] == pytest.approx(slim - dense)
    assert [row["rung"] for row in ladder["rows"] if row["delivered"]] == ["none"]


@pytest.mark.parametrize("rung", ["shift", "norms", "head"])
def test_masks_are_delivered_at_another_rung_without_a_new_search(done, tmp_path, rung):
    project, stdout = done
    masks = ("--masks", project / "out" / "masks.safetensors", "--search-on", "validation")
    report = run(project, tmp_path / "out", *masks, "--tune", rung)
    row = rows(report, "slim")[rung]
    assert row["delivered"] and report["ladder"]["delivered"] == rung
    assert report["slim"]["unbiased_accuracy"] == row["unbiased_accuracy"]
    assert report["ladder"]["fitted_on"] == {"split": "val", "samples": 45}  # of these, half decided
    assert report["ladder"]["decided_on"] == {"split": "val", "samples": 22}
    assert rows(report, "slim")["none"]["unbiased_accuracy"] == json.loads(stdout)["slim"]["unbiased_accuracy"]
    slim = load_slim(tmp_path / "out" / "slim.safetensors")
    inputs = torch.randn(3, 3, 8, 8)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "slim.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": inputs.numpy()})
    assert np.allclose(logits, slim(inputs).detach().numpy(), atol=1e-4)  # the files hold what was judged


def test_the_card_and_the_page_say_what_was_changed(done, tmp_path):
    project, _ = done
    masks = ("--masks", project / "out" / "masks.safetensors")
    report = run(project, tmp_path / "out", *masks, "--tune", "head", "--select", "last")
    card, page = ((tmp_path / "out" / name).read_text() for name in ("README.md", "report.html"))
    row = rows(report, "slim")["head"]
    if row["num_changed"]:
        assert f"{row['num_changed']} of its numbers" in card
        assert "no weight was retrained" not in card
    assert "| + the last layer |" in card and "(this network)" in card
    assert 'id="ladder"' in page and page.count("<strong>written</strong>") == 1
    assert "no weight was retrained" in (project / "out" / "README.md").read_text()


def test_what_is_printed(done, tmp_path, capsys):
    project, _ = done
    masks = ["--masks", project / "out" / "masks.safetensors"]
    command = [project / "net.pt", "--data", project / "data", "--output", tmp_path / "out", *FAST, *masks]
    assert cli.main([str(argument) for argument in command]) == 0
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert first.startswith("On the test split") and second.startswith("With no weight changed, the masks add ")
    assert "with a refitted last layer" in second and second.endswith("(--tune).")
    assert any(line.startswith("│ nothing") and line.count("%") == 4 and " * " in line for line in rest)


@pytest.mark.parametrize(("rung", "words"), [("shift", "with logit offsets"), ("norms", "with other norm layers")])
def test_what_a_cheap_change_explains_is_said(done, tmp_path, capsys, rung, words):
    """Of a network that is spoiled in one place, which the rung mends in the dense network as well."""
    project, _ = done
    if rung == "shift":
        checkpoint = load_checkpoint(project / "net.pt")
        state = checkpoint.state
        state[[key for key in state if key.endswith("bias")][-1]] += torch.tensor([8.0, 0.0, -8.0])
        save_checkpoint(tmp_path / "net.pt", checkpoint)
    else:
        write_spoiled(project, tmp_path)
    capsys.readouterr()
    masks = ["--masks", project / "out" / "masks.safetensors", "--output", tmp_path / "out", "--force"]
    cli.main([str(argument) for argument in [tmp_path / "net.pt", "--data", project / "data", *FAST, *masks]])
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    dense = rows(report, "dense")
    assert dense[rung]["unbiased_accuracy"] > dense["none"]["unbiased_accuracy"] + 0.15
    second = capsys.readouterr().out.splitlines()[1]
    assert f"{words} {dense[rung]['unbiased_accuracy']:.1%} dense and " in second


def test_finetuning_is_the_rung_above(done, tmp_path):
    project, _ = done
    masks = ("--masks", project / "out" / "masks.safetensors")
    report = run(project, tmp_path / "out", *masks, "--finetune", "2", "--finetune-lr", "0.01")
    assert report["ladder"]["delivered"] == "all"
    row = rows(report, "slim")["all"]
    assert row["delivered"] and row["unbiased_accuracy"] == report["slim"]["unbiased_accuracy"]
    assert row["num_changed"] in (0, report["slim"]["params"])
    assert "all" not in report["ladder"]["masks_add"]


def test_settings_that_contradict_each_other(project, tmp_path, capsys):
    command = [project / "net.pt", "--data", project / "data", "--output", tmp_path / "out"]
    line = fails(capsys, *command, "--tune", "head", "--finetune", "3", code=2)
    assert "finetuning may change all weights already" in line
    settings = tmp_path / "settings.toml"
    settings.write_text('tune = "everything"\n')
    assert "tune" in fails(capsys, *command, "--config", settings, code=2)
    assert not (tmp_path / "out").exists()


def test_a_network_without_a_place_for_offsets_is_told_at_the_start(project, tmp_path, capsys, monkeypatch):
    torch.manual_seed(0)
    (tmp_path / "without_offsets.py").write_text(
        "from torch import nn\n\n\ndef build(num_classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
        "                         nn.Linear(4, num_classes, bias=False))\n"
    )
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3, bias=False)
    )
    torch.save(model.state_dict(), tmp_path / "net.pt")
    common = [tmp_path / "net.pt", "--data", project / "data", "--arch", "without_offsets:build"]
    monkeypatch.syspath_prepend(tmp_path)
    line = fails(capsys, *common, "--output", tmp_path / "out", "--tune", "head", code=2)
    assert "additive bias" in line and not (tmp_path / "out").exists()


def test_all_weights_may_change_from_the_best_of_the_rungs_below(done, tmp_path):
    project, _ = done
    masks = ("--masks", project / "out" / "masks.safetensors", "--search-on", "validation")
    report = run(project, tmp_path / "out", *masks, "--tune", "all", "--finetune", "3", "--finetune-lr", "0.01")
    row = rows(report, "slim")["all"]
    assert report["ladder"]["delivered"] == "all" and row["delivered"]
    assert report["config"]["finetune"] | {"epochs": 20, "lr": 3e-4} == json.loads(json.dumps(asdict(STRONG)))
    history = [epoch["validation_unbiased_accuracy"] for epoch in report["finetuning"]["history"]]
    assert len(history) == 4 and report["finetuning"]["epoch"] == max(range(4), key=lambda k: (history[k], k))
    assert report["slim"]["unbiased_accuracy"] == row["unbiased_accuracy"]
    again = tmp_path / "again"
    command = (project / "net.pt", "--config", tmp_path / "out" / "config.toml", "--output", again)
    assert cli.main([str(argument) for argument in command]) == 0
    assert json.loads((again / "report.json").read_text())["config"]["finetune"] == report["config"]["finetune"]


def test_finetuning_that_is_of_no_use_says_so(done, tmp_path):
    """With a learning rate that destroys the network, the start is kept: what the rungs below make of it."""
    project, _ = done
    masks = ("--masks", project / "out" / "masks.safetensors", "--search-on", "validation")
    options = ("--finetune", "2", "--finetune-lr", "30", "--finetune-optimizer", "sgd", "--finetune-distill", "0")
    report = run(project, tmp_path / "out", *masks, "--tune", "all", *options)
    assert report["finetuning"]["epoch"] == 0
    assert any("finetuning was of no use: none of its 2 epochs" in warning for warning in report["warnings"])
    head, last = rows(report, "slim")["head"], rows(report, "slim")["all"]
    assert last["changes"] == head["changes"] and last["num_changed"] == head["num_changed"]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "then finetuned" not in card


@pytest.fixture(scope="module")
def spoiled(project, tmp_path_factory):
    """A network whose norms let all samples look the same."""
    return write_spoiled(project, tmp_path_factory.mktemp("spoiled"))


def on_held_out(project, folder, output, *extra):
    """A run of the command on the network in a folder, on held-out samples, and the masks that it leaves."""
    command = [folder / "net.pt", "--data", project / "data", "--output", output, *GRADUAL, *extra]
    assert cli.main([str(argument) for argument in command]) == 0
    return json.loads((output / "report.json").read_text()), MaskSet.load(output / "masks.safetensors")


@pytest.mark.parametrize("rung", ["norms", "head"])
def test_masks_are_learned_on_trained_norms_where_these_may_change(project, spoiled, tmp_path, rung, capsys):
    report, masks = on_held_out(project, spoiled, tmp_path / "out", "--tune", rung)
    assert "The masks were learned on the network with its norm layers trained first. " in capsys.readouterr().out
    assert report["ladder"]["trained_before"] and masks.trained_before and masks.state
    own = load_checkpoint(spoiled / "net.pt").state
    assert all(not torch.equal(tensor, own[name]) for name, tensor in masks.state.items())
    assert list(rows(report, "slim")) == list(rows(report, "dense")) == RUNGS
    row = rows(report, "slim")[rung]
    assert row["delivered"] and "norms" in row["changes"] and row["num_changed"] > 0
    assert report["slim"]["unbiased_accuracy"] == row["unbiased_accuracy"]
    assert rows(report, "slim")["none"]["num_changed"] == 0 and not rows(report, "slim")["none"]["changes"]
    # The same masks at the same rung are the same network; where nothing may change, they are that of the first rung.
    again, kept = on_held_out(
        project, spoiled, tmp_path / "again", "--tune", rung, "--masks", tmp_path / "out" / "masks.safetensors"
    )
    assert kept.trained_before and rows(again, "slim") == rows(report, "slim")
    none, alone = on_held_out(project, spoiled, tmp_path / "none", "--masks", tmp_path / "out" / "masks.safetensors")
    assert not alone.trained_before and not alone.state and not none["ladder"]["trained_before"]
    for below in ("none", "shift"):
        figures = [rows(each, "slim")[below]["unbiased_accuracy"] for each in (none, report)]
        assert figures[0] == pytest.approx(figures[1]), below
    # Its plan is of other weights than the checkpoint's, and says how it can be carried out again.
    capsys.readouterr()
    line = fails(
        capsys, spoiled / "net.pt", "--data", project / "data", "--output", tmp_path / "plan", "--force",
        "--plan", tmp_path / "out" / "plan.json",
    )  # fmt: skip
    assert "prune by its masks, which hold them" in line


def test_trained_norms_that_do_not_help_are_not_delivered(project, spoiled, tmp_path, monkeypatch):
    """The slim network and its plan are then those of the dense network as it is."""
    first, masks = on_held_out(project, spoiled, tmp_path / "out", "--tune", "norms")
    monkeypatch.setattr(Ladder, "_is_better", lambda self, before, after, groups: False)
    given = ("--masks", tmp_path / "out" / "masks.safetensors")
    report, kept = on_held_out(project, spoiled, tmp_path / "again", "--tune", "norms", *given)
    assert kept.trained_before and masks.trained_before
    found = [(row["num_changed"], row["unbiased_accuracy"]) for row in rows(report, "slim").values()]
    assert found == [(0, rows(first, "slim")["none"]["unbiased_accuracy"])] * 4
    plans = [PruningPlan.load(tmp_path / name / "plan.json") for name in ("out", "again")]
    assert plans[0].layers == plans[1].layers and plans[0].fingerprint != plans[1].fingerprint
    dense, _ = model_of(load_checkpoint(spoiled / "net.pt"), spoiled / "net.pt")
    slim, inputs = load_slim(tmp_path / "again" / "slim.safetensors"), torch.randn(3, 3, 8, 8)
    assert torch.allclose(slim(inputs), prune(dense, plans[1], inputs).model(inputs), atol=1e-5)


def test_norms_are_not_trained_first_where_they_must_not_change_or_were_seen(project, tmp_path):
    for name, options in {"none": (), "shift": ("--tune", "shift"), "train": ("--tune", "norms", *ON_TRAIN)}.items():
        report, masks = on_held_out(project, project, tmp_path / name, *options)
        assert not report["ladder"]["trained_before"] and not masks.state, name


def test_a_stopped_search_goes_on_with_the_norms_that_it_began_with(project, spoiled, tmp_path, monkeypatch):
    """They are not trained again, which on a GPU could give others."""
    whole = on_held_out(project, spoiled, tmp_path / "whole", "--tune", "norms")

    def stop(name):
        if name == "search":
            raise KeyboardInterrupt

    ended = progress.StageClock.epoch
    monkeypatch.setattr(progress.StageClock, "epoch", lambda self, name, *rest: (ended(self, name, *rest), stop(name)))
    command = [spoiled / "net.pt", "--data", project / "data", "--output", tmp_path / "out", *GRADUAL]
    assert cli.main([str(argument) for argument in [*command, "--tune", "norms"]]) == 130
    monkeypatch.setattr(progress.StageClock, "epoch", ended)
    monkeypatch.setattr("bise_prune.app.stages.search.trained_start", lambda session: pytest.fail("trained again"))
    resumed = on_held_out(project, spoiled, tmp_path / "out", "--tune", "norms")
    assert all(torch.equal(resumed[1].logits[name], logits) for name, logits in whole[1].logits.items())
    assert rows(resumed[0], "slim") == rows(whole[0], "slim")


@pytest.mark.parametrize("tune", ["none", "shift"])
def test_a_search_on_trained_norms_is_not_taken_up_where_they_must_not_change(
    project, spoiled, tmp_path, monkeypatch, capsys, tune
):
    def stop(self, name, *rest):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(progress.StageClock, "epoch", stop)
        command = [spoiled / "net.pt", "--data", project / "data", "--output", tmp_path / "out", *GRADUAL]
        assert cli.main([str(argument) for argument in [*command, "--tune", "norms"]]) == 130
    capsys.readouterr()
    line = fails(capsys, *command, "--tune", tune)
    assert "search-state.pt belongs to a search that differs from this one in the masks it starts from" in line
    line = fails(capsys, project / "net.pt", *command[1:], "--tune", "norms")  # other norms, and no others needed
    assert "search-state.pt belongs to a search that differs from this one in the network's weights" in line
