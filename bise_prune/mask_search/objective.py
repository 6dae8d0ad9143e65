"""The objective of the mask search, J = L_r + gamma I (BISE, Eq. 5), its terms apart."""

# Shape suffixes: N samples, C classes, B bias classes, K biases.

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .mutual_information import bias_information


class Objective(NamedTuple):
    """The terms of Eq. (5) on one batch.

    Attributes:
        total: J = cross_entropy + mi_weight * mutual_information.
        cross_entropy: the reweighted cross-entropy L_r (Eq. 4), a mean over the batch.
        mutual_information: I in [0, 1], summed over the biases.
        num_conflicting: bias-conflicting samples per bias, shape (K,).
    """

    total: Tensor
    cross_entropy: Tensor
    mutual_information: Tensor
    num_conflicting: Tensor


def reweighted_cross_entropy(logits_NC: Tensor, target_N: Tensor, weights_N: Tensor) -> Tensor:
    """L_r = (1 / N) sum_j r_j l(y_hat_j, y_j).   BISE, Eq. (4); divided by N, not by the sum of the weights."""
    return (cross_entropy(logits_NC, target_N, reduction="none") * weights_N).mean()


def bise_objective(
    logits_NC: Tensor,
    target_N: Tensor,
    weights_N: Tensor,
    head_logits_NB: Sequence[Tensor],
    bias_NK: Tensor,
    aligned_NK: Tensor,
    mi_weight: float,
) -> Objective:
    """Evaluate Eq. (5) on one batch.

    Args:
        logits_NC: output of the masked network, shape (N, C).
        target_N: class labels, shape (N,).
        weights_N: sample weights r, shape (N,).
        head_logits_NB: output of the auxiliary heads, one tensor (N, B_k) per bias.
        bias_NK: bias labels, shape (N, K).
        aligned_NK: which samples are bias-aligned, bool, shape (N, K); the others alone enter the information.
        mi_weight: gamma.
    """
    loss = reweighted_cross_entropy(logits_NC, target_N, weights_N)
    information = logits_NC.new_zeros(())
    for k, head_logits in enumerate(head_logits_NB):
        conflicting = ~aligned_NK[:, k]
        information = information + bias_information(
            torch.softmax(head_logits[conflicting], 1), bias_NK[conflicting, k]
        )
    return Objective(loss + mi_weight * information, loss, information, (~aligned_NK).sum(0))
