"""A budget for the network's cost: the search adds lambda relu(cost(gates) - limit) to its objective.

The limit descends from the cost of the whole network to the budget.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import Budget
from ..gates.ranking import least_open
from .gate_cost import GateCost
from .network import MaskedNetwork


class BudgetTerm:
    """The term of the objective that makes the search meet a budget.

    Args:
        budget: cost to come down to, and the weight lambda.
        network: network whose cost is counted.
        num_epochs: number of epochs in the whole schedule.

    Attributes:
        limit: cost that is free in the present epoch, as a share of the dense network's.
    """

    def __init__(self, budget: Budget, network: MaskedNetwork, num_epochs: int) -> None:
        self.budget, self.sizes, self.num_epochs = budget, network.gates.sizes, num_epochs
        self._cost = GateCost(network.trace, network.model, network.sites, budget.of, budget.joins)
        self._at: tuple[Tensor, float, Tensor] | None = None  # gates, their cost, its gradient
        self.limit = 1.0

    def start_epoch(self, epoch: int) -> None:
        """Set the limit of an epoch, counted from 1."""
        self.limit = self._limit_in(epoch)

    def has_descended(self, epoch: int) -> bool:
        """Whether the limit of an epoch is the budget itself."""
        return self._limit_in(epoch) <= self.budget.share

    def _limit_in(self, epoch: int) -> float:
        """The limit in an epoch, as a share of the dense cost: it falls linearly from 1 to the budget."""
        budget = self.budget
        way = min(1.0, (epoch - 1) / (budget.descent * self.num_epochs)) if budget.descent else 1.0
        return budget.share + (1 - budget.share) * (1 - way)

    def cost(self, gates: Tensor) -> float:
        """Cost under gates (M,) of 0 and 1, as a share of the dense network's."""
        return float(self._cost(gates.split(self.sizes)))

    def slope(self, gates: Tensor) -> Tensor:
        """Gradient of lambda relu(cost(gates) - limit) with respect to the gates, shape (M,)."""
        state = gates.cpu()
        if self._at is None or not torch.equal(self._at[0], state):  # unchanged until a channel flips
            leaf = state.double().requires_grad_()
            cost = self._cost(leaf.split(self.sizes))
            (slope,) = torch.autograd.grad(cost, leaf)
            self._at = (state, float(cost.detach()), slope.to(gates))
        _, value, slope = self._at
        return slope * (self.budget.weight * (value > self.limit))

    @torch.no_grad()
    def keep_floor(self, logits: Tensor) -> None:
        """Open the best channels of each mask that has fewer open channels than the layer floor of the budget."""
        for part in logits.split(self.sizes):
            least = least_open(len(part), self.budget.layer_floor)
            if int((part >= 0).sum()) < least:
                best = part.topk(least).indices
                part[best] = part[best].clamp(min=0)
