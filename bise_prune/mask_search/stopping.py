"""Early stopping: whether a search can end because no mask can change any more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .assembly import Search
from .budget import BudgetTerm

SAFETY = 2.0  # factor by which gradients to come may exceed the last epoch's
_FLOORS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95)
_DRIFT = 0.1  # share of an epoch's pushes towards zero that may add up over several epochs


def is_settled(search: Search, temperatures: Sequence[float]) -> bool:
    """Whether no mask can change in the epochs that are left.

    Args:
        search: the search, between two epochs.
        temperatures: temperature of each epoch that is left.
    """
    config, state, history = search.config, search.state, search.state.history
    if config.batchnorm != "frozen" or not temperatures or history[-1].mask_flips:
        return False
    if isinstance(search.budget, BudgetTerm):
        cost = history[-1].cost
        if cost is not None and not search.budget.budget.is_met(cost):
            return False
        if not search.budget.has_descended(len(history) + 1):
            return False
    return none_can_flip(
        state.logits,
        state.velocity,
        state.tally.pushes[0],
        state.tally.pushes[1],
        temperatures,
        lr=config.mask_lr,
        momentum=config.mask_momentum,
        weight_decay=config.mask_weight_decay,
        steps=state.steps,
    )


def none_can_flip(
    logits: Tensor,
    velocity: Tensor | None,
    push: Tensor,
    toward: Tensor,
    temperatures: Sequence[float],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    steps: int,
) -> bool:
    """Whether no mask logit can cross zero in the epochs to come, if their gradients are bounded by the last epoch's.

    While no mask changes, the network is constant: the gradients dJ/dgate of an epoch come from the same samples each
    time and differ only by the order of the batches and the auxiliary head. Their sum over an epoch, as far as it
    points towards zero, is therefore assumed to stay below ``SAFETY`` times (that of the last epoch + ``_DRIFT`` times
    all pushes towards zero in it). Within an epoch, no order of the batches moves a logit towards zero by more than all
    pushes together. The straight-through estimator multiplies these gradients by sigma'(m / tau) / tau, which falls
    exponentially with |m| / tau.

    Suppose that |m| stays above a floor, some share of what weight decay alone would leave of it. If the sum of all
    moves, with the present momentum, is at most the part of |m| above the floor, the supposition holds by induction. It
    is enough that this works for one of several shares.

    Args:
        logits: mask logits m, any shape.
        velocity: momentum buffer of the optimiser, of the same shape; None = zero.
        push: sum over the last epoch of dJ/dgate towards zero, sign(m) dJ/dgate, of the same shape.
        toward: sum over the last epoch of its positive values alone, of the same shape.
        temperatures: temperature of each epoch to come.
        lr: learning rate of the mask logits (SGD).
        momentum: momentum of the mask logits.
        weight_decay: weight decay of the mask logits.
        steps: number of steps in an epoch.
    """
    m = logits.detach().double().abs()
    rate = lr / (1 - momentum)
    decayed = m * (1 - min(1.0, rate * weight_decay * steps * len(temperatures)))
    lasting = push.double().clamp(min=0) + _DRIFT * toward.double()
    at_hand = torch.zeros_like(m) if velocity is None else rate * momentum * velocity.double().abs()
    stays = torch.zeros_like(m, dtype=torch.bool)
    for share in _FLOORS:
        slopes = torch.stack([_slope(share * decayed / temperature) / temperature for temperature in temperatures])
        drift = rate * SAFETY * (lasting * slopes.sum(0) + toward.double() * slopes.amax(0)) + at_hand
        stays |= drift <= (1 - share) * decayed
    return bool(stays.all())


def _slope(x: Tensor) -> Tensor:
    """The derivative of the sigmoid at x."""
    probability = torch.sigmoid(x)
    return probability * (1 - probability)
