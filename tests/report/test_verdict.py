"""The outcome of a run, from the figures of its report record."""

import pytest

from bise_prune.report.verdict import Verdict, frontier_sentence, verdict_of, verdict_sentence


def fairness(low, high, *groups):
    return {
        "interval": {"level": 0.95},
        "change": {"unbiased_accuracy": {"value": 0.0, "low": low, "high": high}},
        "groups": [{"n": n, "fixed": fixed, "broken": broken} for n, fixed, broken in groups],
    }


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        (fairness(0.05, 0.2, (100, 20, 5), (100, 15, 2)), Verdict.IMPROVED),
        (fairness(-0.2, -0.05, (100, 5, 20), (100, 2, 15)), Verdict.WORSE),
        (fairness(-0.02, 0.05, (100, 5, 6), (100, 6, 5)), Verdict.EQUAL),
        (fairness(-0.5, -0.4, (1, 0, 1), (50, 1, 0)), Verdict.EQUAL),  # the bootstrap takes one sample as certain
        (fairness(None, None, (100, 0, 100), (100, 0, 0)), Verdict.WORSE),  # no resample differs
        (fairness(None, None, (100, 0, 0), (100, 0, 0)), Verdict.EQUAL),
    ],
)
def test_a_change_counts_if_it_is_beyond_the_noise(figures, expected):
    assert verdict_of(figures) is expected


def test_the_first_sentence_follows_from_the_outcome():
    record = {"evaluated_on": "test", "dense": {"unbiased_accuracy": 0.8}, "slim": {"unbiased_accuracy": 0.7}}
    worse = {**record, "fairness": fairness(-0.2, -0.05, (100, 5, 20), (100, 2, 15))}
    equal = {**record, "fairness": fairness(-0.02, 0.05, (100, 5, 6), (100, 6, 5))}
    assert verdict_sentence(worse) == (
        "On the test split, the slim network's unbiased accuracy is lower than the dense network's, beyond the noise: "
        "70.0% against 80.0%."
    )
    assert "equals the dense network's within the noise" in verdict_sentence(equal)
    frontier = {"frontier": [{"report": worse}, {"report": equal}, {"report": worse}], "failed": [{}]}
    assert "improved 0, equal 1, worse 2, without a result 1" in frontier_sentence(frontier)
