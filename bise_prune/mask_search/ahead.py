"""While no mask flips, the network is a constant: the steps of several batches come from one pass."""

# Shape suffixes: G batches, N samples of one, M gates, K biases, B bias classes.

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from .heads import HeadsState
from .mutual_information import information
from .objective import joints_of, silent_share

if TYPE_CHECKING:
    from .run import SearchRun

_MOST = 16  # batches at a time


class StillNetwork:
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
        slopes: dJ/dgate of each, shape (G, M).
        heads: the heads after each.
        shares: what each adds to the sums of the epoch, shape (G, sums).
    """

    slopes: Tensor
    heads: list[HeadsState]
    shares: Tensor


def stand_still(
    run: SearchRun, still: StillNetwork, parts: list[Tensor], after_steps: Callable[[], None]
) -> Iterator[Tensor]:
    """Steps on the batches ``parts`` for as long as no mask flips, several at a time; returns the batches left.

    The gradients of several batches come from one pass over their conflicting samples, each batch against the heads as
    they will be by then.
    """
    taken = 0
    while taken < len(parts) and not run.flipped.any():
        group = _group(run, parts[taken:])
        steps, slopes = _foresee(run, still, group), []
        for slope, heads in zip(steps.slopes.unbind(), steps.heads, strict=True):
            run.heads.state = heads
            slopes.append(run.descend(slope))
            if run.flipped.any():
                break
        run.note(torch.stack(slopes), steps.shares[: len(slopes)])
        taken += len(slopes)
        run.done += len(slopes)
        after_steps()
    return iter(parts[taken:])


def _group(run: SearchRun, parts: list[Tensor]) -> list[Tensor]:
    """As many of the batches as have a batch's worth of conflicting samples among them, one to ``_MOST``."""
    if run.pool is not None:
        return parts[:1]  # the pool grows from batch to batch
    room, group = len(parts[0]), list[Tensor]()
    for rows in parts[:_MOST]:
        room -= int(run.known_labels.conflicting[rows].any(1).sum())
        if group and room < 0:
            break
        group.append(rows)
    return group


def _foresee(run: SearchRun, still: StillNetwork, group: list[Tensor]) -> _Foreseen:
    """What the steps on these batches are, if no mask flips before their turn."""
    for part in group:
        missing = still.missing(part)
        if len(missing):
            _remember(run, still, missing)
    rows, sizes = torch.cat(group).to(run.device), [len(part) for part in group]
    labels = run.labels(rows)
    heads, auxiliary = [run.heads.state], []
    for features, bias in zip(still.features[rows].split(sizes), labels.bias.split(sizes), strict=True):
        auxiliary.append(run.heads.step(features, bias))
        heads.append(run.heads.state)
    losses = torch.stack([part.mean() for part in still.losses[rows].split(sizes)])
    slopes = torch.stack([still.slopes[part].mean(0) for part in rows.split(sizes)])

    some = labels.conflicting.any(1)
    which = torch.arange(len(group), device=run.device).repeat_interleave(torch.tensor(sizes, device=run.device))[some]
    counts = which.bincount(minlength=len(group)).tolist()
    gates = run.gate_values().expand(len(group), -1).clone().requires_grad_()
    if len(which) and run.config.mi_weight:
        seen = torch.cat(group)[some.cpu()]
        features = run.forward(gates[which].split(run.gates.sizes, 1), *run.inputs(seen))[1]
    else:
        features = still.features[rows[some]]
    features_GND, bias_GNK, conflicting_GNK = (  # filled up with samples that do not count
        pad_sequence(part.split(counts), batch_first=True)
        for part in (features, labels.bias[some], labels.conflicting[some])
    )
    num_conflicting = conflicting_GNK.sum(1).to(losses)  # a pool's counts are no whole numbers
    logits = run.heads.read(torch.stack([state.matrix for state in heads[:-1]]), features_GND)
    total_information = losses.new_zeros(len(group))
    for biases, joint in joints_of(logits, bias_GNK, conflicting_GNK):
        count = num_conflicting.T[biases]
        if run.pool is not None:
            joint, count = run.pool.add(biases[0], joint[:, 0], count[:, 0])
            num_conflicting.T[biases] = count[:, None]
        total_information = total_information + information(joint, count).view(len(biases), -1).sum(0)
    if total_information.requires_grad and gates.requires_grad:
        (slope,) = torch.autograd.grad(total_information.sum(), gates, allow_unused=True)
        slopes = slopes if slope is None else slopes.add_(slope, alpha=run.config.mi_weight)
    found = total_information.detach()
    totals = losses + run.config.mi_weight * found
    shares = [totals, losses, found, torch.stack(auxiliary), silent_share(num_conflicting, losses.dtype)]
    return _Foreseen(slopes, heads[1:], torch.stack(shares, 1))


def _remember(run: SearchRun, still: StillNetwork, rows: Tensor) -> None:
    labels = run.labels(rows)
    gates = run.gate_values().expand(len(rows), -1).clone().requires_grad_()
    logits, features = run.forward(gates.split(run.gates.sizes, 1), *run.inputs(rows))
    losses = cross_entropy(logits, labels.target, reduction="none") * labels.weight
    (slopes,) = torch.autograd.grad(losses.sum(), gates)
    still.note(rows, losses.detach(), slopes, features)
