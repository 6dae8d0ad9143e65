"""Loaders of every kind, and data that cannot be debiased."""

import pytest
import torch
from cases import SHORT, biased_data, biased_loader, images, network

from bise_prune import SearchConfig, search
from bise_prune.data import BatchLoader
from bise_prune.errors import BiseError, DataError


@pytest.mark.parametrize("fields", ["dict", "named tuple"])
def test_loaders_may_yield_dicts_or_named_tuples(fields):
    batches = list(biased_loader())
    as_dicts = [{"input": b.input, "target": b.target, "bias": b.bias[:, 0]} for b in batches]
    found = search(network("mlp"), as_dicts if fields == "dict" else batches, SearchConfig(**SHORT))
    assert len(found.history) == 6


def test_several_biases():
    loader = biased_loader(biases=2, n=150)
    found = search(network("mlp"), loader, SearchConfig(**SHORT), loader)
    assert found.aligned.tolist() == [[0, 0], [1, 1], [2, 2]]
    names = [group.name for group in found.history[0].validation.subgroups]
    assert names[0] == "aligned, aligned" and len(names) == 4


def test_data_that_cannot_be_debiased_are_refused():
    with pytest.raises(DataError, match="no bias-conflicting sample among 120"):
        search(network("mlp"), biased_loader(rho=1.1), SearchConfig(**SHORT))
    with pytest.raises(DataError, match="labels run from 0 to 3, but the model has 3 classes"):
        search(network("mlp"), biased_loader(classes=4), SearchConfig(**SHORT))
    with pytest.raises(DataError, match="loader is empty"):
        search(network("mlp"), [], SearchConfig(**SHORT))
    with pytest.raises(DataError, match="give a loader, not an iterator"):
        search(network("mlp"), iter(biased_loader()), SearchConfig(**SHORT))
    with pytest.raises(DataError, match="no tensor field 'bias'"):
        search(network("mlp"), [{"input": images(), "target": torch.zeros(2)}], SearchConfig(**SHORT))


def test_nan_stops_the_search():
    data = biased_data()
    data.inputs[3] = float("nan")
    with pytest.raises(BiseError, match="in epoch 1: check the inputs for NaN"):
        search(network("mlp"), BatchLoader(data, 20), SearchConfig(**SHORT))


def test_class_and_bias_counts_may_differ_and_alignment_may_be_given():
    data = biased_data(n=120)
    four = data.with_bias(torch.where(data.target == data.bias[:, 0], data.target, 3)[:, None])
    found = search(network("mlp"), BatchLoader(four, 20), SearchConfig(**SHORT))
    assert found.aligned.tolist() == [[0], [1], [2]] and found.num_conflicting == (int((four.bias == 3).sum()),)
    given = search(network("mlp"), BatchLoader(data, 20), SearchConfig(**SHORT), aligned=torch.tensor([[1], [2], [0]]))
    assert given.aligned.tolist() == [[1], [2], [0]] and given.num_conflicting[0] > found.num_conflicting[0]


def test_training_data_without_bias_labels_are_refused():
    data = biased_data()
    with pytest.raises(DataError, match="no bias labels"):
        search(network("mlp"), BatchLoader(data.with_bias(data.bias[:, :0]), 20), SearchConfig(**SHORT))


def test_inputs_that_do_not_fit_are_named():
    data = biased_data()
    with pytest.raises(DataError, match=r"inputs are torch\.float32, the model is torch\.float64"):
        search(network("mlp").double(), BatchLoader(data, 20), SearchConfig(**SHORT))
    raw = [{"input": data.inputs.to(torch.uint8), "target": data.target, "bias": data.bias}]
    with pytest.raises(DataError, match=r"inputs are torch\.uint8"):
        search(network("mlp"), raw, SearchConfig(**SHORT))
    with pytest.raises(DataError, match="the validation data have 2 biases, the training data 1"):
        search(network("mlp"), biased_loader(), SearchConfig(**SHORT), biased_loader(biases=2))
