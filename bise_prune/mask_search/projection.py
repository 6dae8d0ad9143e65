"""Keeps a network within a share of its cost: the channels that are worth least for what they cost are closed.

What a channel costs depends on which others are open. Under given gates, the gradient of the cost says what closing
each of them would save.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..config import Budget
from ..gates.masks import GateSite, gates_a_layer
from ..gates.ranking import least_open
from .gate_cost import GateCost

_TINY = 1e-8  # share of the cost that the cheapest channel is taken to save


class Projection:
    """Closes channels until the network fits a share of the dense network's cost.

    Args:
        cost: cost of the network as a function of its gates.
        sizes: number of channels of each site.
        layer_floor: share of each site's channels that always stays open, in [0, 1).
    """

    def __init__(self, cost: GateCost, sizes: list[int], layer_floor: float = Budget.layer_floor) -> None:
        self.sizes, self.layer_floor, self._cost = sizes, layer_floor, cost
        self._blocks = [_channels_of_block(site, cost.multiple) for site in cost.sites]

    def cost(self, gates: Tensor) -> float:
        """Cost under gates (M,) of 0 and 1, as a share of the dense network's."""
        return float(self._cost(gates.split(self.sizes)))

    def by_channels(self) -> Projection:
        """The same projection where every channel is counted, whatever widths are rounded up to."""
        return self if self._cost.multiple == 1 else Projection(self._cost.by_channels(), self.sizes, self.layer_floor)

    def reaches(self, share: float) -> bool:
        """Whether the network costs at most a share if only the channels are open that always stay open."""
        return self.cost(self.protected(torch.zeros(sum(self.sizes))).float()) <= share

    def savings(self, gates: Tensor) -> Tensor:
        """What each channel adds to the cost under these gates, as a share of the dense network's, shape (M,)."""
        leaf = gates.detach().cpu().double().requires_grad_()
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self._cost(leaf.split(self.sizes)), leaf)
        return slope.clamp(min=0).to(gates)

    def without_room(self, worth: Tensor, closed: Tensor, share: float) -> Tensor:
        """Open channels for which there is no room: those of least worth per cost, until the network fits the share.

        Args:
            worth: what each channel is worth, shape (M,).
            closed: which channels are closed, bool of shape (M,).
            share: share of the dense network's cost, in (0, 1].

        Returns:
            Bool of shape (M,); none if the network fits as it is.
        """
        gates = (~closed).float()
        if share >= 1.0 or self.cost(gates) <= share:
            return torch.zeros_like(closed)
        return ~self.kept(torch.where(closed, -torch.inf, self.per_cost(worth, closed)), share) & ~closed

    def per_cost(self, worth: Tensor, closed: Tensor) -> Tensor:
        """What each channel is worth per share of the cost that it adds under the present gates, shape (M,)."""
        return worth / self.savings((~closed).float()).to(worth).clamp(min=_TINY)

    def kept(self, worth: Tensor, share: float) -> Tensor:
        """Which channels stay open if those of lowest worth are closed until the network costs at most ``share``.

        Args:
            worth: number by which the channels are ranked, shape (M,).
            share: share of the dense network's cost, in (0, 1].

        Returns:
            Bool of shape (M,). If even the channels that always stay open cost more, only these do.
        """
        protected = self.protected(worth)
        order = torch.where(protected, torch.inf, self._of_blocks(worth)).argsort(stable=True)
        low, high = -1, len(worth) - int(protected.sum())  # closing low channels is too little, closing high enough
        if share >= 1.0 or self.cost(self._gates(order, 0)) <= share:
            return torch.ones_like(protected)
        while high - low > 1:
            middle = (low + high) // 2
            if self.cost(self._gates(order, middle)) <= share:
                high = middle
            else:
                low = middle
        return self.filled(self._gates(order, high) > 0, worth, share)

    def _of_blocks(self, worth: Tensor) -> Tensor:
        """What the block that each channel belongs to is worth, shape (M,): widths grow and shrink by whole blocks."""
        if max(self._blocks) == 1:
            return worth
        parts = []
        for part, block in zip(worth.split(self.sizes), self._blocks, strict=True):
            number = part.argsort(descending=True, stable=True).argsort() // block
            known = part > -torch.inf
            sums = torch.zeros_like(part).index_add(0, number, torch.where(known, part, 0.0))
            parts.append(torch.where(known, sums[number], -torch.inf))
        return torch.cat(parts)

    def filled(self, kept: Tensor, worth: Tensor, share: float) -> Tensor:
        """Open channels, and with them those of highest worth for which rounded widths have room in any case.

        Args:
            kept: which channels are open, bool of shape (M,).
            worth: number by which the others are ranked, shape (M,); minus infinity for those that stay closed.
            share: share of the dense network's cost, in (0, 1].

        Returns:
            Bool of shape (M,); what was given if the network would cost more.
        """
        if max(self._blocks) == 1:
            return kept
        parts = []
        for own, part, block in zip(kept.split(self.sizes), worth.split(self.sizes), self._blocks, strict=True):
            width = min(-(-int(own.sum()) // block) * block, len(own))
            best = torch.where(own, torch.inf, part).topk(width).indices
            parts.append(own.index_fill(0, best, True) & (own | (part > -torch.inf)))
        filled = torch.cat(parts)
        return filled if self.cost(filled.float()) <= max(share, self.cost(kept.float())) else kept

    def protected(self, worth: Tensor) -> Tensor:
        """The channels that always stay open, those of each site that are worth most, bool of shape (M,)."""
        protected, start = torch.zeros_like(worth, dtype=torch.bool), 0
        for size in self.sizes:
            best = worth[start : start + size].topk(least_open(size, self.layer_floor)).indices
            protected[start + best] = True
            start += size
        return protected

    def _gates(self, order: Tensor, count: int) -> Tensor:
        """Gates with the first ``count`` channels in an order closed, shape (M,)."""
        gates = torch.ones(len(order), device=order.device)
        gates[order[:count]] = 0
        return gates


def _channels_of_block(site: GateSite, multiple: int) -> int:
    """How many channels of a site fill a width up to its next multiple; 1 inside attention, where heads are rounded."""
    if not gates_a_layer(site.name) and not site.is_stream:
        return 1
    return max(1, multiple // max(1, (site.calls[0].entries or (0,)).count(0)))
