"""The sentence about what the masks add beyond cheap changes."""

import pytest

from bise_prune.report.ladder import ladder_sentence


def sentence(dense, slim, shifted):
    """Of networks with these unbiased accuracies as they are, and of the dense one with offsets."""
    figures = {("dense", "none"): dense, ("slim", "none"): slim, ("dense", "shift"): shifted}
    rows = [
        {"network": network, "rung": rung, "changes": [], "unbiased_accuracy": figures.get((network, rung), 0.9)}
        for rung in ("none", "shift", "norms", "head")
        for network in ("dense", "slim")
    ]
    return ladder_sentence({"ladder": {"rows": rows, "masks_add": {"none": slim - dense}, "trained_before": False}})


@pytest.mark.parametrize(
    ("shifted", "words"),
    [
        (0.62, " (all of it a shift: offsets of the dense network's logits alone give +12.0);"),
        (0.56, " (most of it a shift: offsets of the dense network's logits alone give +6.0);"),
        (0.54, ";"),
    ],
)
def test_how_much_of_the_gain_is_a_shift(shifted, words):
    assert f"the masks add +10.0 points of unbiased accuracy{words} with logit offsets" in sentence(0.5, 0.6, shifted)


def test_a_shift_explains_nothing_where_there_is_no_gain():
    assert "a shift" not in sentence(0.5, 0.505, 0.6) and "a shift" not in sentence(0.6, 0.5, 0.6)
