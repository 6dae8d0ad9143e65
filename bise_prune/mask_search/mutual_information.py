"""The mutual information between true bias labels and what a head can read of them (BISE, Sec. 3.4, Eq. 5)."""

# Shape suffixes: N samples, B bias classes; functions other than bias_information take any dimensions in front of them.

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
    """N times the joint distribution of true and predicted bias over the samples that count (bool): shape (B, B)."""
    classes = torch.arange(probs_NB.shape[-1], device=bias_N.device)
    onehot_NB = (bias_N[..., None] == classes) & counted_N[..., None]
    return onehot_NB.to(probs_NB).mT @ probs_NB


def information(sums_BB: Tensor, num_samples: Tensor) -> Tensor:
    """I of a joint distribution given as sums over ``num_samples`` samples; 0 for one or none."""
    joint_BB = sums_BB.clamp(min=_FLOOR) / num_samples.clamp(min=1)[..., None, None]
    product_BB = joint_BB.sum(-1, keepdim=True) * joint_BB.sum(-2, keepdim=True)
    terms_BB = joint_BB * (joint_BB / product_BB.clamp(min=_FLOOR)).log()
    total = terms_BB.sum((-2, -1)) / math.log(sums_BB.shape[-1])
    return torch.where(num_samples > 1, total, 0.0)


class JointPool:
    """Running sums of the joint distributions of past batches: below about 50 samples an estimate is mostly noise.

    Args:
        size: samples that the pool holds; the oldest fade out.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.sums: dict[int, Tensor] = {}
        self.counts: dict[int, Tensor] = {}

    def add(self, key: int, sums_BB: Tensor, num_samples: Tensor) -> tuple[Tensor, Tensor]:
        """Sums and number of samples with the pool's, as :func:`information` takes them; the pool has one for each key.

        The value is the pool's; the gradient that of a batch that makes up the whole of it, so that the weight of the
        term against the cross-entropy stays.
        """
        count = num_samples.to(sums_BB)
        past = self.counts.get(key, torch.zeros_like(count))
        kept = ((self.size - count).clamp(min=0) / past.clamp(min=1)).clamp(max=1)
        total = past * kept + count
        pooled = self.sums.get(key, torch.zeros_like(sums_BB)) * kept[..., None, None] + sums_BB.detach()
        self.sums[key], self.counts[key] = pooled, total
        own = (sums_BB - sums_BB.detach()) * (total / count.clamp(min=1))[..., None, None]
        return pooled + own, total
