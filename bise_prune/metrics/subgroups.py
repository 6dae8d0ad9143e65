"""Subgroups (y, b): counting them, and which bias value each class is aligned with."""

from __future__ import annotations

import torch
from torch import Tensor


def count_subgroups(target: Tensor, bias: Tensor, num_classes: int, num_bias_classes: int) -> Tensor:
    """Samples per subgroup.

    Args:
        target: class labels, shape (N,).
        bias: labels of one bias, shape (N,).
        num_classes: |Y|.
        num_bias_classes: |B|.

    Returns:
        int64 tensor of shape (num_classes, num_bias_classes).

    >>> count_subgroups(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2, 2).tolist()
    [[1, 1], [0, 1]]
    """
    cells = torch.bincount(target * num_bias_classes + bias, minlength=num_classes * num_bias_classes)
    return cells.view(num_classes, num_bias_classes)


def aligned_bias_values(counts: Tensor) -> Tensor:
    """The bias value that each class is spuriously correlated with: argmax_b p(b | y) - p(b).

    On the paper's data sets this is b = y. Unlike the most frequent value of the class it also holds where one bias
    value dominates the whole set (CelebA's dark-haired women).

    Args:
        counts: samples per subgroup, shape (classes, bias classes).

    Returns:
        int64 tensor of shape (classes,).
    """
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return (share - counts.sum(0) / counts.sum().clamp(min=1)).argmax(1)


def aligned_values(target: Tensor, bias: Tensor, num_classes: int) -> Tensor:
    """:func:`aligned_bias_values` for every bias column of a data set.

    Args:
        target: class labels, shape (N,).
        bias: bias labels, shape (N, K).
        num_classes: |Y|.

    Returns:
        int64 tensor of shape (num_classes, K).
    """
    columns = [
        aligned_bias_values(count_subgroups(target, column, num_classes, int(column.max()) + 1))
        for column in bias.unbind(1)
    ]
    return torch.stack(columns, 1)


def is_aligned(target: Tensor, bias: Tensor, aligned: Tensor) -> Tensor:
    """Which samples are bias-aligned, per bias: bool tensor of shape (N, K)."""
    return bias == aligned[target]
