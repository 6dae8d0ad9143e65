"""Batches: shuffled and reproducible, stratified, made ahead."""

import pytest
import torch
from cases import SHORT, biased_data, network

from bise_prune import SearchConfig, search
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.errors import DataError


def test_passes_are_shuffled_anew_and_reproducible():
    data = biased_data(n=30)
    first, second = BatchLoader(data, 8, shuffle=True, seed=3), BatchLoader(data, 8, shuffle=True, seed=3)
    orders = [torch.cat([batch.input for batch in loader]) for loader in (first, first, second)]
    assert not torch.equal(orders[0], orders[1]) and torch.equal(orders[0], orders[2])
    second.set_epoch(1)
    assert torch.equal(torch.cat([batch.input for batch in second]), orders[1])
    assert len(first) == 4 and [len(batch.target) for batch in first] == [8, 8, 8, 6]


def test_stratified_batches_share_every_subgroup_evenly():
    data = biased_data(n=600, rho=0.9)
    loader = BatchLoader(data, 60, shuffle=True, stratified=True)
    cells = data.target * 3 + data.bias[:, 0]
    seen = []
    for rows in loader.rows():
        seen.append(rows)
        for cell in cells.unique().tolist():
            fair = float((cells == cell).sum()) / 10
            assert abs(int((cells[rows] == cell).sum()) - fair) <= 2
    assert torch.cat(seen).sort().values.tolist() == list(range(600))
    loader.set_epoch(0)
    assert all(torch.equal(a, b) for a, b in zip(loader.rows(), seen, strict=True))


def test_a_remainder_of_one_sample_joins_the_batch_before():
    loader = BatchLoader(biased_data(n=101), 20, shuffle=True)
    sizes = [len(rows) for rows in loader.rows()]
    assert sizes == [20, 20, 20, 20, 21] and len(loader) == 5
    search(network("simple_convnet"), loader, SearchConfig(**SHORT, batchnorm="statistics"))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_made_ahead_are_the_same(workers):
    data = BiasedDataset(torch.arange(50.0)[:, None], torch.arange(50) % 2, torch.zeros(50, 1, dtype=torch.long))
    plain = BatchLoader(data, 8, shuffle=True, seed=1)
    ahead = BatchLoader(data, 8, shuffle=True, seed=1, workers=workers)
    for first, second in zip(plain, ahead, strict=True):
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    rows = list(plain.rows())
    for expected, (found, batch) in zip(rows, ahead.prepared(rows), strict=True):
        assert found is expected and torch.equal(batch.input[:, 0], expected.float())


def test_an_error_while_a_batch_is_made_reaches_the_reader():
    loader = BatchLoader(BiasedDataset(torch.zeros(4, 1), torch.zeros(4), torch.zeros(4, 1)), 2, workers=2)
    with pytest.raises(IndexError):
        list(loader.prepared([torch.tensor([9])]))


def test_a_list_of_samples_is_collected():
    sample = {"input": torch.rand(3, 4, 4), "target": torch.tensor(1), "bias": torch.tensor(0)}
    found = BiasedDataset.collected([sample] * 3)
    assert found.inputs.shape == (3, 3, 4, 4) and found.target.tolist() == [1, 1, 1] and found.bias.shape == (3, 1)
    with pytest.raises(DataError, match="fields of a batch differ"):
        BiasedDataset.collected(iter([sample]))
