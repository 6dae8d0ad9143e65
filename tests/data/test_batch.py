"""Fields of a data set belong together."""

import pytest
import torch

from bise_prune.data import BiasedDataset
from bise_prune.data.batch import as_batch
from bise_prune.errors import DataError


def test_fields_must_belong_together():
    with pytest.raises(DataError, match="do not belong together"):
        BiasedDataset(torch.zeros(2, 3), torch.zeros(2), torch.zeros(3, 1))


def test_fields_of_a_batch_must_belong_together():
    good = {"input": torch.zeros(2, 3), "target": torch.zeros(2).long(), "bias": torch.zeros(2).long()}
    assert as_batch(good).bias.shape == (2, 1)
    for change in ({"target": torch.zeros(3).long()}, {"bias": torch.zeros(1).long()}, {"input": torch.zeros(1, 3)}):
        with pytest.raises(DataError, match="fields of a batch differ: input"):
            as_batch({**good, **change})


def test_a_data_set_is_collected_from_batches_of_any_kind():
    labels = {"target": torch.tensor([0, 1]), "bias": torch.tensor([1, 1])}
    data = BiasedDataset.collected([{"input": {"ids": torch.full((2, 3), i)}, **labels} for i in range(2)])
    assert data.inputs["ids"][:, 0].tolist() == [0, 0, 1, 1] and data.bias.tolist() == [[1]] * 4
    assert data.to("cpu").target.tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError, match="there is no sample to collect"):
        BiasedDataset.collected([])
