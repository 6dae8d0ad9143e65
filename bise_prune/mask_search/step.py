"""One batch of the search: a step of the mask logits and one of the auxiliary heads (Algorithm 1, lines 8 to 10)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ..config import SearchConfig
from ..distributed import summed, world
from ..gates.step import step_slope
from .budget import BudgetTerm
from .objective import objective_of, reweighted_cross_entropy, silent_share
from .state import SearchState
from .training_data import Part, TrainingLabels


class MaskStep:
    """Updates the mask logits and the auxiliary heads from one batch.

    Args:
        state: state of the search, which the steps change.
        labels: labels and sample weights of the training set.
        config: settings of the search; gamma and the SGD settings of the mask logits are used here.
        budget: cost that the network must come down to; None if the search has no budget.
    """

    def __init__(
        self, state: SearchState, labels: TrainingLabels, config: SearchConfig, budget: BudgetTerm | None
    ) -> None:
        self.state, self.labels, self.config, self.budget = state, labels, config, budget

    def open_gates(self) -> Tensor:
        """Values of all gates, shape (M,); the network runs under them, and J is differentiated by them."""
        return self.state.network.gates.values.requires_grad_()

    def __call__(self, gates: Tensor, logits: Tensor, features: Tensor, part: Part) -> None:
        """Update the auxiliary heads and the mask logits from the forward pass of one batch.

        Args:
            gates: values of the gates from :meth:`open_gates`.
            logits: class logits y_hat of the network under these gates, shape (N, C).
            features: bottleneck features z, shape (N, d).
            part: the batch, for its labels.
        """
        state, labels = self.state, self.labels.of(part)
        terms = objective_of(  # line 8: Eq. 5
            reweighted_cross_entropy(logits, labels.target, labels.weight),
            len(labels.target),
            state.heads(features),  # no gradient reaches the heads' weights
            labels.bias,
            labels.conflicting,
            self.config.mi_weight,
            state.pool,
        )
        head_loss = state.heads.step(features, labels.bias, terms.num_samples if world()[1] > 1 else None)  # line 10
        terms.total.backward()
        if state.norm_optimizer is not None:
            state.norm_optimizer.step()
            state.norm_optimizer.zero_grad()
        slope = self.descend(cast(Tensor, gates.grad))  # line 9
        silent = silent_share(terms.num_conflicting, logits.dtype)
        shares = [terms.total, terms.cross_entropy, terms.mutual_information, head_loss, silent]
        self.note(slope[None], torch.stack(shares).detach()[None])

    def note(self, slopes_GM: Tensor, shares_GS: Tensor) -> None:
        """Add G steps that were taken to the tally of the epoch, and move the position on; see :class:`EpochTally`."""
        self.state.tally.note(slopes_GM, shares_GS, self.state.network.gates.closed)
        self.state.position.batches += len(slopes_GM)

    def descend(self, slope: Tensor) -> Tensor:
        """Take one step of SGD on the mask logits, from the gradient of J with respect to the gates.

        The gradient with respect to m is dJ/dgate times sigma'(m / tau) / tau (straight-through estimator), plus the
        weight decay.

        Args:
            slope: gradient dJ/dgate on this process's part of the batch, shape (M,).

        Returns:
            dJ/dgate summed over all processes, with the gradient of the budget term added, shape (M,).
        """
        config, state, logits = self.config, self.state, self.state.logits
        slope = summed(slope)
        if self.budget is not None:
            slope = slope + self.budget.slope(state.network.gates.values)
        gradient = (slope * step_slope(logits, state.network.gates.temperature)).add_(
            logits, alpha=config.mask_weight_decay
        )
        state.velocity.mul_(config.mask_momentum).add_(gradient)
        logits.sub_(state.velocity, alpha=config.mask_lr)
        if self.budget is not None:
            self.budget.keep_floor(logits)
        state.tally.flipped |= state.network.gates.closed != state.tally.closed_before
        return slope
