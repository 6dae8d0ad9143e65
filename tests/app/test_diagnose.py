"""A look at the dense network before any search."""

import json

import pytest
from projects import fails

from bise_prune.app import cli
from bise_prune.app.diagnose import advice_of
from bise_prune.tuning.ladder import Rung

FLAT = dict.fromkeys(Rung, 0.6)
SELECTING = {"selecting": 200, "smallest_group": "blond, male", "n": 50, "learned_on": "val"}


def test_a_diagnosis_tells_about_the_network_and_writes_nothing(done, capsys):
    project, stdout = done
    before = sorted(path.name for path in project.rglob("*"))
    command = ["diagnose", project / "net.pt", "--data", project / "data", "--device", "cpu", "--search-on", "training"]
    assert cli.main([str(argument) for argument in (*command, "--json")]) == 0
    record, report = json.loads(capsys.readouterr().out), json.loads(stdout)
    assert sorted(path.name for path in project.rglob("*")) == before  # which has results in it
    dense = report["dense"]
    assert record["evaluated_on"] == "test" and record["dense"]["n"] == dense["n"] == 45
    assert record["dense"]["unbiased_accuracy"]["value"] == pytest.approx(dense["unbiased_accuracy"])
    by_name = {group["name"]: group for group in dense["groups"]}
    for group in record["dense"]["groups"]:
        assert group["value"] == pytest.approx(by_name[group["name"]]["accuracy"])
        assert group["low"] <= group["value"] <= group["high"]
    rows = {row["rung"]: row for row in report["ladder"]["rows"] if row["network"] == "dense"}
    for row in record["ladder"]:
        assert row["unbiased_accuracy"] == rows[row["rung"]]["unbiased_accuracy"]
        assert row["num_changed"] == rows[row["rung"]]["num_changed"]
    assert 0 <= record["bias_read"]["accuracy"][0] <= 1 and record["estimate"]["seconds"] > 0
    assert "run_seconds" not in record["estimate"]  # for which a removal is tried, which may fail
    assert record["validation"]["selecting"] == 45 and record["validation"]["learned_on"] == "train"
    assert record["advice"]["kind"] in ("prune", "both", "neither")


def test_what_is_printed_ends_with_the_next_command(project, capsys):
    command = [str(part) for part in ("diagnose", project / "net.pt", "--data", project / "data")]
    assert cli.main(command) == 0
    *_, text, last = capsys.readouterr().out.splitlines()
    assert text.endswith(".") and last.startswith(f"next: bise-prune {' '.join(command[1:])} --target-")


def test_a_diagnosis_refuses_what_a_run_refuses(project, capsys):
    assert "needs a checkpoint" in fails(capsys, "diagnose", code=2)
    assert "needs a checkpoint" in fails(capsys, "diagnose", "--demo", code=2)
    assert "no checkpoint" in fails(capsys, "diagnose", project / "none.pt", "--data", project / "data")


def test_pseudo_labels_are_judged_where_true_ones_are_known(project, capsys):
    command = ["diagnose", project / "net.pt", "--data", project / "data", "--unsupervised", "--json"]
    assert cli.main([str(argument) for argument in command]) == 0
    record = json.loads(capsys.readouterr().out)
    assert set(record["identification"]) == {"precision", "recall", "agreement", "warnings"}
    assert record["bias_read"] is None
    assert ("label a few hundred" in record["advice"]["text"]) == bool(record["identification"]["warnings"])


def test_the_change_that_validation_data_speak_for_is_named():
    found = {Rung.NONE: 0.6, Rung.SHIFT: 0.8, Rung.NORMS: 0.8, Rung.HEAD: 0.805}
    advice = advice_of(found, Rung.SHIFT, True, True, SELECTING)
    assert advice["kind"] == "both" and advice["flags"][-2:] == ["--tune", "shift"]
    assert "logit offsets, which alone takes the unbiased accuracy from 60.0% to 80.0%" in advice["text"]
    better = advice_of({**found, Rung.HEAD: 0.9}, Rung.HEAD, True, True, SELECTING)
    assert better["flags"][-2:] == ["--tune", "head"] and "the last layer and norm layers" in better["text"]


def test_without_a_change_that_helps_the_masks_are_what_is_left():
    for found, rung in ((FLAT, Rung.NONE), ({**FLAT, Rung.SHIFT: 0.55}, Rung.SHIFT)):  # or does not hold there
        advice = advice_of(found, rung, True, True, SELECTING)
        assert advice["kind"] == "prune" and "--tune" not in advice["flags"]


def test_without_a_bias_the_network_is_pruned_for_its_size():
    advice = advice_of(FLAT, Rung.NONE, True, False, SELECTING)
    assert advice["flags"] == ["--target-flops", "0.5"]


def test_a_network_that_has_learned_the_bias_alone_is_not_pruned():
    advice = advice_of(FLAT, Rung.NONE, False, True, SELECTING)
    assert advice["kind"] == "neither" and advice["flags"] == []


def test_labels_are_advised_where_pseudo_labels_are_warned_of():
    plain, doubted = (
        advice_of({**FLAT, Rung.HEAD: 0.9}, Rung.HEAD, True, True, SELECTING, is_doubted=doubt)
        for doubt in (False, True)
    )
    assert doubted["text"].startswith(plain["text"]) and "label a few hundred" not in plain["text"]
    assert "label a few hundred validation samples" in doubted["text"] and doubted["flags"] == plain["flags"]


def test_few_validation_samples_are_told():
    few = advice_of(FLAT, Rung.NONE, True, True, {**SELECTING, "n": 12})
    assert "(blond, male) has only 12 validation samples" in few["text"]
    assert "no validation split" in advice_of(FLAT, Rung.NONE, True, True, None)["text"]
