"""The digits of the demo."""

import pytest
import torch

from bise_prune.data import load_data


def test_demo_digits():
    splits = load_data("digits,rho=0.9,samples=2000,seed=1")
    assert splits.train.inputs.shape == (2000, 3, 16, 16) and splits.train.inputs.dtype == torch.uint8
    share = (splits.train.target == splits.train.bias[:, 0]).double().mean().item()
    assert share == pytest.approx(0.9, abs=0.01)
    for part in (splits.val, splits.test):
        cells = torch.bincount(part.target * 10 + part.bias[:, 0], minlength=100).view(10, 10)
        assert bool((cells == cells[:, :1]).all())  # every scan in every colour
    again = load_data("digits,rho=0.9,samples=2000,seed=1")
    assert torch.equal(again.train.inputs, splits.train.inputs)
