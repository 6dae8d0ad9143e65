"""Corrupted CIFAR-10: shares, cells, seeds."""

import numpy as np
import pytest
import torch
from folders import write_sheets
from paths import SHARED

from bise_prune.data.cifar10 import load_cifar10
from bise_prune.data.corrupted_cifar10 import assign_shares, load_corrupted_cifar10
from bise_prune.data.corruptions import CORRUPTIONS
from bise_prune.errors import ConfigError, DataError


@pytest.mark.parametrize(("rho", "aligned"), [(0.995, 4975), (0.99, 4950), (0.98, 4900), (0.95, 4750)])
def test_aligned_images_per_class(rho, aligned):
    labels = torch.arange(10).repeat(5000)
    cells = torch.bincount(labels * 10 + assign_shares(labels, rho), minlength=100).view(10, 10)
    assert cells.diagonal().tolist() == [aligned] * 10
    others = cells[~torch.eye(10, dtype=torch.bool)]
    assert abs(others - (5000 - aligned) / 9).max() < 1 and int(cells.sum()) == 50_000


def test_every_cell_of_the_test_set_has_100_images():
    labels = torch.arange(10).repeat_interleave(1000)
    cells = torch.bincount(labels * 10 + assign_shares(labels, 0.1), minlength=100)
    assert cells.tolist() == [100] * 100


def test_shares_follow_the_file_order():
    labels = torch.tensor([1, 0] * 20)
    bias = assign_shares(labels, 0.7, num_bias_classes=3)
    assert bias[labels == 0].tolist() == [0] * 14 + [1] * 3 + [2] * 3
    assert bias[labels == 1].tolist() == [0] * 3 + [1] * 14 + [2] * 3


def test_images_carry_the_corruption_of_their_label(tmp_path):
    write_sheets(tmp_path)
    splits = load_corrupted_cifar10(tmp_path, rho=0.6, samples=100, seed=3)
    clean, labels = load_cifar10(tmp_path, "train")
    assert torch.equal(splits.train.target, labels) and splits.train.bias.shape == (100, 1)
    assert int((splits.train.bias[:, 0] == labels).sum()) == 60
    for i in range(100):
        name, corruption = CORRUPTIONS[splits.train.bias[i, 0]]
        if name in ("brightness", "contrast", "JPEG", "pixelate", "saturate"):
            expected = corruption(clean[i].permute(1, 2, 0).numpy(), np.random.default_rng(99))
            assert np.array_equal(splits.train.inputs[i].permute(1, 2, 0).numpy(), expected), name
        assert not torch.equal(splits.train.inputs[i], clean[i])
    cells = torch.bincount(splits.test.target * 10 + splits.test.bias[:, 0], minlength=100)
    assert cells.tolist() == [1] * 100
    assert splits.val is None and splits.classes[0] == "plane"
    assert any("LfF recipe, severity 5, procedural frost; not the archive" in note for note in splits.notes)
    batch = splits.train.batch(torch.tensor([0]))
    first = (splits.train.inputs[0, 0, 0, 0].item() / 255 - 0.4914) / 0.2023
    assert batch.input[0, 0, 0, 0].item() == pytest.approx(first, abs=1e-5)


def test_the_seed_and_the_number_of_samples(tmp_path):
    write_sheets(tmp_path, train=2)
    full, again, other = (load_corrupted_cifar10(tmp_path, 0.5, seed, samples=200) for seed in (0, 0, 1))
    assert torch.equal(full.train.inputs, again.train.inputs) and torch.equal(full.test.inputs, again.test.inputs)
    assert torch.equal(full.train.bias, other.train.bias)
    drawn = (full.train.inputs != other.train.inputs).flatten(1).any(1)
    assert set(full.train.bias[drawn, 0].tolist()) == {0, 1, 2, 5, 6}  # the corruptions that draw random numbers
    snow = full.train.inputs[full.train.bias[:, 0] == 0]
    assert len(snow.unique(dim=0)) == len(snow)
    part = load_corrupted_cifar10(tmp_path, 0.5, samples=50)
    assert torch.bincount(part.train.target).tolist() == [5] * 10
    # The subset leads: its images are the first of each class, with the same random numbers.
    assert torch.equal(part.train.inputs[0], full.train.inputs[0]) and part.train.bias[0] == full.train.bias[0]
    with pytest.raises(DataError, match=r"samples=210 needs 21 .* the files hold 20 of 'plane', 20 of 'car'"):
        load_corrupted_cifar10(tmp_path, samples=210)


@pytest.mark.parametrize("argument", [{"rho": 1.0}, {"rho": 0.05}, {"samples": 15}, {"samples": 0}, {"seed": -1}])
def test_arguments_are_checked(tmp_path, argument):
    ((name, value),) = argument.items()
    with pytest.raises(ConfigError, match=f"{name}={value}.*; expected rho in"):
        load_corrupted_cifar10(tmp_path, **argument)


@pytest.fixture
def cifar10():
    folder = SHARED / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"no CIFAR-10 in {folder.parent.name}/{folder.name} beside the project")
    return folder


@pytest.mark.slow
def test_real_corrupted_cifar10(cifar10):
    images, labels = load_cifar10(cifar10, "train")
    assert torch.bincount(labels).tolist() == [5000] * 10
    means = [images[:, c].double().mean().item() / 255 for c in range(3)]
    assert means == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=1e-7)
    splits = load_corrupted_cifar10(cifar10, rho=0.95, samples=1000)
    assert int((splits.train.bias[:, 0] == splits.train.target).sum()) == 950
    cells = torch.bincount(splits.test.target * 10 + splits.test.bias[:, 0], minlength=100)
    assert cells.tolist() == [100] * 100
