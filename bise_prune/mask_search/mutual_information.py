"""Mutual information between true bias labels and an auxiliary head's prediction (BISE, Sec. 3.4, Eq. 5)."""

# Shape suffixes: N samples, B bias classes; all functions but bias_information accept leading dimensions.

from __future__ import annotations

import math

import torch
from torch import Tensor

_FLOOR = 1e-15


def bias_information(probs_NB: Tensor, bias_N: Tensor) -> Tensor:
    """Mutual information I(B_hat, B) between predicted and true bias labels, as a share of its maximum.

    I = (1 / ln C) sum_ij J_ij ln(J_ij / (p_i q_j)), J = onehot(b)^T softmax / N, p and q the marginals of J.

    Args:
        probs_NB: softmax of the auxiliary head on bias-conflicting samples, shape (N, B), B >= 2.
        bias_N: true bias labels, shape (N,), int64 in [0, B).

    Returns:
        Scalar in [0, 1]; 0, with zero gradient, for N <= 1. Gradients reach ``probs_NB``.
    """
    every = torch.ones_like(bias_N, dtype=torch.bool)
    return information(joint_sums(probs_NB, bias_N, every), every.sum())


def joint_sums(probs_NB: Tensor, bias_N: Tensor, counted_N: Tensor) -> Tensor:
    """N times the joint distribution of true and predicted bias labels, shape (B, B).

    Args:
        probs_NB: softmax of the auxiliary head.
        bias_N: true bias labels, int64 in [0, B).
        counted_N: which samples count, bool.
    """
    classes = torch.arange(probs_NB.shape[-1], device=bias_N.device)
    onehot_NB = (bias_N[..., None] == classes) & counted_N[..., None]
    return onehot_NB.to(probs_NB).mT @ probs_NB


def information(sums_BB: Tensor, num_samples: Tensor) -> Tensor:
    """Mutual information of a joint distribution, as a share of its maximum; 0 for at most one sample.

    Args:
        sums_BB: joint distribution times the number of samples, as :func:`joint_sums` returns it.
        num_samples: number of samples.
    """
    joint_BB = sums_BB.clamp(min=_FLOOR) / num_samples.clamp(min=1)[..., None, None]
    product_BB = joint_BB.sum(-1, keepdim=True) * joint_BB.sum(-2, keepdim=True)
    terms_BB = joint_BB * (joint_BB / product_BB.clamp(min=_FLOOR)).log()
    total = terms_BB.sum((-2, -1)) / math.log(sums_BB.shape[-1])
    return torch.where(num_samples > 1, total, 0.0)


class JointPool:
    """Running sums of the joint distributions of past batches: estimates on fewer than about 50 samples are noisy.

    Args:
        size: number of samples that the pool holds; older batches lose weight as new ones come in.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.sums: dict[int, Tensor] = {}
        self.counts: dict[int, Tensor] = {}

    def add(self, key: int, sums_BB: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Add a batch's joint sums to the pool of ``key``; returns the pool's sums and number of samples.

        The results are arguments for :func:`information`. Its value is then the pool's. Its gradient is that of a batch
        that makes up the whole pool, so that the term keeps its weight against the cross-entropy.
        """
        count = num_samples.to(sums_BB)
        past = self.counts.get(key, torch.zeros_like(count))
        kept = ((self.size - count).clamp(min=0) / past.clamp(min=1)).clamp(max=1)
        total = past * kept + count
        pooled = self.sums.get(key, torch.zeros_like(sums_BB)) * kept[..., None, None] + sums_BB.detach()
        self.sums[key], self.counts[key] = pooled, total
        own = (sums_BB - sums_BB.detach()) * (total / count.clamp(min=1))[..., None, None]
        return pooled + own, total
