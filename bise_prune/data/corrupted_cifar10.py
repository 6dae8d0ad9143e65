"""Corrupted CIFAR-10 (Nam et al., 2020, "Learning from failure"): the corruption is correlated with the class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from .cifar10 import CLASSES, load_cifar10
from .corruptions import CORRUPTIONS
from .loader import BiasedDataset, DataSplits

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2023, 0.1994, 0.2010)
TEST_RHO = 0.1


def assign_shares(labels: Tensor, rho: float, num_bias_classes: int = 10) -> Tensor:
    """Assign a bias label to each sample: per class, the bias values get cumulative rounded shares, in file order.

    Args:
        labels: class labels, shape (N,), int64.
        rho: share of each class that gets the class's own bias value; the other values share the rest evenly.
        num_bias_classes: number of bias values, at least the number of classes.

    Returns:
        Bias labels, shape (N,), int64.
    """
    bias = torch.empty_like(labels)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        shares = torch.full((num_bias_classes,), (1 - rho) / (num_bias_classes - 1), dtype=torch.float64)
        shares[label] = rho
        ends = (shares.cumsum(0) * len(rows)).round().long()
        bias[rows] = torch.searchsorted(ends, torch.arange(len(rows)), right=True)
    return bias


def corrupt(images: Tensor, bias: Tensor, seed: tuple[int, ...], rows: Tensor) -> Tensor:
    """Apply to each image the corruption that its bias label stands for.

    Args:
        images: RGB images, shape (N, 3, H, W), uint8.
        bias: bias labels, indices into ``CORRUPTIONS``, shape (N,), int64.
        seed: random seed, integers >= 0.
        rows: number of each image, which is appended to the seed so that images get different random numbers, shape
            (N,), int64.

    Returns:
        Corrupted images, shape (N, 3, H, W), uint8.
    """
    pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
    corrupted = np.empty_like(pixels)
    for i, (value, row) in enumerate(zip(bias.tolist(), rows.tolist(), strict=True)):
        _, corruption = CORRUPTIONS[value]
        corrupted[i] = corruption(pixels[i], np.random.default_rng([*seed, row]))
    return torch.from_numpy(corrupted).permute(0, 3, 1, 2).contiguous()


def load_corrupted_cifar10(root: Path, rho: float = 0.95, seed: int = 0, samples: int = 50_000) -> DataSplits:
    """Make Corrupted CIFAR-10 by the recipe of "Learning from failure" (LfF), severity 5; it has no validation split.

    The bias label of an image is the index of its corruption in :data:`bise_prune.data.corruptions.CORRUPTIONS`; class
    k is correlated with corruption k. In the test split, every corruption has the same share of every class. Which
    image gets which corruption follows the order of CIFAR-10's files, and so differs between the two formats that
    :func:`bise_prune.data.cifar10.load_cifar10` reads.

    Args:
        root: folder with the files of CIFAR-10.
        rho: share of bias-aligned training samples, in [0.1, 1).
        seed: random seed of the corruptions, >= 0.
        samples: number of training images, a multiple of 10; the first images of each class are taken, equally many of
            each.

    Raises:
        ConfigError: an argument is out of range.
        DataError: the files of CIFAR-10 are missing or damaged, or hold fewer training images.
    """
    if not 0.1 <= rho < 1 or samples < 10 or samples % 10 or seed < 0:
        raise ConfigError(
            f"corrupted_cifar10: rho={rho}, samples={samples}, seed={seed}; expected rho in [.1, 1), samples a "
            "multiple of 10 from 10, seed >= 0"
        )
    images, labels = load_cifar10(root, "train")
    rows = _leading(labels, samples // len(CLASSES))
    test_images, test_labels = load_cifar10(root, "test")
    return DataSplits(
        train=_corrupted(images[rows], labels[rows], rho, (seed, 0), rows),
        test=_corrupted(test_images, test_labels, TEST_RHO, (seed, 1), torch.arange(len(test_labels))),
        classes=CLASSES,
        bias_values=[tuple(name for name, _ in CORRUPTIONS)],
        bias_names=["corruption"],
        notes=[
            f"Corrupted CIFAR-10, LfF recipe, severity 5, procedural frost; not the archive used in the paper's table. "
            f"rho {rho}, {samples} training images, seed {seed}; test at rho {TEST_RHO}, no validation set"
        ],
    )


def _leading(labels: Tensor, per_class: int) -> Tensor:
    """Rows of the first ``per_class`` images of each class, in file order."""
    chosen = [(labels == label).nonzero().flatten()[:per_class] for label in range(len(CLASSES))]
    short = [f"{len(rows)} of '{name}'" for rows, name in zip(chosen, CLASSES, strict=True) if len(rows) < per_class]
    if short:
        raise DataError(
            f"samples={per_class * len(CLASSES)} needs {per_class} training images of each class; the files hold "
            f"{', '.join(short)}"
        )
    return torch.cat(chosen).sort().values


def _corrupted(images: Tensor, labels: Tensor, rho: float, seed: tuple[int, ...], rows: Tensor) -> BiasedDataset:
    """A data set with assigned bias labels and corrupted images."""
    bias = assign_shares(labels, rho)
    return BiasedDataset(corrupt(images, bias, seed, rows), labels, bias[:, None], MEAN, STD)
