"""The probe reads a bias that is there and none that is not."""

import pytest
from cases import biased_loader, images, random_masks

from bise_prune import apply_masks
from bise_prune.data import BatchLoader
from bise_prune.diagnostics.probe import probe_bias
from bise_prune.errors import DataError


def test_a_probe_reads_a_bias_that_is_there_and_none_that_is_not(trained):
    train, test = biased_loader(n=300, rho=1 / 3, seed=4), biased_loader(n=150, rho=1 / 3, seed=5)
    read = probe_bias(trained, train, test, epochs=60)
    assert read.accuracy[0] > 0.55 > 0.45 > read.majority[0] and read.n == 150
    closed = random_masks(trained, images(), "tied")
    for logits in closed.logits.values():
        logits.fill_(-1.0)
    blind = probe_bias(apply_masks(trained, closed, images()), train, test, epochs=5)
    assert blind.accuracy[0] <= blind.majority[0] + 0.02  # no feature is left
    assert probe_bias(trained, train, test, epochs=60) == read
    with pytest.raises(DataError, match="samples with bias labels"):
        unlabelled = train.data.with_bias(train.data.bias[:, :0])
        probe_bias(trained, BatchLoader(unlabelled, 20), test)
