"""Offsets of the logits, against every offset that there is."""

import itertools

import pytest
import torch

from bise_prune.tuning.shift import fitted_offsets, mean_of_groups, worst_of_groups


def scores(logits, target, groups, offsets):
    hits = ((logits.double() + offsets).argmax(1) == target).double()
    return (groups.double() / groups.sum(1, keepdim=True)) @ hits


def problem(classes, n=120, seed=0):
    """Noisy logits that favour class 0, and subgroups of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (n,), generator=generator)
    logits = torch.randn(n, classes, generator=generator) + 1.5 * torch.eye(classes)[target]
    logits[:, 0] += 1.5
    side = torch.rand(n, generator=generator) < 0.2
    groups = torch.stack([(target == y) & (side == b) for y in range(classes) for b in (False, True)])
    return logits, target, groups[groups.any(1)]


@pytest.mark.parametrize("figure", [mean_of_groups, worst_of_groups])
@pytest.mark.parametrize("seed", range(5))
def test_for_two_classes_no_offset_is_better(figure, seed):
    logits, target, groups = problem(2, seed=seed)
    found = fitted_offsets(logits, target, groups, figure)
    best = float(figure(scores(logits, target, groups, found)[:, None]))
    edges = (logits[:, 0] - logits[:, 1]).double().sort().values
    for middle in [*((edges[1:] + edges[:-1]) / 2).tolist(), float(edges[0]) - 1, float(edges[-1]) + 1]:
        other = scores(logits, target, groups, torch.tensor([0.0, middle]).double())
        assert float(figure(other[:, None])) <= best + 1e-9
    assert best >= float(figure(scores(logits, target, groups, torch.zeros(2))[:, None]))


@pytest.mark.parametrize("figure", [mean_of_groups, worst_of_groups])
def test_for_more_classes_no_change_of_one_offset_is_better(figure):
    logits, target, groups = problem(4)
    found = fitted_offsets(logits, target, groups, figure)
    best = float(figure(scores(logits, target, groups, found)[:, None]))
    assert best > float(figure(scores(logits, target, groups, torch.zeros(4))[:, None])) + 0.02
    for label, step in itertools.product(range(4), torch.linspace(-4, 4, 161).tolist()):
        other = found.clone()
        other[label] += step
        assert float(figure(scores(logits, target, groups, other)[:, None])) <= best + 1e-9


def test_offsets_that_gain_nothing_stay_0():
    target = torch.arange(30) % 3
    logits = 5.0 * torch.eye(3)[target]
    groups = torch.stack([target == y for y in range(3)])
    assert torch.equal(fitted_offsets(logits, target, groups), torch.zeros(3).double())


def test_equal_logits_leave_no_room_between_them():
    logits = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    target = torch.tensor([0, 1, 1])
    groups = torch.ones(1, 3, dtype=torch.bool)
    found = fitted_offsets(logits, target, groups)
    assert float(scores(logits, target, groups, found)) == pytest.approx(2 / 3)
