"""Make bias labels wrong on purpose, to measure how much a search depends on them (BISE, App. L)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError


def noisy_bias_labels(bias: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Replace a random share of the bias labels in each column by another random value of the column.

    Args:
        bias: bias labels, shape (N, K), int64; a column's values are 0 to its largest.
        share: share of the samples in each column, in [0, 1], rounded to whole samples.
        generator: random generator on the CPU.

    Returns:
        New bias labels, shape (N, K), int64.

    Raises:
        ConfigError: ``share`` is out of range.
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"share of noisy bias labels = {share}: expected a number in [0, 1]")
    noisy = bias.clone()
    for k, column in enumerate(bias.unbind(1)):
        values = max(2, int(column.max()) + 1)
        rows = torch.randperm(len(bias), generator=generator)[: round(share * len(bias))]
        shift = torch.randint(1, values, (len(rows),), generator=generator)
        noisy[rows, k] = (column[rows] + shift) % values
    return noisy
