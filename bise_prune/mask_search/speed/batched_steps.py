"""Steps for several batches from one forward pass, which is possible as long as no mask changes.

The network is then constant, so that each sample's cross-entropy, gradient and features have to be computed only once.
"""

# Shape suffixes: G batches, N samples of a batch, M gates, K biases, B bias classes, S figures of a step.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from ..heads import HeadsState
from ..mutual_information import JointPool
from ..objective import Objective, objective_of, silent_share
from ..step import MaskStep

_ALONE = 0  # one process needs no number of samples
_MOST = 16  # batches in one forward pass


class Forward(Protocol):
    """The two methods of :class:`.fast_passes.FastPasses` that this module uses."""

    def inputs_of(self, rows: Tensor) -> Any:
        """The input that :meth:`forward` takes, for samples given by number."""
        ...

    def forward(self, gates: Tensor, inputs: Any) -> tuple[Tensor, Tensor]:
        """Class logits (N, C) and bottleneck features (N, d) under gates (N, M)."""
        ...


class SampleMemory:
    """Per-sample results of a network, kept as long as no mask changes.

    They are the reweighted cross-entropy, its gradient with respect to the gates, and the bottleneck features. The
    mutual information is not kept, since it changes with the auxiliary heads and from batch to batch.

    Args:
        num_samples: number of samples in the data set.
        num_features: width of the bottleneck.
        num_gates: number of gates at all sites.
        like: tensor whose device and precision are used.
    """

    def __init__(self, num_samples: int, num_features: int, num_gates: int, like: Tensor) -> None:
        self.known = torch.zeros(num_samples, dtype=torch.bool)
        self.losses = like.new_zeros(num_samples)
        self.slopes = like.new_zeros(num_samples, num_gates)
        self.features = like.new_zeros(num_samples, num_features)

    def missing(self, rows: Tensor) -> Tensor:
        """Those samples among ``rows`` that have no results yet."""
        return rows[~self.known[rows]]

    def note(self, rows: Tensor, losses: Tensor, slopes: Tensor, features: Tensor) -> None:
        """Keep the results of the samples ``rows``."""
        self.losses[rows], self.slopes[rows], self.features[rows] = losses, slopes, features.detach()
        self.known[rows] = True

    def state_dict(self) -> dict[str, Any]:
        """The results of all samples, for saving."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore results that :meth:`state_dict` returned."""
        for name, tensor in state.items():
            setattr(self, name, tensor if name == "known" else tensor.to(self.losses.device))


class _Foreseen(NamedTuple):
    """G steps, computed in advance; they hold if no mask changes before their turn.

    Attributes:
        slopes_GM: gradient dJ/dgate of each step.
        heads: auxiliary heads after each step.
        shares_GS: figures that each step adds to the sums of the epoch.
    """

    slopes_GM: Tensor
    heads: list[HeadsState]
    shares_GS: Tensor


def steps_while_still(
    passes: Forward, step: MaskStep, memory: SampleMemory, parts: list[Tensor], after_steps: Callable[[], None]
) -> Iterator[Tensor]:
    """Take steps, several batches at a time, until a mask changes; returns the batches that are left.

    The gradients of several batches come from one forward pass over their bias-conflicting samples. Each batch is
    evaluated with the auxiliary heads as they will be at its turn.

    Args:
        passes: forward passes of the network.
        step: update of the search's state from one batch.
        memory: per-sample results under the present masks.
        parts: numbers of the samples in each batch.
        after_steps: function called after each group of steps.
    """
    state, taken = step.state, 0
    while taken < len(parts) and not state.tally.flipped.any():
        group = _group(step, parts[taken:])
        foreseen, slopes = _foresee(passes, step, memory, group), list[Tensor]()
        for slope, heads in zip(foreseen.slopes_GM.unbind(), foreseen.heads, strict=True):
            state.heads.state = heads
            slopes.append(step.descend(slope))
            if state.tally.flipped.any():
                break
        step.note(torch.stack(slopes), foreseen.shares_GS[: len(slopes)])
        taken += len(slopes)
        after_steps()
    return iter(parts[taken:])


def _group(step: MaskStep, parts: Sequence[Tensor]) -> list[Tensor]:
    """The next batches to compute together: at most ``_MOST``, with one batch's worth of bias-conflicting samples."""
    if step.state.pool is not None:
        return list(parts[:1])  # the pool grows from batch to batch
    room, group = len(parts[0]), list[Tensor]()
    for rows in parts[:_MOST]:
        room -= int(step.labels.known.conflicting[rows].any(1).sum())
        if group and room < 0:
            break
        group.append(rows)
    return group


def _foresee(passes: Forward, step: MaskStep, memory: SampleMemory, group: list[Tensor]) -> _Foreseen:
    """Compute the steps of these batches in advance, as they are if no mask changes before their turn."""
    state, gamma, gates_M = step.state, step.config.mi_weight, step.state.network.gates.values
    for part in group:
        missing = memory.missing(part)
        if len(missing):
            _remember(passes, step, memory, missing)
    rows, sizes = torch.cat(group).to(gates_M.device), [len(part) for part in group]
    labels = step.labels.of(rows)
    heads, head_losses = [state.heads.state], []
    for features, bias in zip(memory.features[rows].split(sizes), labels.bias.split(sizes), strict=True):
        head_losses.append(state.heads.step(features, bias))
        heads.append(state.heads.state)
    losses = torch.stack([part.mean() for part in memory.losses[rows].split(sizes)])
    slopes = torch.stack([memory.slopes[part].mean(0) for part in rows.split(sizes)])

    some = labels.conflicting.any(1)
    counts_of = torch.arange(len(group), device=rows.device).repeat_interleave(torch.tensor(sizes, device=rows.device))
    which = counts_of[some]
    counts = which.bincount(minlength=len(group)).tolist()
    gates = gates_M.expand(len(group), -1).clone().requires_grad_()
    if len(which) and gamma:
        seen = torch.cat(group)[some.cpu()]
        features = passes.forward(gates[which], passes.inputs_of(seen))[1]
    else:
        features = memory.features[rows[some]]
    features_GND, bias_GNK, conflicting_GNK = (  # padded with samples that do not count
        pad_sequence(part.split(counts), batch_first=True)
        for part in (features, labels.bias[some], labels.conflicting[some])
    )
    logits = state.heads.read(torch.stack([each.matrix for each in heads[:-1]]), features_GND)
    terms = _objective(losses, logits, bias_GNK, conflicting_GNK, gamma, state.pool)
    if terms.mutual_information.requires_grad and gates.requires_grad:
        (slope,) = torch.autograd.grad(terms.mutual_information.sum(), gates, allow_unused=True)
        slopes = slopes if slope is None else slopes.add_(slope, alpha=gamma)
    found = terms.mutual_information.detach()
    silent = silent_share(terms.num_conflicting, losses.dtype)
    shares = [losses + gamma * found, losses, found, torch.stack(head_losses), silent]  # in the order of state.SUMS
    return _Foreseen(slopes, heads[1:], torch.stack(shares, 1))


def _objective(
    losses_G: Tensor, logits_GNB: Sequence[Tensor], bias_GNK: Tensor, conflicting_GNK: Tensor, gamma: float,
    pool: JointPool | None,
) -> Objective:  # fmt: skip
    """Objective (Eq. 5) of each batch; a pool takes a single batch."""
    if pool is None:
        return objective_of(losses_G, _ALONE, logits_GNB, bias_GNK, conflicting_GNK, gamma)
    terms = objective_of(
        losses_G[0], _ALONE, [part[0] for part in logits_GNB], bias_GNK[0], conflicting_GNK[0], gamma, pool
    )
    return Objective(*(term[None] for term in terms))


def _remember(passes: Forward, step: MaskStep, memory: SampleMemory, rows: Tensor) -> None:
    """Compute the per-sample results of the samples ``rows`` and keep them."""
    labels = step.labels.of(rows)
    gates = step.state.network.gates.values.expand(len(rows), -1).clone().requires_grad_()
    logits, features = passes.forward(gates, passes.inputs_of(rows))
    losses = cross_entropy(logits, labels.target, reduction="none") * labels.weight
    (slopes,) = torch.autograd.grad(losses.sum(), gates)
    memory.note(rows, losses.detach(), slopes, features)
