"""The objective of the mask search, J = L_r + gamma I, and its two terms (BISE, Eq. 5)."""

# Shape suffixes: N samples, C classes, B bias classes, K biases. "..." are leading dimensions, such as one for several
# batches: everything is then computed for each of them.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..distributed import summed, world
from .mutual_information import JointPool, information, joint_sums


class Objective(NamedTuple):
    """The terms of Eq. (5). If processes share a batch, ``total`` and ``cross_entropy`` are this process's shares.

    Attributes:
        total: J = cross_entropy + mi_weight * mutual_information, the tensor to differentiate, shape (...).
        cross_entropy: reweighted cross-entropy L_r (Eq. 4), a mean over the batch, shape (...).
        mutual_information: mutual information I, in [0, 1] for each bias, summed over the biases, shape (...).
        num_conflicting: number of bias-conflicting samples that I was estimated on, per bias, shape (..., K).
        num_samples: number N of samples in the batch.
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
    """Compute the objective J of Eq. (5) for one batch, or for several batches at once.

    One batch may be divided among the processes of ``torch.distributed``. Several batches at once need a single process
    and no pool, since the pool grows from batch to batch.

    Args:
        loss: reweighted cross-entropy L_r, the mean over the batch, shape (...); see :func:`reweighted_cross_entropy`.
        batch_size: samples of this process's part of the batch; it only matters where several processes share one.
        head_logits_NB: logits of the auxiliary heads, one tensor (..., N, B_k) per bias.
        bias_NK: bias labels, shape (..., N, K).
        conflicting_NK: which samples are bias-conflicting, bool, shape (..., N, K); I is estimated on these alone.
        mi_weight: weight gamma of the mutual information.
        pool: joint distributions of past batches that the estimate of I includes; None for this batch alone.
    """
    groups = list(_joints(head_logits_NB, bias_NK, conflicting_NK))
    joints = [joint for _, joint in groups]
    conflicting_K, num_samples = conflicting_NK.sum(-2), torch.tensor(batch_size, device=loss.device)
    if world()[1] > 1:
        counts = torch.cat([conflicting_K, num_samples[None]]).to(loss.dtype)
        counts, *others = _summed([counts, *(joint.detach() for joint in joints)])
        joints = [joint + (total - joint.detach()) for joint, total in zip(joints, others, strict=True)]
        conflicting_K, num_samples = counts[:-1], counts[-1]
        loss = torch.nan_to_num(loss) * batch_size / num_samples  # a part without samples has no loss
    total_information = torch.zeros_like(loss)
    estimated_on_K = conflicting_K.to(loss.dtype, copy=True)  # counts of a pool are fractional
    for joint, (group, _) in zip(joints, groups, strict=True):
        count = conflicting_K[..., group].movedim(-1, 0)
        if pool is not None:
            joint, count = pool.add(group[0], joint, count)
            estimated_on_K[..., group] = count.movedim(0, -1)
        total_information = total_information + information(joint, count).sum(0)
    return Objective(loss + mi_weight * total_information, loss, total_information, estimated_on_K, num_samples)


def _joints(
    head_logits_NB: Sequence[Tensor], bias_NK: Tensor, conflicting_NK: Tensor
) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers of the biases with equally many classes, with their :func:`joint_sums`, shape (biases, ..., B, B)."""
    sizes = [logits.shape[-1] for logits in head_logits_NB]
    for size in sorted(set(sizes)):
        group = [k for k, each in enumerate(sizes) if each == size]
        probs = torch.stack([head_logits_NB[k] for k in group]).softmax(-1)
        bias, conflicting = (tensor[..., group].movedim(-1, 0) for tensor in (bias_NK, conflicting_NK))
        yield group, joint_sums(probs, bias, conflicting)


def silent_share(num_conflicting: Tensor, dtype: torch.dtype) -> Tensor:
    """Share of biases with at most one bias-conflicting sample, where I is 0: shape (...).

    Args:
        num_conflicting: number of bias-conflicting samples, shape (..., biases).
        dtype: precision of the result.
    """
    return (num_conflicting <= 1).to(dtype).mean(-1)


def _summed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, summed over the processes in one communication."""
    flat = summed(torch.cat([tensor.flatten() for tensor in tensors]))
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
