"""Multi-Color MNIST (Li et al., 2022): two biases, the colours of the left and right half of the background."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from .loader import BiasedDataset, DataSplits
from .mnist import load_mnist

LEFT_PALETTE = (
    (0.9837, 0.3125, 0.1686), (0.9905, 0.9156, 0.3515), (0.6730, 0.4611, 0.5798), (0.7833, 0.8316, 0.6013),
    (0.0880, 0.7780, 0.9818), (0.3214, 0.9611, 0.4464), (0.0246, 0.2357, 0.7587), (0.5552, 0.1016, 0.7618),
    (0.2077, 0.3929, 0.0187), (0.8337, 0.2024, 0.2669),
)  # fmt: skip
TRAIN_RHO = (0.99, 0.95)
TEST_RHO = (0.1, 0.1)


def assign_cells(labels: Tensor, rho: tuple[float, float], num_bias_classes: int = 10) -> Tensor:
    """Assign a left and a right bias label to each sample.

    Per class, the cells (left, right) get cumulative rounded shares, in file order.

    Args:
        labels: class labels, shape (N,), int64.
        rho: share of each class that gets the class's own left colour, and its own right colour; the other colours
            share the rest evenly.
        num_bias_classes: number of colours.

    Returns:
        Bias labels, shape (N, 2), int64.
    """
    bias = torch.empty(len(labels), 2, dtype=torch.long)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        left, right = (
            torch.full((num_bias_classes,), (1 - share) / (num_bias_classes - 1), dtype=torch.float64) for share in rho
        )
        left[label], right[label] = rho
        ends = (torch.outer(left, right).flatten().cumsum(0) * len(rows)).round().long()
        cells = torch.searchsorted(ends, torch.arange(len(rows)), right=True).clamp(max=num_bias_classes**2 - 1)
        bias[rows, 0], bias[rows, 1] = cells // num_bias_classes, cells % num_bias_classes
    return bias


def colour_halves(images: Tensor, bias: Tensor, generator: torch.Generator) -> Tensor:
    """Add a jittered colour to each half of the background, also where the digit's edges are grey.

    Args:
        images: grey images, shape (N, 28, 28), uint8.
        bias: left and right bias labels, shape (N, 2), int64.
        generator: random generator of the jitter, N(0, 0.005) per channel.

    Returns:
        RGB images, shape (N, 3, 28, 28), uint8.
    """
    left = torch.tensor(LEFT_PALETTE)
    colours = torch.stack([left[bias[:, 0]], 1 - left[bias[:, 1]]], 1)  # (N, 2, 3)
    colours = (colours + 0.005 * torch.randn(colours.shape, generator=generator)).clamp(0, 1)
    half = images.shape[2] // 2
    tint = colours.permute(0, 2, 1)[:, :, None, :].repeat_interleave(half, 3)  # (N, 3, 1, W)
    grey = images[:, None].float()
    return (grey + (grey != 255) * 255 * tint).clamp(0, 255).to(torch.uint8)


def load_multi_color_mnist(root: Path, seed: int = 0) -> DataSplits:
    """Make Multi-Color MNIST at its full size, 60,000 training and 10,000 test images; it has no validation split.

    Pixels in [0, 1] are divided by 255 once more: a peculiarity of the data set's code that the paper's figures share.

    Args:
        root: folder with the files of MNIST.
        seed: random seed of the colours' jitter.

    Raises:
        DataError: a file of MNIST is missing or damaged.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for split, rho in (("train", TRAIN_RHO), ("test", TEST_RHO)):
        images, labels = load_mnist(root, split)
        bias = assign_cells(labels, rho)
        parts.append(BiasedDataset(colour_halves(images, bias, generator), labels, bias, (0.0,) * 3, (255.0,) * 3))
    return DataSplits(
        train=parts[0],
        test=parts[1],
        classes=[str(digit) for digit in range(10)],
        bias_names=["left colour", "right colour"],
        notes=[f"Multi-Color MNIST, rho {TRAIN_RHO}, test at {TEST_RHO}, seed {seed}; no validation set"],
    )
