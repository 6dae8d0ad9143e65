"""BiasedMNIST (Bahng et al., 2020): digits on coloured backgrounds, where the colour is correlated with the digit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError
from .loader import BiasedDataset, DataSplits
from .mnist import load_mnist

# RGB colour per bias value; 225 (not 255) in the fourth and fifth colour is as in the original data set.
PALETTE = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (225, 225, 0), (225, 0, 225),
    (0, 255, 255), (255, 128, 0), (255, 0, 128), (128, 0, 255), (128, 128, 128),
)  # fmt: skip
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan", "orange", "pink", "violet", "grey")


def assign_bias(labels: Tensor, rho: float, generator: torch.Generator, num_bias_classes: int = 10) -> Tensor:
    """Assign a bias label to each sample so that a share ``rho`` of every class is bias-aligned.

    Of the n samples of a class, floor(n rho) random ones get the class's own bias value. The rest is cut into chunks of
    ceil(rest / 9), one for each other colour in random order; the last chunk may be shorter.

    Args:
        labels: class labels, shape (N,), int64.
        rho: share of bias-aligned samples, in [0, 1].
        generator: random generator of the shuffling.
        num_bias_classes: number of bias values, at least the number of classes.

    Returns:
        Bias labels, shape (N,), int64.
    """
    bias = torch.empty_like(labels)
    for label in labels.unique().tolist():
        rows = (labels == label).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        aligned = int(len(rows) * rho + 1e-9)  # 1e-9: 1000 * .995 is 994.99... in binary
        bias[rows[:aligned]] = label
        rest = rows[aligned:]
        others = torch.tensor([value for value in range(num_bias_classes) if value != label])
        others = others[torch.randperm(len(others), generator=generator)]
        if len(rest):
            for chunk, value in zip(rest.split(-(-len(rest) // len(others))), others.tolist(), strict=False):
                bias[chunk] = value
    return bias


def colour_backgrounds(images: Tensor, bias: Tensor) -> Tensor:
    """Paint the digits (every pixel above 0) white on a background of the bias value's colour.

    Args:
        images: grey images, shape (N, H, W), uint8.
        bias: bias labels, indices into ``PALETTE``, shape (N,), int64.

    Returns:
        RGB images, shape (N, 3, H, W), uint8.
    """
    colours = torch.tensor(PALETTE, dtype=torch.uint8)[bias][:, :, None, None]
    return torch.where(images[:, None] != 0, torch.tensor(255, dtype=torch.uint8), colours)


def load_biased_mnist(root: Path, rho: float = 0.99, protocol: str = "paper", seed: int = 0) -> DataSplits:
    """Make BiasedMNIST from the files of MNIST.

    Args:
        root: folder with the files of MNIST.
        rho: share of bias-aligned training samples, in [0.1, 1).
        protocol: "paper" = as in the paper: the masks are trained on 50,000 random digits, coloured at ``rho``, and
            validated on 10,000 random digits, coloured anew at 0.1; these validation digits were also used to train the
            vanilla network. "strict" = one split into 50,000 training and 10,000 validation digits for both networks.
        seed: random seed of the split and the colouring.

    Raises:
        ConfigError: ``rho`` or ``protocol`` is out of range.
        DataError: a file of MNIST is missing or damaged.
    """
    if protocol not in ("paper", "strict") or not 0.1 <= rho < 1:
        raise ConfigError(f"biased_mnist: protocol='{protocol}', rho={rho}; expected paper or strict, rho in [.1, 1)")
    generator = torch.Generator().manual_seed(seed)
    images, labels = load_mnist(root, "train")
    order = torch.randperm(len(labels), generator=generator)
    split = len(labels) * 5 // 6
    first = order[:split]
    second = torch.randperm(len(labels), generator=generator)[split:] if protocol == "paper" else order[split:]
    test_images, test_labels = load_mnist(root, "test")
    return DataSplits(
        train=_coloured(images[first], labels[first], rho, generator),
        val=_coloured(images[second], labels[second], 0.1, generator),
        test=_coloured(test_images, test_labels, 0.1, generator),
        classes=[str(digit) for digit in range(10)],
        bias_values=[COLOURS],
        bias_names=["colour"],
        notes=[f"BiasedMNIST, rho {rho}, protocol {protocol}, seed {seed}; validation and test at rho .1"],
    )


def vanilla_training_set(root: Path, rho: float = 0.99, protocol: str = "paper", seed: int = 0) -> BiasedDataset:
    """Training set of the vanilla network: all digits with a new colouring ("paper"), or the training split ("strict").

    The arguments are those of :func:`load_biased_mnist`.
    """
    if protocol == "strict":
        return load_biased_mnist(root, rho, protocol, seed).train
    generator = torch.Generator().manual_seed(seed + 10_000)
    return _coloured(*load_mnist(root, "train"), rho, generator)


def _coloured(images: Tensor, labels: Tensor, rho: float, generator: torch.Generator) -> BiasedDataset:
    """A data set with assigned bias labels and coloured backgrounds, in random order."""
    bias = assign_bias(labels, rho, generator)
    order = torch.randperm(len(labels), generator=generator)
    inputs = colour_backgrounds(images, bias)
    return BiasedDataset(inputs[order], labels[order], bias[order, None], (0.5,) * 3, (0.5,) * 3)
