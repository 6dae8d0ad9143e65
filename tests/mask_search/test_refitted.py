"""The head that is refitted to the present masks, and the sample that it is fitted to."""

import pytest
import torch
from cases import biased_data, network
from sklearn.linear_model import LogisticRegression
from torch import nn

from bise_prune import SearchConfig
from bise_prune.data import BatchLoader
from bise_prune.mask_search.assembly import assemble
from bise_prune.mask_search.refitted import balanced_sample, refitted_head


def test_the_head_is_a_logistic_regression_on_standardised_features():
    generator = torch.Generator().manual_seed(0)
    features = 3 + 5 * torch.randn(300, 6, generator=generator)
    target = (features @ torch.randn(6, 3, generator=generator) + torch.randn(300, 3, generator=generator)).argmax(1)
    head = refitted_head(features, target, 3)
    inputs = (features - features.mean(0)) / features.std(0)
    oracle = LogisticRegression(C=1 / (0.01 * 300), max_iter=1000, tol=1e-8).fit(inputs.numpy(), target.numpy())
    ours = torch.softmax(nn.functional.linear(features, head[:, :-1], head[:, -1]), 1)
    assert torch.allclose(ours, torch.tensor(oracle.predict_proba(inputs.numpy())).float(), atol=0.01)


@pytest.mark.parametrize(("count", "penalty", "bound"), [(600, 1e-6, 1e-3), (12, 1e-4, 1e-2)])
def test_features_that_depend_on_each_other_and_a_weak_penalty_give_the_minimum(count, penalty, bound):
    """The second case has more features than samples."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, 4, generator=generator, dtype=torch.double)
    features = hidden @ torch.randn(4, 60, generator=generator, dtype=torch.double)
    features += 0.03 * torch.randn(count, 60, generator=generator)
    target = (hidden[:, :3] + torch.randn(count, 3, generator=generator)).argmax(1)
    weights = 0.5 + torch.rand(count, generator=generator, dtype=torch.double)
    weights /= weights.sum()
    head = refitted_head(features, target, 3, weights, penalty)
    mean = weights @ features
    inputs = ((features - mean) / (weights @ (features - mean).square()).sqrt()).numpy()
    oracle = LogisticRegression(C=1 / penalty, max_iter=100_000, tol=1e-10)
    expected = oracle.fit(inputs, target.numpy(), weights.numpy()).predict_proba(inputs)
    ours = torch.softmax(nn.functional.linear(features, head[:, :-1], head[:, -1]), 1)
    assert torch.allclose(ours, torch.tensor(expected), rtol=0, atol=bound)


def test_features_that_are_not_finite_give_a_head_that_is_not():
    features = torch.full((50, 3), torch.nan)
    assert not refitted_head(features, torch.arange(50) % 2, 2).isfinite().all()


def test_a_constant_feature_does_no_harm():
    features = torch.cat([torch.randn(50, 2), torch.zeros(50, 1)], 1)
    head = refitted_head(features, (features[:, 0] > 0).long(), 2)
    assert torch.isfinite(head).all()


class Streamed:
    """A loader whose samples have no numbers."""

    def __init__(self, loader):
        self.loader = loader

    def __iter__(self):
        return iter(self.loader)


@pytest.mark.parametrize("wrap", [lambda loader: loader, Streamed])
def test_the_sample_is_balanced_over_the_subgroups(wrap):
    data = biased_data(n=900, rho=0.9)
    found = assemble(network("mlp"), wrap(BatchLoader(data, 50)), SearchConfig(steps=12))
    parts, numbers, larger = balanced_sample(
        found.data, found.labels, found.state.position, torch.Generator().manual_seed(1), 3000
    )
    batches = [found.data.batch(part) for part in parts]
    again = torch.cat([found.data.batch(part).input for part in larger])
    assert torch.equal(again, torch.cat([batch.input for batch in batches]))  # the same samples in the same order
    labels, bias = torch.cat([b.target for b in batches]), torch.cat([b.bias for b in batches])[:, 0]
    classes, values = len(data.target.unique()), len(data.bias.unique())
    cells = torch.bincount(labels * values + bias, minlength=classes * values)
    expected = 3000 / len(cells)
    assert ((cells - expected).abs() < 0.05 * expected).all()
    assert abs(int(cells.sum()) - 3000) <= 1
    samples = torch.cat([b.input.flatten(1) for b in batches])
    assert len(samples.unique(dim=0)) == len(torch.cat(numbers).unique())  # copies, and only they, have one number
    assert len(torch.cat([samples, torch.cat(numbers)[:, None]], 1).unique(dim=0)) == len(samples.unique(dim=0))


def test_a_set_that_is_balanced_is_its_own_sample():
    data = biased_data(n=120)
    found = assemble(network("mlp"), BatchLoader(data, 50), SearchConfig(steps=12, weighting="none"))
    parts, _, larger = balanced_sample(
        found.data, found.labels, found.state.position, torch.Generator().manual_seed(1), 120
    )
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(120)) and len(parts) > 1
    assert torch.equal(torch.cat(larger), torch.cat(parts)) and {len(part) for part in larger[:-1]} == {50}
