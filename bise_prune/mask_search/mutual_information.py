"""The mutual information between true bias labels and what a head can read of them (BISE, Sec. 3.4, Eq. 5)."""

# Shape suffixes: N samples, B bias classes.

from __future__ import annotations

import math

from torch import Tensor
from torch.nn.functional import one_hot

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
    num_samples, num_classes = probs_NB.shape
    if num_samples <= 1:
        return probs_NB.sum() * 0
    joint_BB = (one_hot(bias_N, num_classes).to(probs_NB).T @ probs_NB).clamp(min=_FLOOR) / num_samples
    product_BB = joint_BB.sum(1, keepdim=True) * joint_BB.sum(0, keepdim=True)
    return (joint_BB * (joint_BB / product_BB.clamp(min=_FLOOR)).log()).sum() / math.log(num_classes)
