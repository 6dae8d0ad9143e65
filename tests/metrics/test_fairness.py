"""Fairness figures against Fairlearn, against loops, and where they are undefined."""

import numpy as np
import pytest
import torch
from fairlearn.metrics import MetricFrame, demographic_parity_difference, equalized_odds_difference
from sklearn.metrics import accuracy_score

from bise_prune.metrics.accuracy import score
from bise_prune.metrics.fairness import fairness_record


def sample(n=400, classes=2, values=2, seed=0, biases=1):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (n,), generator=generator)
    drawn = torch.randint(0, values, (n, biases), generator=generator)
    follows = torch.rand(n, biases, generator=generator) < 0.4
    bias = torch.where(follows, target[:, None] % values, drawn)
    noise = [torch.rand(n, generator=generator) for _ in range(2)]
    wrong = (target + 1) % classes
    dense = torch.where(noise[0] < 0.1 + 0.4 * (bias[:, 0] != target % values), wrong, target)
    slim = torch.where(noise[1] < 0.15 + 0.1 * (bias[:, 0] == 0), wrong, target)
    aligned = torch.arange(classes)[:, None].expand(classes, biases) % values
    return dense, slim, target, bias, aligned


@pytest.mark.parametrize("seed", range(3))
def test_two_classes_are_what_fairlearn_says(seed):
    dense, slim, target, bias, aligned = sample(values=3, seed=seed)
    record = fairness_record(dense, slim, target, bias, aligned, resamples=50)
    for name, predicted in (("dense", dense), ("slim", slim)):
        (found,) = record[name]["biases"]
        truth = target.numpy(), predicted.numpy()
        features = {"sensitive_features": bias[:, 0].numpy()}
        assert found["demographic_parity_difference"]["value"] == pytest.approx(
            demographic_parity_difference(*truth, **features), abs=1e-12
        )
        assert found["equalized_odds_difference"]["value"] == pytest.approx(
            equalized_odds_difference(*truth, **features), abs=1e-12
        )
        frame = MetricFrame(metrics=accuracy_score, y_true=truth[0], y_pred=truth[1], **features)
        assert found["accuracy_gap"]["value"] == pytest.approx(frame.difference(), abs=1e-12)
        assert [entry["class"] for entry in found["by_class"]] == [1]


def test_several_classes_are_one_against_the_rest():
    dense, slim, target, bias, aligned = sample(classes=4, values=2, n=900)
    record = fairness_record(dense, slim, target, bias, aligned, resamples=20)
    (found,) = record["slim"]["biases"]
    parity, odds = [], []
    for entry in found["by_class"]:
        truth = (target == entry["class"]).int().numpy(), (slim == entry["class"]).int().numpy()
        features = {"sensitive_features": bias[:, 0].numpy()}
        parity.append(demographic_parity_difference(*truth, **features))
        odds.append(equalized_odds_difference(*truth, **features))
        assert entry["demographic_parity_difference"]["value"] == pytest.approx(parity[-1], abs=1e-12)
        assert entry["equalized_odds_difference"]["value"] == pytest.approx(odds[-1], abs=1e-12)
    assert len(parity) == 4
    assert found["demographic_parity_difference"]["value"] == pytest.approx(max(parity), abs=1e-12)
    assert found["equalized_odds_difference"]["value"] == pytest.approx(max(odds), abs=1e-12)


@pytest.mark.parametrize("biases", [0, 1, 2])
def test_values_are_those_of_the_evaluation(biases):
    dense, slim, target, bias, aligned = sample(classes=3, values=3, biases=max(1, biases))
    bias, aligned = bias[:, :biases], aligned[:, : max(1, biases)]
    record = fairness_record(dense, slim, target, bias, aligned, resamples=20)
    for name, predicted in (("dense", dense), ("slim", slim)):
        expected = score(predicted, target, bias, aligned)
        for key in ("accuracy", "unbiased_accuracy", "worst_group_accuracy"):
            assert record[name][key]["value"] == pytest.approx(getattr(expected, key), abs=1e-12)
        groups = {group.name: (group.n, group.accuracy) for group in expected.subgroups}
        assert {g["name"]: (g["n"], pytest.approx(g[name]["value"])) for g in record["groups"]} == groups
        assert len(record[name]["biases"]) == biases
    for k in range(biases):
        change = record["change"]["biases"][k]["accuracy_gap"]["value"]
        values = [record[name]["biases"][k]["accuracy_gap"]["value"] for name in ("slim", "dense")]
        assert change == pytest.approx(values[0] - values[1])
    if biases == 1:
        on_side = bias[:, 0] == aligned[target, 0]
        gap = float((slim == target)[on_side].double().mean() - (slim == target)[~on_side].double().mean())
        assert record["slim"]["biases"][0]["aligned_conflicting_gap"]["value"] == pytest.approx(gap)


def test_intervals_are_those_of_a_bootstrap_sample_by_sample():
    dense, slim, target, bias, aligned = sample(n=300)
    record = fairness_record(dense, slim, target, bias, aligned, resamples=4000)
    generator = np.random.default_rng(1)
    cells = (target * 2 + bias[:, 0]).numpy()
    places = [np.flatnonzero(cells == cell) for cell in np.unique(cells)]
    gains, gaps = [], []
    for _ in range(2000):
        rows = np.concatenate([generator.choice(place, len(place)) for place in places])
        found = [score(each[rows], target[rows], bias[rows], aligned) for each in (dense, slim)]
        gains.append(found[1].unbiased_accuracy - found[0].unbiased_accuracy)
        gaps.append(found[1].aligned_accuracy - found[1].conflicting_accuracy)
    for interval, drawn in (
        (record["change"]["unbiased_accuracy"], gains), (record["slim"]["biases"][0]["aligned_conflicting_gap"], gaps),
    ):  # fmt: skip
        low, high = np.quantile(drawn, [0.025, 0.975])
        assert interval["low"] == pytest.approx(low, abs=0.01) and interval["high"] == pytest.approx(high, abs=0.01)
        assert interval["low"] <= interval["value"] <= interval["high"]


def test_samples_of_one_origin_are_drawn_together():
    dense, slim, target, bias, aligned = sample(n=60)
    copies = [part.repeat_interleave(8, 0) for part in (dense, slim, target, bias)]
    origin = torch.arange(60).repeat_interleave(8)
    record = fairness_record(*copies, aligned, origin, resamples=3000)
    assert (record["n"], record["origins"]) == (480, 60) and "what samples were made of" in record["interval"]["method"]
    generator, drawn = np.random.default_rng(3), []
    places = [np.flatnonzero(target.numpy() == label) for label in (0, 1)]
    for _ in range(3000):
        rows = np.concatenate([generator.choice(place, len(place)) for place in places])
        drawn.append(float((slim[rows] == target[rows]).double().mean()))
    found = record["slim"]["accuracy"]
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist(), abs=0.02)
    alone = fairness_record(*copies, aligned, resamples=1000)["slim"]["accuracy"]  # as if they were 480
    assert found["high"] - found["low"] > 2 * (alone["high"] - alone["low"])
    single = fairness_record(dense, slim, target, bias, aligned, torch.arange(60), resamples=20)
    assert single["slim"]["accuracy"]["value"] == pytest.approx(found["value"])


def test_where_no_resample_differs_there_is_no_interval():
    target = torch.arange(40) % 2
    bias = (torch.arange(40) // 2 % 2)[:, None]
    record = fairness_record(target, target, target, bias, torch.tensor([[0], [1]]), resamples=50)
    assert record["slim"]["accuracy"] == {"value": 1.0, "low": None, "high": None}
    worst = record["slim"]["worst_group_accuracy"]  # one of ten may still be wrong
    assert worst["value"] == worst["high"] == 1 and 0.6 < worst["low"] < 0.8


def test_a_class_that_only_predictions_have_counts():
    target = torch.tensor([0, 0, 1, 1] * 5)
    bias = torch.tensor([0, 1, 0, 1] * 5)[:, None]
    predicted = torch.where(bias[:, 0] == 1, 2, target)
    (found,) = fairness_record(predicted, target, target, bias, torch.tensor([[0], [1]]), resamples=10)["dense"][
        "biases"
    ]
    assert [entry["class"] for entry in found["by_class"]] == [0, 1, 2]
    assert found["demographic_parity_difference"]["value"] == 1.0
    assert found["by_class"][2]["undefined_cells"] == 2 and found["undefined_cells"] == 2


def test_what_cannot_be_told_is_undefined():
    target = torch.tensor([0, 0, 1, 1, 1, 0])
    bias = torch.tensor([0, 1, 1, 1, 1, 0])[:, None]  # class 1 never with bias 0
    predicted = torch.tensor([0, 1, 1, 1, 0, 0])
    record = fairness_record(predicted, target, target, bias, torch.tensor([[0], [1]]), resamples=50)
    (found,) = record["dense"]["biases"]
    assert found["by_class"][0]["undefined_cells"] == 1
    assert found["equalized_odds_difference"] == {"value": None, "low": None, "high": None}  # Fairlearn has 1.0
    assert found["demographic_parity_difference"]["value"] == pytest.approx(0.75)
    assert record["change"]["biases"][0]["equalized_odds_difference"]["value"] is None
    one = fairness_record(predicted, target, target, torch.zeros_like(bias), torch.tensor([[0], [0]]), resamples=10)
    assert one["dense"]["biases"][0]["accuracy_gap"]["value"] is None
    assert one["dense"]["biases"][0]["aligned_conflicting_gap"]["value"] is None  # nothing conflicts


def test_groups_say_what_changed():
    target = torch.tensor([0, 0, 0, 1, 1])
    bias = torch.tensor([0, 0, 0, 0, 1])[:, None]
    dense, slim = torch.tensor([0, 1, 2, 1, 0]), torch.tensor([1, 0, 1, 1, 1])
    record = fairness_record(dense, slim, target, bias, torch.tensor([[0], [1]]), resamples=50)
    first, second, third = record["groups"]
    assert (first["name"], first["n"], first["aligned"]) == ("y=0 b=0", 3, [True])
    assert (first["fixed"], first["broken"], first["changed"]) == (1, 1, 3)
    assert (second["changed"], third["fixed"], third["aligned"]) == (0, 1, [True])
    assert third["dense"]["value"] == 0 and third["dense"]["high"] > 0.5  # one sample tells nothing
    assert record["n"] == 5
    again = fairness_record(dense, slim, target, bias, torch.tensor([[0], [1]]), resamples=50)
    assert again == record
