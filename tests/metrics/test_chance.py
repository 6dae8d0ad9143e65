"""What a classifier that does not look at its input gets, and whether one of two classifiers is the better."""

import pytest
import torch

from bise_prune.metrics.chance import against_chance, unbiased_change


def cells(target, bias):
    return [(target == y) & (bias == b) for y in target.unique() for b in bias.unique()]


def test_chance_is_one_over_the_classes_if_each_has_as_many_subgroups():
    generator = torch.Generator().manual_seed(0)
    target, bias = (torch.randint(0, 3, (900,), generator=generator) for _ in range(2))
    predicted = torch.randint(0, 2, (900,), generator=generator)  # never class 2
    found = against_chance(predicted, target, cells(target, bias))
    assert found.chance == pytest.approx(1 / 3) and not found.is_constant and not found.is_above()
    assert against_chance(target, target, cells(target, bias)).is_above(20)


def test_chance_is_what_shuffled_predictions_get_on_average():
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(400, generator=generator) < 0.2).long()
    bias = target.clone()
    bias[:30] = 1 - bias[:30]
    members = cells(target, bias)[:3]  # class 1 has one subgroup, class 0 two
    predicted = (torch.rand(400, generator=generator) < 0.3).long()
    expected = against_chance(predicted, target, members)
    shuffled = [against_chance(predicted[torch.randperm(400, generator=generator)], target, members).accuracy
                for _ in range(300)]  # fmt: skip
    spread = torch.tensor(shuffled).std().item()
    assert sum(shuffled) / 300 == pytest.approx(expected.chance, abs=4 * spread / 300**0.5)
    assert spread == pytest.approx(expected.noise, rel=0.25)


def test_a_constant_is_never_above_chance():
    target = torch.tensor([0] * 90 + [1] * 10)
    found = against_chance(torch.zeros(100, dtype=torch.long), target)
    assert found.is_constant and found.accuracy == found.chance == 0.9 and not found.is_above()
    alone = against_chance(torch.zeros(5, dtype=torch.long), torch.zeros(5, dtype=torch.long))
    assert not alone.is_constant  # there is but one class


def test_a_change_is_beyond_the_noise_only_with_enough_samples():
    assert unbiased_change([(1, 0, 1)] + [(20, 0, 0)] * 3)[1] > 0  # one sample of one
    assert unbiased_change([(100, 0, 100)] + [(20, 0, 0)] * 3)[1] < 0
    low, high = unbiased_change([(50, 5, 5), (80, 7, 7)])
    assert low == pytest.approx(-high)
    mirrored = unbiased_change([(50, 9, 2), (80, 30, 7)])
    low, high = unbiased_change([(50, 2, 9), (80, 7, 30)])
    assert (-high, -low) == pytest.approx(mirrored)
