"""While no mask flips, the network is a constant: the steps of several batches come from one pass."""

# Shape suffixes: G batches, N samples of one, M gates, K biases, B bias classes, S figures of a step.

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

_MOST = 16  # batches at a time


class Forward(Protocol):
    """The two methods of :class:`.fast_passes.FastPasses` that are needed here."""

    def inputs_of(self, rows: Tensor) -> Any:
        """What :meth:`forward` takes for samples by their numbers."""
        ...

    def forward(self, gates: Tensor, inputs: Any) -> tuple[Tensor, Tensor]:
        """Logits and bottleneck features under gates (N, M)."""
        ...


class SampleMemory:
    """What a network under one state of the masks computes, per sample, so that once is enough.

    The reweighted cross-entropy, its gradient with respect to the gates, and the bottleneck; the information is not
    kept: it changes with the heads and from batch to batch.

    Args:
        num_samples: of the data set.
        num_features: width of the bottleneck.
        num_gates: of all sites.
        like: a tensor of the device and precision to use.
    """

    def __init__(self, num_samples: int, num_features: int, num_gates: int, like: Tensor) -> None:
        self.known = torch.zeros(num_samples, dtype=torch.bool)
        self.losses = like.new_zeros(num_samples)
        self.slopes = like.new_zeros(num_samples, num_gates)
        self.features = like.new_zeros(num_samples, num_features)

    def missing(self, rows: Tensor) -> Tensor:
        """Those of ``rows`` of which nothing is known yet."""
        return rows[~self.known[rows]]

    def note(self, rows: Tensor, losses: Tensor, slopes: Tensor, features: Tensor) -> None:
        """Keep what has been computed for ``rows``."""
        self.losses[rows], self.slopes[rows], self.features[rows] = losses, slopes, features.detach()
        self.known[rows] = True

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up."""
        for name, tensor in state.items():
            setattr(self, name, tensor if name == "known" else tensor.to(self.losses.device))


class _Foreseen(NamedTuple):
    """G steps as they will be if no mask flips before.

    Attributes:
        slopes_GM: dJ/dgate of each.
        heads: the heads after each.
        shares_GS: what each adds to the sums of the epoch.
    """

    slopes_GM: Tensor
    heads: list[HeadsState]
    shares_GS: Tensor


def steps_while_still(
    passes: Forward, step: MaskStep, memory: SampleMemory, parts: list[Tensor], after_steps: Callable[[], None]
) -> Iterator[Tensor]:
    """Take the steps on batches for as long as no mask flips, several at a time; returns the batches left.

    The gradients of several batches come from one pass over their conflicting samples, each batch against the heads as
    they will be by then.

    Args:
        passes: runs the network.
        step: what is stepped.
        memory: per-sample results under the present masks.
        parts: numbers of each batch's samples.
        after_steps: called after each group of steps.
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
        state.tally.note(torch.stack(slopes), foreseen.shares_GS[: len(slopes)], state.network.gates.closed)
        taken += len(slopes)
        state.position.batches += len(slopes)
        after_steps()
    return iter(parts[taken:])


def _group(step: MaskStep, parts: Sequence[Tensor]) -> list[Tensor]:
    """As many of the batches as have a batch's worth of conflicting samples among them, one to ``_MOST``."""
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
    """What the steps on these batches are, if no mask flips before their turn."""
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
    features_GND, bias_GNK, conflicting_GNK = (  # filled up with samples that do not count
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
    """Eq. (5) of each batch; with a pool, of the one that there is."""
    if pool is None:
        return objective_of(losses_G, 0, logits_GNB, bias_GNK, conflicting_GNK, gamma)
    terms = objective_of(losses_G[0], 0, [part[0] for part in logits_GNB], bias_GNK[0], conflicting_GNK[0], gamma, pool)
    return Objective(*(term[None] for term in terms))


def _remember(passes: Forward, step: MaskStep, memory: SampleMemory, rows: Tensor) -> None:
    labels = step.labels.of(rows)
    gates = step.state.network.gates.values.expand(len(rows), -1).clone().requires_grad_()
    logits, features = passes.forward(gates, passes.inputs_of(rows))
    losses = cross_entropy(logits, labels.target, reduction="none") * labels.weight
    (slopes,) = torch.autograd.grad(losses.sum(), gates)
    memory.note(rows, losses.detach(), slopes, features)
