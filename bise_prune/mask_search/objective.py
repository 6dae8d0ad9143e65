"""The objective of the mask search, J = L_r + gamma I (BISE, Eq. 5), its terms apart."""

# Shape suffixes: N samples, C classes, B bias classes, K biases.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..distributed import summed, world
from .mutual_information import JointPool, information, joint_sums


class Objective(NamedTuple):
    """The terms of Eq. (5) on one batch; where processes share the batch, each has its part of the first two.

    Attributes:
        total: J = cross_entropy + mi_weight * mutual_information, to go backwards from.
        cross_entropy: the reweighted cross-entropy L_r (Eq. 4), a mean over the batch.
        mutual_information: I in [0, 1], summed over the biases.
        num_conflicting: bias-conflicting samples per bias that the information was estimated on, shape (K,).
        num_samples: N.
    """

    total: Tensor
    cross_entropy: Tensor
    mutual_information: Tensor
    num_conflicting: Tensor
    num_samples: Tensor


def reweighted_cross_entropy(logits_NC: Tensor, target_N: Tensor, weights_N: Tensor) -> Tensor:
    """L_r = (1 / N) sum_j r_j l(y_hat_j, y_j).   BISE, Eq. (4); divided by N, not by the sum of the weights."""
    return (cross_entropy(logits_NC, target_N, reduction="none") * weights_N).mean()


def objective_of(
    loss: Tensor,
    batch_size: int,
    head_logits_NB: Sequence[Tensor],
    bias_NK: Tensor,
    conflicting_NK: Tensor,
    mi_weight: float,
    pool: JointPool | None = None,
) -> Objective:
    """Evaluate Eq. (5) on one batch, of which every process of ``torch.distributed`` may hold a part.

    Args:
        loss: L_r, the mean over the batch; see :func:`reweighted_cross_entropy`.
        batch_size: its samples, of which the bias-conflicting ones suffice in what follows.
        head_logits_NB: output of the auxiliary heads, one tensor (N, B_k) per bias.
        bias_NK: bias labels, shape (N, K).
        conflicting_NK: which samples are bias-conflicting, bool, shape (N, K); they alone enter the information.
        mi_weight: gamma.
        pool: joint distributions of past batches to estimate the information with.
    """
    groups = list(joints_of(head_logits_NB, bias_NK, conflicting_NK))
    joints = [joint for _, joint in groups]
    counts = torch.cat([conflicting_NK.sum(0), conflicting_NK.new_tensor([batch_size], dtype=torch.long)])
    if world()[1] > 1:
        counts, *others = _summed([counts.to(loss.dtype), *(joint.detach() for joint in joints)])
        joints = [joint + (total - joint.detach()) for joint, total in zip(joints, others, strict=True)]
    conflicting, num_samples = counts[:-1], counts[-1]
    if world()[1] > 1:
        loss = torch.nan_to_num(loss) * batch_size / num_samples  # no sample, no loss
    total_information = loss.new_zeros(())
    pooled = conflicting.to(loss.dtype, copy=True)
    for joint, (group, _) in zip(joints, groups, strict=True):
        count = conflicting[group]
        if pool is not None:
            joint, count = pool.add(group[0], joint, count)
            pooled[group] = count
        total_information = total_information + information(joint, count).sum()
    total = loss + mi_weight * total_information
    return Objective(total, loss, total_information, pooled, num_samples)


def joints_of(
    head_logits_NB: Sequence[Tensor], bias_NK: Tensor, conflicting_NK: Tensor
) -> Iterator[tuple[list[int], Tensor]]:
    """Biases of as many classes, by their numbers, with their :func:`joint_sums` (biases, B, B).

    Any dimensions in front of the samples' stay: (biases, ..., B, B).
    """
    sizes = [logits.shape[-1] for logits in head_logits_NB]
    for size in sorted(set(sizes)):
        group = [k for k, each in enumerate(sizes) if each == size]
        probs = torch.stack([head_logits_NB[k] for k in group]).softmax(-1)
        bias, conflicting = (tensor[..., group].movedim(-1, 0) for tensor in (bias_NK, conflicting_NK))
        yield group, joint_sums(probs, bias, conflicting)


def silent_share(num_conflicting: Tensor, dtype: torch.dtype) -> Tensor:
    """Of counts (..., biases), the share of those too low to tell anything: shape (...)."""
    return (num_conflicting <= 1).to(dtype).mean(-1)


def _summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    flat = summed(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
