"""A budget in the search: lambda relu(cost(gates) - limit) joins the objective, the limit coming down to the budget."""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import Budget
from ..gates.ranking import least_open
from .gate_cost import GateCost
from .network import MaskedNetwork

_WITHIN = 0.01  # of the budget


class BudgetTerm:
    """The budget's part of the objective.

    Args:
        budget: what to meet.
        network: whose cost is counted.
        num_epochs: of the whole schedule.

    Attributes:
        limit: what the network may cost in the present epoch, as a share.
    """

    def __init__(self, budget: Budget, network: MaskedNetwork, num_epochs: int) -> None:
        self.budget, self.sizes, self.num_epochs = budget, network.gates.sizes, num_epochs
        self._cost = GateCost(network.trace, network.model, network.sites, budget.of, budget.joins)
        self._at: tuple[Tensor, float, Tensor] | None = None  # gates, their cost, its gradient
        self.limit = 1.0

    def limit_in(self, epoch: int) -> float:
        """What the network may cost in an epoch, as a share: the budget, or on the way down to it."""
        budget = self.budget
        way = min(1.0, (epoch - 1) / (budget.descent * self.num_epochs)) if budget.descent else 1.0
        return budget.share + (1 - budget.share) * (1 - way)

    def cost(self, gates: Tensor) -> float:
        """Share of the dense cost under gates (M,) of 0 and 1."""
        return float(self._cost(gates.split(self.sizes)))

    def is_met(self, cost: float) -> bool:
        """Whether a cost is within a point of the budget, or below it."""
        return cost <= self.budget.share + _WITHIN

    def slope(self, gates: Tensor) -> Tensor:
        """The gradient of lambda relu(cost(gates) - limit) with respect to the gates (M,)."""
        state = gates.cpu()
        if self._at is None or not torch.equal(self._at[0], state):  # cost and gradient change with a flip alone
            leaf = state.double().requires_grad_()
            cost = self._cost(leaf.split(self.sizes))
            (slope,) = torch.autograd.grad(cost, leaf)
            self._at = (state, float(cost.detach()), slope.to(gates))
        _, value, slope = self._at
        return slope * (self.budget.weight * (value > self.limit))

    @torch.no_grad()
    def keep_floor(self, logits: Tensor) -> None:
        """Open the best channels of masks that the budget would close too far."""
        for part in logits.split(self.sizes):
            least = least_open(len(part), self.budget.layer_floor)
            if int((part >= 0).sum()) < least:
                best = part.topk(least).indices
                part[best] = part[best].clamp(min=0)
