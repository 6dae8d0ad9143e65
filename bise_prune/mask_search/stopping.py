"""When a search may stop: no mask can move any more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .assembly import Search

SAFETY = 2.0  # over the last epoch's gradients
_FLOORS = (0.25, 0.5, 0.7, 0.8, 0.9, 0.95)
_DRIFT = 0.1  # share of an epoch's pushes towards zero that may come to add up over epochs


def is_settled(search: Search, temperatures: Sequence[float]) -> bool:
    """Whether no mask can flip any more in epochs to come of these temperatures."""
    config, state, history = search.config, search.state, search.state.history
    if config.batchnorm != "frozen" or not temperatures or history[-1].mask_flips:
        return False
    if search.budget is not None:
        cost = history[-1].cost
        if cost is not None and not search.budget.is_met(cost):
            return False
        if search.budget.limit_in(len(history) + 1) > search.budget.budget.share:
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
    """Whether no logit can cross zero in the epochs to come, if their gradients are bounded by those of the last one.

    While no mask flips, the network stands still: the gradients dJ/dgate of an epoch come from the same samples each
    time and differ only by batches and head. So their sum over an epoch, as far as it points to zero, is taken to stay
    below ``SAFETY`` times (that of the last epoch + ``_DRIFT`` times all pushes to zero in it), and within an epoch no
    order of the batches moves a logit to zero by more than all pushes. The straight-through gradient multiplies these
    by sigma'(m / tau) / tau, which falls off exponentially with |m| / tau. Suppose that |m| stays above a floor, some
    share of what weight decay alone would leave of it. If the sum of all moves, with the momentum at hand, is at most
    what is above the floor, the supposition holds by induction; any share will do.

    Args:
        logits: m, any shape.
        velocity: the optimiser's momentum buffer, of the same shape; None = zero.
        push: sum over the last epoch of dJ/dgate towards zero (sign(m) dJ/dgate), same shape.
        toward: sum of its positive parts.
        temperatures: tau of each epoch to come.
        lr: of SGD.
        momentum: of SGD.
        weight_decay: of SGD.
        steps: per epoch.
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
    probability = torch.sigmoid(x)
    return probability * (1 - probability)
