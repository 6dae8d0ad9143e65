"""A slim network that is worthless ends the run before anything is exported."""

import json

import pytest
import torch
from projects import FAST, fails

from bise_prune import MaskSet
from bise_prune.app import cli
from bise_prune.app.session import Session

KEPT = ["masks.safetensors", "search-state.pt"]


def constant(monkeypatch):
    """Let every network but the dense one predict class 1."""
    predicted = Session.predicted

    def one_class(session, model):
        classes = predicted(session, model)
        return classes if model is session.dense else torch.ones_like(classes)

    monkeypatch.setattr(Session, "predicted", one_class)


def test_nothing_but_closed_masks_is_not_written(done, tmp_path, capsys):
    project, _ = done
    masks = MaskSet.load(project / "out" / "masks.safetensors")
    MaskSet({name: -logits.abs() - 1 for name, logits in masks.logits.items()}).save(tmp_path / "masks.safetensors")
    given = [project / "net.pt", "--data", project / "data", "--masks", tmp_path / "masks.safetensors"]
    line = fails(capsys, *given, "--output", tmp_path / "out", "--device", "cpu", code=3)
    assert "a dead network: with these masks nothing of the input reaches the logits" in line
    assert not (tmp_path / "out").exists()


def test_a_constant_from_given_masks_is_not_written(done, tmp_path, capsys, monkeypatch):
    project, _ = done
    constant(monkeypatch)
    given = [project / "net.pt", "--data", project / "data", "--masks", project / "out" / "masks.safetensors"]
    line = fails(capsys, *given, "--output", tmp_path / "out", "--device", "cpu", code=3)
    assert "predicts class 1 for every sample (test split, 45 samples: unbiased accuracy" in line
    assert "no network was written" in line and "kept" not in line  # nothing was searched
    assert "--tune all" in line and "--anneal-every" not in line
    assert not (tmp_path / "out").exists()


def test_a_constant_from_a_search_leaves_masks_and_state(project, tmp_path, capsys):
    out = tmp_path / "out"
    command = [project / "net.pt", "--data", project / "data", "--output", out, *FAST]
    with pytest.MonkeyPatch.context() as patch:
        constant(patch)
        for _ in range(2):  # again: the finished search is not lost
            line = fails(capsys, *command, code=3)
            assert f"the masks are kept in {out / KEPT[0]} and the search in {out / KEPT[1]}" in line
            assert "--initial-logit 0.1" in line and "--anneal-every" not in line  # that one is set
            assert sorted(path.name for path in out.glob("[!.]*")) == KEPT
    assert cli.main([str(argument) for argument in command]) == 0
    assert json.loads((out / "report.json").read_text())["verdict"] in ("improved", "equal", "worse")
