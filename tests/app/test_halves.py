"""Half of the validation set for learning masks, the other half for selecting them."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from cases import biased_data
from projects import FAST, edited, fails, run

from bise_prune import SearchConfig
from bise_prune.app import cli
from bise_prune.app.halves import LEAST_CONFLICTING, conflicting_per_class, halved, halves_for, mistakes
from bise_prune.config import RunConfig
from bise_prune.data import DataSplits
from bise_prune.errors import ConfigError, DataError

TRAIN = biased_data()
TRUE = torch.arange(3)[:, None]  # each class is aligned with its own number


def labels(data):
    """Each sample's class, biases and first pixel, as a row."""
    return [
        tuple(row) for row in torch.cat([data.target[:, None], data.bias, data.inputs.flatten(1)[:, :1]], 1).tolist()
    ]


class Memory(torch.nn.Module):
    """A network that is right on some images, and says class 0 of all others."""

    def __init__(self, known):
        super().__init__()
        self.known = known
        self.images, self.target = known.inputs.flatten(1), torch.nn.functional.one_hot(known.target, 3)
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input):
        is_same = (input.flatten(1)[:, None] == self.images[None]).all(2)
        return is_same.double() @ self.target.double()


def decided(val, *, train=TRAIN, known=None, **settings):
    """The halves for a network that knows the training set by heart, or the images of ``known`` instead."""
    config = RunConfig(checkpoint=Path("a.pt"), output=Path("b"), **settings)
    return halves_for(config, DataSplits(train, val), TRUE, Memory(train if known is None else known))


def with_conflicting(counts, n=300):
    """Data with so many conflicting samples of each class."""
    data = biased_data(n=n, rho=0.5)
    is_conflicting = data.target != data.bias[:, 0]
    rows = [(~is_conflicting).nonzero().flatten()]
    rows += [((data.target == y) & is_conflicting).nonzero().flatten()[:k] for y, k in enumerate(counts)]
    return data.subset(torch.cat(rows))


@pytest.mark.parametrize("biases", [1, 2])
def test_the_halves_share_each_subgroup_and_no_sample(biases):
    data = biased_data(n=201, rho=0.6, biases=biases)
    first, second = halved(data)
    assert sorted(labels(first) + labels(second)) == sorted(labels(data))
    assert (len(first), len(second)) == (101, 100)
    keys = torch.cat([data.target[:, None], data.bias], 1).unique(dim=0)
    for key in keys:
        sizes = [int((torch.cat([half.target[:, None], half.bias], 1) == key).all(1).sum()) for half in (first, second)]
        assert abs(sizes[0] - sizes[1]) <= 1
    assert labels(halved(data)[0]) == labels(first)  # whoever divides them


def test_what_was_made_from_one_object_stays_together():
    data = biased_data(n=90, rho=0.34)
    data = dataclasses.replace(data, origin=torch.arange(90) // 5 + 7)
    first, second = halved(data)
    assert set(first.origin.tolist()) | set(second.origin.tolist()) == set(data.origin.tolist())
    assert not set(first.origin.tolist()) & set(second.origin.tolist())
    assert len(first) == len(second) == 45
    assert (torch.bincount(first.target) > 5).all()


def test_auto_takes_half_of_the_validation_set_if_each_class_has_conflicting_samples_enough():
    enough = [LEAST_CONFLICTING] * 3
    assert conflicting_per_class(with_conflicting(enough), TRUE).tolist() == enough
    assert decided(with_conflicting(enough)) is not None
    assert decided(with_conflicting([40, 40, LEAST_CONFLICTING - 1])) is None
    assert decided(None) is None


def test_auto_searches_where_the_network_makes_more_mistakes():
    val = with_conflicting([20, 20, 20])
    constant = Memory(TRAIN.subset(torch.tensor([], dtype=torch.long)))  # it is right on class 0
    half = halved(val)[0]
    held_out = int(((half.target != half.bias[:, 0]) & (half.target != 0)).sum())
    assert mistakes(constant, half, TRUE) == held_out > 0
    is_wrong = (TRAIN.target != TRAIN.bias[:, 0]) & (TRAIN.target != 0)
    rows = is_wrong.nonzero().flatten().repeat(3)
    numbers = {2 * held_out: True, 2 * held_out + 1: False}  # a mistake on a held-out sample counts twice
    for number, is_half in numbers.items():
        train = TRAIN.subset(rows[:number])
        assert mistakes(constant, train, TRUE) == number
        assert (decided(val, train=train, known=constant.known) is not None) == is_half
        assert decided(val, train=train) is not None  # the training set is known by heart
    aligned = TRAIN.subset((TRAIN.target == TRAIN.bias[:, 0]).nonzero().flatten())
    assert mistakes(constant, aligned, TRUE) == 0


def test_mistakes_among_many_samples_are_about_those_of_all(monkeypatch):
    data = biased_data(n=1500, rho=0.0)
    known = data.subset(torch.arange(0, 1500, 2))
    exact = int((data.target[1::2] != 0).sum())
    assert mistakes(Memory(known), data, TRUE) == pytest.approx(exact)
    monkeypatch.setattr("bise_prune.app.halves._MOST", 400)
    assert mistakes(Memory(known), data, TRUE) == pytest.approx(exact, rel=0.2)


def test_auto_leaves_searches_alone_that_are_about_the_training_set():
    val = with_conflicting([20, 20, 20])
    assert decided(val, search_on="training") is None
    assert decided(val, unsupervised=True) is None
    assert decided(val, bias_noise=0.1) is None
    assert decided(val, search=SearchConfig(method="paper")) is None
    assert decided(val, search=SearchConfig(rho=(0.95,))) is None
    assert decided(val, criterion="magnitude", target_sparsity=0.5) is None
    assert decided(dataclasses.replace(val, bias=val.bias[:, :0])) is None


def test_validation_is_taken_by_any_search_if_it_is_asked_for():
    assert decided(with_conflicting([2, 2, 2]), search_on="validation", search=SearchConfig(method="paper")) is not None
    with pytest.raises(DataError, match=r"in both halves; they have \d and \d: use --search-on"):
        decided(with_conflicting([1, 0, 0]), search_on="validation")
    for settings, val, message in (
        ({}, None, "needs a validation split with bias labels"),
        ({"unsupervised": True}, with_conflicting([9, 9, 9]), "needs true bias labels"),
        ({"criterion": "taylor", "target_sparsity": 0.5}, with_conflicting([9, 9, 9]), "does not search"),
    ):
        with pytest.raises(ConfigError, match=message):
            decided(val, search_on="validation", **settings)


def test_a_run_selects_and_reports_on_the_other_half(project, tmp_path):
    report = run(project, tmp_path / "out", "--search-on", "validation")
    assert report["data"]["learned_on"] == {"split": "val", "samples": 23}
    assert report["data"]["samples"]["val"] == 45
    assert any("half of the validation split (23 samples, " in note for note in report["data"]["notes"])
    assert {epoch["validation"]["n"] for epoch in report["history"]} == {22}
    again = run(
        project, tmp_path / "again", "--masks", tmp_path / "out" / "masks.safetensors", "--search-on", "validation"
    )
    assert any("the given masks may have been learned on the other half" in note for note in again["data"]["notes"])
    training = run(project, tmp_path / "training")
    assert training["data"]["learned_on"] == {"split": "train", "samples": 90}


def test_without_a_test_split_the_report_is_on_the_half_that_no_mask_was_learned_on(project, tmp_path, capsys):
    folder = edited(project, tmp_path, lambda row: row if row[2] != "test" else [*row[:2], "train", *row[3:]])
    common = [project / "net.pt", "--data", folder, *FAST, "--json", "--search-on", "validation"]
    assert cli.main([str(a) for a in [*common, "--output", tmp_path / "out"]]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["evaluated_on"] == "val" and report["slim"]["n"] == 22


def test_a_validation_split_that_cannot_be_searched_on(project, tmp_path, capsys):
    folder = edited(project, tmp_path, lambda row: row if row[2] != "val" else [*row[:2], "train", *row[3:]])
    command = [project / "net.pt", "--data", folder, "--output", tmp_path / "out", "--search-on", "validation"]
    assert "needs a validation split with bias labels" in fails(capsys, *command, code=2)
    assert not (tmp_path / "out").exists()


def without_training_labels(project, tmp_path):
    return edited(project, tmp_path, lambda row: row if row[2] != "train" else [row[0], "", *row[2:]])


def test_bias_labels_of_the_validation_split_alone_are_enough(project, tmp_path, capsys):
    """The data that most users have (last-layer retraining): few labelled samples, none of them in training."""
    folder = without_training_labels(project, tmp_path)
    common = [project / "net.pt", "--data", folder, *FAST, "--json", "--tune", "head"]
    assert cli.main([str(a) for a in [*common, "--output", tmp_path / "out"]]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["data"]["learned_on"] == {"split": "val", "samples": 23}
    assert any("the training split has no bias labels" in note for note in report["data"]["notes"])
    assert report["ladder"]["fitted_on"]["split"] == "val"
    assert report["aligned"]["meaning"].endswith("on the validation split, per bias")
    whole = run(project, tmp_path / "labelled", "--search-on", "validation", "--tune", "head")
    assert report["aligned"]["by_class"] == whole["aligned"]["by_class"]  # of a network that is biased as its data
    assert [epoch["closed"] for epoch in report["history"]] == [epoch["closed"] for epoch in whole["history"]]
    assert not any("training sample" in warning for warning in report["warnings"])


@pytest.mark.parametrize(("split", "refit"), [("validation", "head"), ("training", "none")])
def test_a_search_on_held_out_samples_judges_by_the_layer_that_is_refitted(project, tmp_path, split, refit):
    command = [project / "net.pt", "--data", project / "data", "--output", tmp_path / "out", "--steps", "12"]
    command += ["--batch-size", "20", "--device", "cpu", "--round-to", "1", "--search-on", split, "--tune", "head"]
    assert cli.main([str(argument) for argument in command]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["config"]["search"]["refit"] == refit
    assert ("last layer refitted" in report["selection"]["rule"]) == (refit == "head")


@pytest.mark.parametrize("options", [["--finetune", "2"], ["--tune", "all", "--finetune", "2"]], ids=["paper", "all"])
def test_finetuning_goes_by_predicted_labels_then(project, tmp_path, options):
    folder = without_training_labels(project, tmp_path)
    report = run(project, tmp_path / "out", "--data", str(folder), *options)
    (note,) = [note for note in report["data"]["notes"] if note.startswith("for finetuning, the bias labels")]
    right = float(re.search(r"on the other half, (\d+\.\d)% of such labels are right", note)[1])
    assert right > 60  # three values, which shift the colours
    assert [epoch["epoch"] for epoch in report["finetuning"]["history"]] == [0, 1, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--search-on", "training"], "search_on 'training' needs bias labels of the training split"),
        (["--criterion", "taylor", "--target-flops", "0.5"], "criterion 'taylor' needs bias labels of the training"),
    ],
)
def test_what_needs_bias_labels_of_the_training_split_says_so(project, tmp_path, capsys, options, message):
    folder = without_training_labels(project, tmp_path)
    command = [project / "net.pt", "--data", folder, "--output", tmp_path / "out", *options]
    assert message in fails(capsys, *command)
    assert not (tmp_path / "out").exists()


def test_one_training_sample_with_a_bias_label_is_no_split_without(project, tmp_path, capsys):
    labelled = "0.png"

    def change(row):
        return row if row[2] != "train" or labelled in row else [row[0], "", *row[2:]]

    folder = edited(project, tmp_path, change)
    command = [project / "net.pt", "--data", folder, "--output", tmp_path / "out"]
    assert "89 rows without a value in 'bias'" in fails(capsys, *command)


def test_pseudo_labels_of_training_and_true_ones_for_selection(project, tmp_path):
    folder = without_training_labels(project, tmp_path)
    arguments = [project / "net.pt", "--data", folder, "--output", tmp_path / "out", *FAST, "--unsupervised"]
    assert cli.main([str(argument) for argument in arguments]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert any("the validation split keeps its own for selection" in note for note in report["data"]["notes"])
    assert report["selection"]["rule"].startswith("highest unbiased accuracy")
    assert report["identification"] is not None
