"""The terms of the objective (Eq. 4 and 5)."""

import pytest
import torch
from oracles import bias_information as slow_information

from bise_prune.mask_search.objective import objective_of, reweighted_cross_entropy


def test_cross_entropy_is_divided_by_the_batch():
    logits, target = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    weights = torch.tensor([1.0, 2, 3, 4, 5])
    each = -torch.log_softmax(logits, 1)[torch.arange(5), target]
    assert reweighted_cross_entropy(logits, target, weights).item() == pytest.approx((each * weights).sum().item() / 5)


def test_objective_terms():
    generator = torch.Generator().manual_seed(1)
    logits, head = (torch.randn(8, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    target = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
    bias = torch.tensor([0, 1, 2, 1, 2, 0, 2, 1])[:, None]
    aligned, weights = bias == target[:, None], torch.ones(8, dtype=torch.float64)
    loss = reweighted_cross_entropy(logits, target, weights)
    terms = objective_of(loss, 8, [head], bias, ~aligned, mi_weight=0.5)
    conflicting = ~aligned[:, 0]
    expected = slow_information(torch.softmax(head[conflicting], 1), bias[conflicting, 0])
    assert terms.mutual_information.item() == pytest.approx(expected)
    assert terms.num_conflicting.tolist() == [4]
    assert terms.total.item() == pytest.approx(terms.cross_entropy.item() + 0.5 * expected)
    without = objective_of(loss, 8, [head], bias, ~aligned, mi_weight=0.0)
    assert without.total.item() == reweighted_cross_entropy(logits, target, weights).item()
    two = objective_of(loss, 8, [head] * 2, bias.repeat(1, 2), ~aligned.repeat(1, 2), mi_weight=1.0)
    assert two.mutual_information.item() == pytest.approx(2 * expected)
