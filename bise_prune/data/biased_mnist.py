"""BiasedMNIST (Bahng et al., 2020): digits on backgrounds whose colour goes with the digit."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError
from .loader import BiasedDataset, DataSplits
from .mnist import load_mnist

# RGB per bias value; 225 (not 255) in the fourth and fifth is the data set's own.
PALETTE = (
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (225, 225, 0), (225, 0, 225),
    (0, 255, 255), (255, 128, 0), (255, 0, 128), (128, 0, 255), (128, 128, 128),
)  # fmt: skip
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan", "orange", "pink", "violet", "grey")


def assign_bias(labels: Tensor, rho: float, generator: torch.Generator, num_bias_classes: int = 10) -> Tensor:
    """A bias value per sample: per class, floor(n rho) shuffled samples get the class's own, the rest even chunks.

    The rest is cut into chunks of ceil(rest / 9), one per other colour in shuffled order; the last may be short.

    Args:
        labels: class labels, shape (N,), int64.
        rho: share of bias-aligned samples, in [0, 1].
        generator: of the shuffling.
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
    """White digits (every pixel above 0) on the palette's colour: (N, H, W) uint8 to (N, 3, H, W) uint8."""
    colours = torch.tensor(PALETTE, dtype=torch.uint8)[bias][:, :, None, None]
    return torch.where(images[:, None] != 0, torch.tensor(255, dtype=torch.uint8), colours)


def load_biased_mnist(root: Path, rho: float = 0.99, protocol: str = "paper", seed: int = 0) -> DataSplits:
    """BiasedMNIST from MNIST's files.

    Args:
        root: folder of MNIST.
        rho: share of bias-aligned training samples.
        protocol: "paper" = as in the paper: a random 50,000 digits coloured at rho for the masks, a new colouring at .1
            of a random 10,000 for validation (digits the vanilla model has seen in training). "strict" = one split
            into 50,000 and 10,000 digits for both.
        seed: of the split and the colouring.

    Raises:
        ConfigError: rho or protocol is out of range.
        DataError: MNIST is not there.
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
        notes=[f"BiasedMNIST, rho {rho}, protocol {protocol}, seed {seed}; validation and test at rho .1"],
    )


def vanilla_training_set(root: Path, rho: float = 0.99, protocol: str = "paper", seed: int = 0) -> BiasedDataset:
    """What the vanilla model is trained on: all digits, coloured anew ("paper"), or the masks' set ("strict")."""
    if protocol == "strict":
        return load_biased_mnist(root, rho, protocol, seed).train
    generator = torch.Generator().manual_seed(seed + 10_000)
    return _coloured(*load_mnist(root, "train"), rho, generator)


def _coloured(images: Tensor, labels: Tensor, rho: float, generator: torch.Generator) -> BiasedDataset:
    bias = assign_bias(labels, rho, generator)
    order = torch.randperm(len(labels), generator=generator)
    inputs = colour_backgrounds(images, bias)
    return BiasedDataset(inputs[order], labels[order], bias[order, None], (0.5,) * 3, (0.5,) * 3)
