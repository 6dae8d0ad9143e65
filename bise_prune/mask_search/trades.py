"""Trades, with which a gradual search ends: channels open and others close in their place if that lowers the loss.

What a channel is worth is an estimate, for this channel alone and for the masks of the moment. A trade is measured: the
loss of the masked network on a balanced sample, before and after. So the loss only falls, whatever the estimate is
worth, and the network keeps its cost.

* **What is tried.** The closed channels that are worth most for their cost open, and the open ones that are worth least
  close until there is room. The next trade is chosen by worths that are drawn within what their standard errors leave
  open (Thompson sampling). They are estimated anew where a trade fails after others were kept.
* **How much.** A trade that lowers the loss is kept, and the next one opens twice as many channels; after one that does
  not, the next opens half as many.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from ..distributed import summed
from .assembly import Search
from .judge import Judge
from .projection import Projection
from .worth import worth_of

TRIALS = 20  # trades that are tried in a round
STEPS_DOWN = 12  # steps of equal cost from the open network to a share
_FIRST, _MOST = 8, 64  # channels that open in the first trade of a round, and in any


class Trades:
    """Trades of channels at a given cost.

    Args:
        search: parts of the search.
        projection: the costs.
        judge: what trades are judged by, on a sample of the training set that is balanced over the subgroups.
    """

    def __init__(self, search: Search, projection: Projection, judge: Judge) -> None:
        self.search, self.projection, self.judge = search, projection, judge
        self._last: tuple[Tensor, float, Tensor, Tensor] | None = None  # gates after a round, their loss and worth

    def round(
        self, gates: Tensor, share: float, generator: torch.Generator, after_trial: Callable[[], None]
    ) -> tuple[Tensor, Tensor]:
        """Try some trades, and make those that lower the loss.

        Args:
            gates: gates of 0 and 1, shape (M,).
            share: share of the dense network's cost that is allowed, in (0, 1].
            generator: CPU generator, from which worths are drawn.
            after_trial: function called after each trial.

        Returns:
            The gates after the trades, and what each channel is then worth, both of shape (M,).
        """
        known = self._last
        if known is None or not torch.equal(known[0], gates):
            known = (gates, self.judge.loss(gates), *self.worth(gates))
        _, least, worth, error = known
        guess, size, is_old = worth, float(_FIRST), False
        for _ in range(TRIALS):
            trial = self.trade(gates, guess, int(size), share)
            loss = least if torch.equal(trial, gates) else self.judge.loss(trial)
            is_kept = loss < least
            if is_kept:
                gates, least, size, is_old = trial, loss, min(2 * size, _MOST), True
            else:
                size = max(size / 2, 1.0)
            if is_old and not is_kept:
                (worth, error), is_old = self.worth(gates), False
                guess = worth
            else:
                guess = worth + error * torch.randn(len(worth), generator=generator).to(worth)
            after_trial()
        if is_old:
            worth, error = self.worth(gates)
        self._last = gates, least, worth, error
        return gates, worth

    def way_down(self, share: float, after_step: Callable[[], None]) -> Tensor:
        """Close an open network in equal steps of its cost, by what channels are worth on the way.

        Args:
            share: share of the dense network's cost at which it ends, in (0, 1].
            after_step: function called after each step.

        Returns:
            Gates of 0 and 1, shape (M,).
        """
        network = self.search.network
        gates = torch.ones(sum(self.projection.sizes), dtype=network.dtype, device=network.device)
        for step in range(1, STEPS_DOWN + 1):
            closed = gates == 0
            value = torch.where(closed, -torch.inf, self.projection.per_cost(self.worth(gates)[0], closed))
            allowed = 1 - (1 - share) * step / STEPS_DOWN
            gates = (self.projection.kept(value, allowed) & ~closed).to(gates)
            after_step()
        return gates

    def trade(self, gates: Tensor, worth: Tensor, size: int, share: float) -> Tensor:
        """Gates in which closed channels open, and open ones close in their place, shape (M,).

        Args:
            gates: gates of 0 and 1, shape (M,).
            worth: what each channel is taken to be worth, shape (M,).
            size: number of channels that open, if so many are closed.
            share: share of the dense network's cost that is allowed, in (0, 1].
        """
        closed = gates == 0
        value = self.projection.per_cost(worth, closed)
        opened = torch.where(closed, value, -torch.inf).topk(min(size, int(closed.sum()))).indices
        ranked = torch.where(closed, -torch.inf, value).index_fill(0, opened, torch.inf)
        kept = self.projection.kept(ranked, share) & (ranked > -torch.inf)
        spare = torch.where(closed & (value <= 0), -torch.inf, value)
        return self.projection.filled(kept, spare, share).to(gates)

    def worth(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """What each channel is worth on the sample, and the standard error of the gradient in it, shape (M,) each."""
        moments = torch.zeros(2, len(gates), dtype=gates.dtype, device=gates.device)
        counts = torch.zeros(2, device=gates.device)  # of batches and of samples
        head = self.judge.head(gates)
        for part, inputs in self.search.passes.inputs(self.judge.sample.parts):
            leaf, target = gates.clone().requires_grad_(), self.search.labels.of(part).target
            logits, features = self.search.passes.forward(leaf, inputs)
            if head is not None:
                logits = linear(features, head[:, :-1], head[:, -1])
            (slope,) = torch.autograd.grad(cross_entropy(logits, target), leaf)
            moments += torch.stack([slope, slope.square()])
            counts += torch.tensor([1, len(target)]).to(counts)
        batches, samples = summed(counts)
        mean, square = summed(moments) / batches
        error = ((square - mean.square()).clamp(min=0) / batches).sqrt()
        return worth_of(mean, square, gates == 0, float(samples / batches)), error
