"""Ways to finetune begin with the package's."""

import dataclasses

import pytest
import torch
from tables import finetunings
from tables.settings import Data
from tiny_benchmark import case_in, load, tiny

from bise_prune.config import FinetuneConfig
from bise_prune.data.multi_color_mnist import TRAIN_RHO


def test_ways_to_finetune_begin_with_the_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(finetunings, "EPOCHS", 1)

    def two_biases(root, rho, seed):
        data = load(root, rho, seed)
        parts = {
            name: part.with_bias(torch.cat([part.bias, part.bias.roll(1, 0)], 1))
            for name, part in data.splits.by_name.items()
        }
        return Data(parts["train"], dataclasses.replace(data.splits, **parts))

    weighted = {"weighting": "alignment", "rho": TRAIN_RHO}
    case = case_in(
        tmp_path, load=two_biases, rule="last",
        search=dataclasses.replace(tiny().search, **weighted),
        finetune=FinetuneConfig(epochs=1, optimizer="adam", select="last", **weighted),
    )  # fmt: skip
    expected, _ = case.tuned(case.pruned().model)
    (found,) = finetunings.networks(case, finetunings.Way("as in the tables", finetunings.product))
    (other,) = finetunings.networks(case, finetunings.WAYS["equal"])
    # not the biases in front of batch norms: their gradients are rounding errors, which Adam makes steps of
    assert torch.allclose(expected.head.weight, found.head.weight, atol=1e-5)
    assert not torch.allclose(expected.head.weight, other.head.weight, atol=1e-5)


def test_weights_of_the_ways_to_finetune():
    groups = torch.tensor([[True, True], [True, False], [False, True], [False, False]])
    assert finetunings.product(groups).tolist() == pytest.approx([1.0633, 20.2020, 105.2632, 2000.0], rel=1e-4)
    for name, expected in {
        "sum": [2.0627, 21.0101, 101.0526, 120.0],
        "sum-eq4": [0.20627, 18.1010, 90.1053, 108.0],
        "any": [1.0633, 16.8067, 16.8067, 16.8067],
        "left": [1.0101, 1.0101, 100.0, 100.0],
    }.items():
        assert finetunings.WAYS[name].weights(groups).tolist() == pytest.approx(expected, rel=1e-4)
