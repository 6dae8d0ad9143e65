"""Sample weights r of the reweighted cross-entropy (BISE, Eq. 4, B.8 in general, and B.9)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import Weighting
from ..errors import ConfigError
from ..metrics.subgroups import count_subgroups, is_aligned


def subgroup_weights(counts: Tensor) -> Tensor:
    """Inverse subgroup frequency r(y, b) = 1 / (G p(y, b)) over G = |Y| |B| subgroups.   BISE, Eq. (B.8), in general.

    It equals Eq. (4) if bias-conflicting samples are spread evenly. An empty subgroup counts as one sample; classes and
    bias values that never occur do not count in G.

    Args:
        counts: number of samples in each subgroup, shape (classes, bias classes).

    Returns:
        Weights of the same shape, float64; their mean over the samples is 1 if no subgroup is empty.

    >>> subgroup_weights(torch.tensor([[4, 1], [2, 1]])).tolist()
    [[0.5, 2.0], [1.0, 2.0]]
    """
    num_subgroups = (counts.sum(1) > 0).sum() * (counts.sum(0) > 0).sum()
    return counts.sum().double() / (num_subgroups * counts.clamp(min=1))


def alignment_weights(rho: Sequence[float], num_classes: int) -> Tensor:
    """Sample weights that depend on which biases a sample is aligned with.

    One bias: r = 1 / (C rho) if the sample is aligned, (C - 1) / (C (1 - rho)) otherwise.   BISE, Eq. (4).

    Several biases: the product over the biases of 1 / rho_k or 1 / (1 - rho_k), not normalised.   BISE, Eq. (B.9).

    Args:
        rho: share of bias-aligned samples for each bias, in (0, 1).
        num_classes: number C of classes.

    Returns:
        Weights of shape (2,) * K, float64, with one dimension per bias: index 1 = aligned, 0 = conflicting.

    >>> [round(r, 4) for r in alignment_weights([0.99], 10).tolist()]
    [90.0, 0.101]
    """
    if len(rho) == 1:
        (share,) = rho
        conflicting = (num_classes - 1) / (num_classes * (1 - share))
        return torch.tensor([conflicting, 1 / (num_classes * share)], dtype=torch.float64)
    weights = torch.ones((2,) * len(rho), dtype=torch.float64)
    for pattern in itertools.product((0, 1), repeat=len(rho)):
        for flag, share in zip(pattern, rho, strict=True):
            weights[pattern] /= share if flag else 1 - share
    return weights


@dataclass(frozen=True)
class SampleWeights:
    """The weight r of a sample as a function of its labels.

    Attributes:
        table: weight per subgroup (y, b) if ``by_alignment`` is False, otherwise per combination of aligned biases.
        aligned: bias value that each class is aligned with, shape (classes, K).
        by_alignment: whether the table is indexed by alignment.
    """

    table: Tensor
    aligned: Tensor
    by_alignment: bool

    def __call__(self, target: Tensor, bias: Tensor) -> Tensor:
        """Weights, shape (N,), of samples with class labels (N,) and bias labels (N, K)."""
        if not self.by_alignment:
            return self.table[target, bias[:, 0]]
        return self.table[tuple(is_aligned(target, bias, self.aligned).long().unbind(1))]

    def to(self, device: torch.device, dtype: torch.dtype) -> SampleWeights:
        """A copy of the weights on another device and in another precision."""
        return SampleWeights(self.table.to(device, dtype), self.aligned.to(device), self.by_alignment)


def sample_weights(
    target: Tensor, bias: Tensor, num_classes: int, aligned: Tensor, weighting: Weighting, rho: Sequence[float] | None
) -> SampleWeights:
    """Compute the sample weights of a training set by the formula that ``weighting`` names.

    Args:
        target: class labels, shape (N,).
        bias: bias labels, shape (N, K).
        num_classes: number C of classes.
        aligned: bias value that each class is aligned with, shape (C, K).
        weighting: formula; see :class:`bise_prune.SearchConfig`.
        rho: nominal share of bias-aligned samples per bias; None to measure it on the data.

    Raises:
        ConfigError: the formula or ``rho`` does not fit the number of biases.
    """
    num_biases = bias.shape[1]
    if weighting == "auto":
        weighting = "subgroup" if num_biases == 1 and rho is None else "alignment"
    if weighting == "none":
        return SampleWeights(torch.ones((2,) * num_biases), aligned, by_alignment=True)
    if weighting == "subgroup":
        if num_biases != 1:
            raise ConfigError(f"weighting='subgroup' takes one bias, the data have {num_biases}; use 'alignment'")
        counts = count_subgroups(target, bias[:, 0], num_classes, int(bias.max()) + 1)
        return SampleWeights(subgroup_weights(counts), aligned, by_alignment=False)
    if rho is None:
        rho = is_aligned(target, bias, aligned).double().mean(0).clamp(1 / len(target), 1 - 1 / len(target)).tolist()
    if len(rho) != num_biases:
        raise ConfigError(f"rho has {len(rho)} values, the data have {num_biases} biases")
    return SampleWeights(alignment_weights(rho, num_classes), aligned, by_alignment=True)
