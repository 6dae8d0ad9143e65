"""Subgroups (y, b): count them, and find the bias value that each class is aligned with."""

from __future__ import annotations

import torch
from torch import Tensor


def count_subgroups(target: Tensor, bias: Tensor, num_classes: int, num_bias_classes: int) -> Tensor:
    """Count the samples of each subgroup.

    Args:
        target: class labels, shape (N,), int64.
        bias: labels of one bias, shape (N,), int64.
        num_classes: number of classes |Y|.
        num_bias_classes: number of bias values |B|.

    Returns:
        Counts, shape (num_classes, num_bias_classes), int64.

    >>> count_subgroups(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2, 2).tolist()
    [[1, 1], [0, 1]]
    """
    cells = torch.bincount(target * num_bias_classes + bias, minlength=num_classes * num_bias_classes)
    return cells.view(num_classes, num_bias_classes)


def aligned_bias_values(counts: Tensor) -> Tensor:
    """Find the bias value that each class is most associated with: argmax_b p(b | y) - p(b).

    On the paper's data sets this is b = y. Unlike the most frequent bias value of the class, it is also right if one
    bias value dominates the whole data set (CelebA's dark-haired women).

    Args:
        counts: samples per subgroup, shape (classes, bias classes).

    Returns:
        The aligned bias value of each class, shape (classes,), int64.
    """
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return (share - counts.sum(0) / counts.sum().clamp(min=1)).argmax(1)


def aligned_values(target: Tensor, bias: Tensor, num_classes: int) -> Tensor:
    """Find the bias value that each class is aligned with, by :func:`aligned_bias_values`, for every bias.

    Args:
        target: class labels, shape (N,), int64.
        bias: bias labels, shape (N, K), int64; K may be 0.
        num_classes: number of classes |Y|.

    Returns:
        The aligned bias values, shape (num_classes, K), int64.
    """
    if not bias.shape[1]:
        return torch.zeros((num_classes, 0), dtype=torch.long)
    columns = [
        aligned_bias_values(count_subgroups(target, column, num_classes, int(column.max()) + 1))
        for column in bias.unbind(1)
    ]
    return torch.stack(columns, 1)


def is_aligned(target: Tensor, bias: Tensor, aligned: Tensor) -> Tensor:
    """Whether each sample is bias-aligned, for every bias.

    Args:
        target: class labels, shape (N,), int64.
        bias: bias labels, shape (N, K), int64.
        aligned: the bias value that each class is aligned with, shape (classes, K), int64.

    Returns:
        Bool tensor of shape (N, K).
    """
    return bias == aligned[target]
