"""MNIST's files, BiasedMNIST and Multi-Color MNIST."""

import gzip

import numpy as np
import pytest
import torch

from bise_prune.data import load_data
from bise_prune.data.biased_mnist import (
    PALETTE,
    assign_bias,
    colour_backgrounds,
    load_biased_mnist,
    vanilla_training_set,
)
from bise_prune.data.mnist import load_mnist
from bise_prune.data.multi_color_mnist import LEFT_PALETTE, assign_cells, colour_halves, load_multi_color_mnist
from bise_prune.errors import DataError
from bise_prune.metrics.accuracy import score
from bise_prune.metrics.subgroups import is_aligned

TRAIN_LABELS = torch.arange(10).repeat_interleave(
    torch.tensor([5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
)

TEST_LABELS = torch.arange(10).repeat_interleave(torch.tensor([980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]))


# -- BiasedMNIST -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rho", "conflicting"), [(0.99, 606), (0.995, 305), (0.997, 184), (0.999, 63)])
def test_conflicting_samples_of_biased_mnist(rho, conflicting):
    bias = assign_bias(TRAIN_LABELS, rho, torch.Generator().manual_seed(0))
    assert int((bias != TRAIN_LABELS).sum()) == conflicting


def test_conflicting_colours_are_even_chunks():
    labels = torch.zeros(1000, dtype=torch.long)
    bias = assign_bias(labels, 0.9, torch.Generator().manual_seed(0))
    counts = torch.bincount(bias, minlength=10)
    assert counts[0] == 900
    assert sorted(counts[1:].tolist()) == [4, *[12] * 8]  # chunks of ceil(100 / 9)


def test_backgrounds_take_the_colour_and_digits_are_white():
    images = torch.tensor([[[0, 1], [255, 0]]], dtype=torch.uint8)
    (coloured,) = colour_backgrounds(images, torch.tensor([3]))
    assert coloured[:, 0, 0].tolist() == list(PALETTE[3]) == [225, 225, 0]
    assert coloured[:, 0, 1].tolist() == coloured[:, 1, 0].tolist() == [255] * 3


@pytest.fixture
def tiny_mnist(tmp_path):
    """Forty training and twenty test digits in idx files, one gzipped."""
    generator = np.random.default_rng(0)
    for name, n in (("train", 40), ("t10k", 20)):
        images = generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in images.shape)
        (tmp_path / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
        (tmp_path / f"{name}-labels-idx1-ubyte").write_bytes(
            bytes([0, 0, 8, 1]) + n.to_bytes(4, "big") + labels.tobytes()
        )
    return tmp_path


def test_idx_files_are_read_and_checked(tiny_mnist):
    images, labels = load_mnist(tiny_mnist, "train")
    assert (images.shape, images.dtype, labels.tolist()[:11]) == ((40, 28, 28), torch.uint8, [*range(10), 0])
    path = tiny_mnist / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated"):
        load_mnist(tiny_mnist, "test")
    path.unlink()
    with pytest.raises(DataError, match="no MNIST file t10k-labels-idx1-ubyte"):
        load_mnist(tiny_mnist, "test")
    (tiny_mnist / "t10k-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(DataError, match="cannot read"):
        load_mnist(tiny_mnist, "test")


def test_strict_protocol_separates_digits(tiny_mnist):
    splits = load_data(f"biased_mnist:{tiny_mnist},rho=0.5,protocol=strict")

    def shapes(data):
        return {tuple((image == 255).all(0).flatten().tolist()) for image in data.inputs}

    assert len(splits.train) + len(splits.val) == 40
    assert not shapes(splits.train) & shapes(splits.val)
    paper = load_biased_mnist(tiny_mnist, 0.5, "paper", seed=2)
    assert shapes(paper.train) & shapes(paper.val)
    assert len(vanilla_training_set(tiny_mnist, 0.5)) == 40
    batch = paper.test.batch(torch.arange(3))
    assert batch.input.min() >= -1 and batch.input.max() <= 1  # Normalize(.5, .5)


def test_real_biased_mnist(mnist):
    splits = load_biased_mnist(mnist, 0.99)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (50_000, 10_000, 10_000)
    share = (splits.train.target == splits.train.bias[:, 0]).double().mean().item()
    assert share == pytest.approx(0.99, abs=2e-4)
    assert (splits.test.target == splits.test.bias[:, 0]).double().mean().item() == pytest.approx(0.1, abs=1e-3)


# -- Multi-Color MNIST -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "rho", "sizes"),
    [(TRAIN_LABELS, (0.99, 0.95), [56430, 2972, 573, 25]), (TEST_LABELS, (0.1, 0.1), [100, 900, 904, 8096])],
)
def test_group_sizes_of_multi_color_mnist(labels, rho, sizes):
    bias = assign_cells(labels, rho)
    aligned = is_aligned(labels, bias, torch.arange(10)[:, None].expand(10, 2))
    left, right = aligned.unbind(1)
    assert [int((left == a).logical_and(right == b).sum()) for a in (True, False) for b in (True, False)] == sizes
    evaluation = score(labels, labels, bias, torch.arange(10)[:, None].expand(10, 2))
    assert [group.n for group in evaluation.subgroups] == sizes


def test_halves_are_tinted():
    images = torch.zeros(1, 28, 28, dtype=torch.uint8)
    images[0, 0, 0] = 255
    (tinted,) = colour_halves(images, torch.tensor([[2, 5]]), torch.Generator().manual_seed(0))
    assert tinted[:, 0, 0].tolist() == [255] * 3
    left, right = tinted[:, 5, 13].float() / 255, tinted[:, 5, 14].float() / 255
    assert torch.allclose(left, torch.tensor(LEFT_PALETTE[2]), atol=0.03)
    assert torch.allclose(right, 1 - torch.tensor(LEFT_PALETTE[5]), atol=0.03)


def test_multi_color_inputs_are_divided_by_255_twice(tiny_mnist):
    splits = load_multi_color_mnist(tiny_mnist)
    assert splits.val is None and splits.train.bias.shape == (40, 2)
    assert splits.train.batch(torch.arange(40)).input.max().item() == pytest.approx(1 / 255)
