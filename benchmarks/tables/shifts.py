"""Test sets under conditions that neither the vanilla training nor the search has seen."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from bise_prune.data import BiasedDataset
from bise_prune.data.cifar10 import load_cifar10
from bise_prune.data.mnist import load_mnist

from .settings import halved

if TYPE_CHECKING:
    from .cases import Case

NOISE = (0.1, 0.2, 0.3)  # standard deviations, on the [0, 1] scale


def shifted_test_sets(case: Case) -> dict[str, BiasedDataset]:
    """The test set as it is, and with other noise, colours or corruptions; the bias labels mean nothing there."""
    generator = torch.Generator().manual_seed(case.seed)
    sets = {"as in the tables": case.test}
    for level in NOISE:
        sets[f"noise {level:g}"] = _noisy(case.test, level, generator)
    if case.setting.name == "biased_mnist":
        sets["random colours"] = _recoloured(case, torch.randint(0, 256, (len(case.test), 3), generator=generator))
        sets["black and white"] = _recoloured(case, torch.zeros(len(case.test), 3))
    if case.setting.name == "corrupted_cifar10":
        images, labels = load_cifar10(case.data_root / "cifar10", "test")
        rows = torch.arange(1, len(labels), 5)  # those of the test set
        clean = halved(dataclasses.replace(case.test, inputs=images[rows], target=labels[rows]))
        assert isinstance(clean.inputs, Tensor)
        sets |= {"clean": clean, "blurred": _with(clean, _blurred(clean.inputs.float()))}
        sets |= {"inverted": _with(clean, 255 - clean.inputs.float())}
    return sets


def _noisy(data: BiasedDataset, level: float, generator: torch.Generator) -> BiasedDataset:
    assert isinstance(data.inputs, Tensor)
    return _with(data, data.inputs + 255 * level * torch.randn(data.inputs.shape, generator=generator))


def _with(data: BiasedDataset, pixels: Tensor) -> BiasedDataset:
    return dataclasses.replace(data, inputs=pixels.clamp(0, 255).round().to(torch.uint8))


def _recoloured(case: Case, colours: Tensor) -> BiasedDataset:
    """The test digits in file order, white on a background of their own, at the side of the setting's images."""
    images, labels = load_mnist(case.data_root / "mnist", "test")
    pixels = torch.where(images[:, None] != 0, 255.0, colours.float()[:, :, None, None])
    side = case.test.inputs.shape[-1]  # type: ignore[union-attr]
    pixels = F.adaptive_avg_pool2d(pixels, side)
    return dataclasses.replace(_with(case.test, pixels), target=labels)


def _blurred(images: Tensor) -> Tensor:
    """A binomial filter of five pixels in both directions."""
    weights = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    kernel = (weights[:, None] * weights).expand(3, 1, 5, 5)
    return F.conv2d(F.pad(images, (2, 2, 2, 2), mode="reflect"), kernel, groups=3)
