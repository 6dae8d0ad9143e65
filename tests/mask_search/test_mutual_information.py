"""Mutual information against its definition, and over a pool."""

import pytest
import torch
from cases import SHORT, biased_loader, network, same_masks
from oracles import bias_information as slow_information

from bise_prune import SearchConfig, search
from bise_prune.mask_search.mutual_information import JointPool, bias_information, information, joint_sums

# -- mutual information and objective --------------------------------------------------------------


@pytest.mark.parametrize(
    ("bias", "probs", "value"),
    [
        ([0, 1], [[0.9, 0.1], [0.2, 0.8]], 0.3973126),
        ([0, 1], [[1.0, 0.0], [0.0, 1.0]], 1.0),
        ([0, 1], [[0.5, 0.5], [0.5, 0.5]], 0.0),
        ([1, 1], [[0.9, 0.1], [0.2, 0.8]], 0.0),
        ([0, 1, 2, 2], [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.3, 0.3, 0.4]], 0.1949797),
    ],
)
def test_information_golden_values(bias, probs, value):
    result = bias_information(torch.tensor(probs, dtype=torch.float64), torch.tensor(bias))
    assert result.item() == pytest.approx(value, abs=1e-7)


def test_information_against_its_definition():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        n, classes = (
            int(torch.randint(2, 30, (), generator=generator)),
            int(torch.randint(2, 6, (), generator=generator)),
        )
        probs = torch.softmax(3 * torch.randn(n, classes, generator=generator, dtype=torch.float64), 1)
        bias = torch.randint(0, classes, (n,), generator=generator)
        value = bias_information(probs, bias).item()
        assert value == pytest.approx(slow_information(probs, bias), abs=1e-12)
        assert -1e-12 <= value <= 1 + 1e-12
        order, relabelled = torch.randperm(n, generator=generator), torch.randperm(classes, generator=generator)
        assert bias_information(probs[order], relabelled[bias[order]]).item() == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("n", [0, 1])
def test_information_is_silent_below_two_samples(n):
    probs = torch.full((n, 3), 1 / 3, requires_grad=True)
    value = bias_information(probs, torch.zeros(n, dtype=torch.long))
    value.backward()
    assert value.item() == 0
    assert probs.grad.abs().sum().item() == 0


def test_information_gradient_is_right():
    bias = torch.tensor([0, 1, 1, 2])
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: bias_information(torch.softmax(z, 1), bias), logits)


# -- mutual information over a pool ----------------------------------------------------------------


def test_a_pool_that_holds_one_batch_is_that_batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    bias, counted = torch.arange(12) % 3, torch.arange(12) % 4 != 0
    pool = JointPool(500)
    pooled = information(*pool.add(0, joint_sums(torch.softmax(logits, 1), bias, counted), counted.sum()))
    plain = bias_information(torch.softmax(logits[counted], 1), bias[counted])
    assert pooled.item() == pytest.approx(plain.item(), abs=1e-12)
    ours, theirs = (torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (pooled, plain))
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_a_pool_remembers_as_many_samples_as_it_holds():
    generator = torch.Generator().manual_seed(0)
    pool, probs, biases = JointPool(40), [], []
    for _ in range(9):
        probs.append(torch.softmax(2 * torch.randn(10, 3, generator=generator, dtype=torch.float64), 1))
        biases.append(torch.randint(0, 3, (10,), generator=generator))
        every = torch.ones(10, dtype=torch.bool)
        sums, count = pool.add(0, joint_sums(probs[-1], biases[-1], every), every.sum())
        assert float(count) == min(40, 10 * len(probs))
    few = information(*JointPool(10).add(0, joint_sums(probs[0], biases[0], every), every.sum()))
    assert float(information(sums, count)) < float(few)  # less of it is chance


def test_pooled_information_is_not_silent_in_small_batches():
    loader = biased_loader(batch_size=4, rho=0.9)
    plain, pooled = (search(network("mlp"), loader, SearchConfig(**SHORT, mi_pool=size)) for size in (0, 200))
    assert plain.history[0].silent_share > 0.5 > pooled.history[0].silent_share
    assert not same_masks(plain.last, pooled.last)
