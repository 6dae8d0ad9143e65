"""The built-in demo data set: scikit-learn's 1,797 handwritten digits on coloured backgrounds, without a download."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from ..errors import ConfigError
from .biased_mnist import COLOURS, PALETTE, assign_bias
from .loader import BiasedDataset, DataSplits

SIZE = 16
_TEST_SHARE, _VAL_SHARE = 0.25, 0.15


def load_digits_demo(rho: float = 0.95, samples: int = 10_000, seed: int = 0) -> DataSplits:
    """Make the demo data set: white digits on a background colour that is correlated with the digit, 3x16x16.

    The 1,797 scans are first split by class into training, validation and test (60, 15 and 25 %), so that no scan is in
    two splits. Training samples are drawn from the training scans with random shifts, rotations and scales, and
    coloured at ``rho``. Each validation and each test scan appears once in every colour, so that both splits are
    unbiased.

    Args:
        rho: share of bias-aligned training samples, in [0.1, 1).
        samples: number of training samples, >= 1000.
        seed: random seed of the split, the augmentation and the colours.

    Raises:
        ConfigError: an argument is out of range.
    """
    if not 0.1 <= rho < 1 or samples < 1000:
        raise ConfigError(f"digits: rho={rho}, samples={samples}; expected rho in [.1, 1), samples >= 1000")
    from sklearn.datasets import load_digits

    scans = load_digits()
    images = torch.from_numpy(scans.images).float()[:, None] / 16  # (1797, 1, 8, 8)
    labels = torch.from_numpy(scans.target).long()
    generator = torch.Generator().manual_seed(seed)
    parts: list[list[Tensor]] = [[], [], []]
    for digit in range(10):
        rows = (labels == digit).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        test, val = round(len(rows) * _TEST_SHARE), round(len(rows) * _VAL_SHARE)
        for part, chosen in zip(parts, rows.split([len(rows) - test - val, val, test]), strict=True):
            part.append(chosen)
    train, val_rows, test_rows = (torch.cat(part) for part in parts)
    drawn = train[torch.randint(len(train), (samples,), generator=generator)]
    return DataSplits(
        train=_paint(_warp(images[drawn], generator), labels[drawn], assign_bias(labels[drawn], rho, generator)),
        val=_every_colour(images[val_rows], labels[val_rows]),
        test=_every_colour(images[test_rows], labels[test_rows]),
        classes=[str(digit) for digit in range(10)],
        bias_values=[COLOURS],
        bias_names=["colour"],
        notes=[
            f"scikit-learn digits, rho {rho}, {samples} training samples of {len(train)} scans, seed {seed}; "
            f"validation ({len(val_rows)} scans) and test ({len(test_rows)} scans) show each scan in all ten colours"
        ],
    )


def _warp(images: Tensor, generator: torch.Generator) -> Tensor:
    """Upsample with random rotation (+-12 degrees), scale (0.85 to 1.15) and shift (+-1.5 of 16 pixels)."""
    n = len(images)

    def uniform(bound: float) -> Tensor:
        return (torch.rand(n, generator=generator) * 2 - 1) * bound

    angle, scale = torch.deg2rad(uniform(12)), 1 + uniform(0.15)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    rows = torch.stack([cos, -sin, uniform(3 / SIZE), sin, cos, uniform(3 / SIZE)], 1)
    grid = affine_grid(rows.view(n, 2, 3), [n, 1, SIZE, SIZE], align_corners=False)
    return grid_sample(images, grid, align_corners=False)


def _upsample(images: Tensor) -> Tensor:
    """Resize images (N, 1, H, W) to 16x16 pixels, without augmentation."""
    identity = torch.eye(2, 3).expand(len(images), 2, 3)
    return grid_sample(
        images, affine_grid(identity, [len(images), 1, SIZE, SIZE], align_corners=False), align_corners=False
    )


def _every_colour(images: Tensor, labels: Tensor) -> BiasedDataset:
    """A data set of every scan in every colour, with the scan as the samples' origin."""
    each = len(PALETTE)
    colours = torch.arange(each).repeat(len(images))
    painted = _paint(_upsample(images).repeat_interleave(each, 0), labels.repeat_interleave(each), colours)
    return replace(painted, origin=torch.arange(len(images)).repeat_interleave(each))


def _paint(images: Tensor, labels: Tensor, bias: Tensor) -> BiasedDataset:
    """Blend white ink over the background colour: grey (N, 1, H, W) in [0, 1], the ink's opacity, to RGB uint8."""
    colours = torch.tensor(PALETTE).float()[bias][:, :, None, None]
    painted = (images * 255 + (1 - images) * colours).round().to(torch.uint8)
    return BiasedDataset(painted, labels, bias[:, None], (0.5,) * 3, (0.5,) * 3)
