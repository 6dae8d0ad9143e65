"""Weights of Equations 4, B.8 and B.9."""

import pytest
import torch

from bise_prune.errors import ConfigError
from bise_prune.mask_search.weights import alignment_weights, sample_weights, subgroup_weights
from bise_prune.metrics.subgroups import aligned_values


@pytest.mark.parametrize(
    ("rho", "conflicting"), [(0.99, 90), (0.995, 180), (0.997, 300), (0.999, 900), (0.98, 45), (0.95, 18)]
)
def test_weights_of_equation_4(rho, conflicting):
    weights = alignment_weights([rho], 10)
    assert weights[0].item() == pytest.approx(conflicting)
    assert weights[1].item() == pytest.approx(1 / (10 * rho))


def test_weights_of_equation_b9():
    weights = alignment_weights([0.99, 0.95], 10)
    assert [round(weights[flags].item(), 2) for flags in ((1, 1), (1, 0), (0, 1), (0, 0))] == [1.06, 20.2, 105.26, 2000]


def test_subgroup_weights_give_celebas_of_equation_b8():
    # CelebA's training split without the 277 validation images of each group: dark or blond, female or male.
    counts = torch.tensor([[71629 - 277, 66874 - 277], [22880 - 277, 1387 - 277]])
    weights = subgroup_weights(counts)
    assert weights.flatten().tolist() == pytest.approx([0.566, 0.607, 1.788, 36.41], rel=1e-3)
    assert (weights * counts).sum().item() == pytest.approx(counts.sum().item())


def test_subgroup_weights_equal_equation_4_for_even_conflicts():
    counts = torch.full((10, 10), 1)
    counts.fill_diagonal_(891)  # rho = .99
    weights, expected = subgroup_weights(counts), alignment_weights([0.99], 10)
    assert weights[0, 0].item() == pytest.approx(expected[1].item())
    assert weights[0, 1].item() == pytest.approx(expected[0].item())


def test_empty_subgroups_count_as_one():
    assert subgroup_weights(torch.tensor([[5, 0], [1, 4]])).tolist() == [[0.5, 2.5], [2.5, 0.625]]


def test_labels_that_never_occur_do_not_count():
    counts = torch.tensor([[0, 4, 1], [0, 2, 1]])
    assert torch.equal(subgroup_weights(counts)[:, 1:], subgroup_weights(counts[:, 1:]))


def test_weights_follow_the_labels():
    target, bias = torch.tensor([0, 0, 1, 1]), torch.tensor([[0], [1], [1], [1]])
    aligned = aligned_values(target, bias, 2)
    weights = sample_weights(target, bias, 2, aligned, "subgroup", None)
    assert weights(target, bias).tolist() == [1, 1, 0.5, 0.5]
    both = torch.cat([bias, 1 - bias], 1)
    product = sample_weights(target, both, 2, aligned_values(target, both, 2), "alignment", (0.9, 0.8))
    assert product(target, both).tolist() == pytest.approx([1 / 0.72, 1 / 0.02, 1 / 0.72, 1 / 0.72])
    assert sample_weights(target, both, 2, aligned, "none", None)(target, both).tolist() == [1] * 4


def test_weightings_that_do_not_fit_are_refused():
    target, bias = torch.tensor([0, 1]), torch.tensor([[0, 1], [1, 0]])
    aligned = aligned_values(target, bias, 2)
    with pytest.raises(ConfigError, match="takes one bias, the data have 2"):
        sample_weights(target, bias, 2, aligned, "subgroup", None)
    with pytest.raises(ConfigError, match="rho has 1 values, the data have 2 biases"):
        sample_weights(target, bias, 2, aligned, "alignment", (0.9,))
