"""The state of a search: everything that changes while it runs, so that a stopped search can be resumed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..config import SearchConfig
from ..digests import state_tensors, tensors_digest
from .heads import BiasHeads
from .mutual_information import JointPool
from .network import MaskedNetwork
from .result import EpochRecord
from .training_data import Position

SUMS = ("objective", "cross_entropy", "mutual_information", "head_cross_entropy", "silent_share")


class EpochTally:
    """Sums over the steps of the present epoch.

    Args:
        closed: closed channels at the start of the epoch, bool, shape (M,).

    Attributes:
        sums: sums of the figures named in :data:`SUMS` over the steps, float64.
        pushes: two sums per gate, shape (2, M). Row 0 sums the gradient dJ/dgate, with the sign that is positive where
            a step closes an open channel or opens a closed one; row 1 sums its positive values alone.
        closed_before: closed channels at the start of the epoch, bool, shape (M,).
        flipped: channels that opened or closed during the epoch, including those that returned, bool, shape (M,).
    """

    def __init__(self, closed: Tensor) -> None:
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=closed.device)
        self.pushes = torch.zeros(2, len(closed), device=closed.device)
        self.closed_before, self.flipped = closed, torch.zeros_like(closed)

    def note(self, slopes_GM: Tensor, shares_GS: Tensor, closed: Tensor) -> None:
        """Add G steps to the sums.

        Args:
            slopes_GM: gradient dJ/dgate of each step.
            shares_GS: figures of each step, in the order of :data:`SUMS`.
            closed: closed channels at present, bool, shape (M,).
        """
        push = torch.where(closed, -slopes_GM, slopes_GM)
        self.pushes += torch.stack([push.sum(0), push.clamp(min=0).sum(0)])
        self.sums += shares_GS.sum(0)


@dataclass
class SearchState:
    """The variables of Algorithm 1 and how far it has come; a search resumed from them gives the same bits.

    Attributes:
        network: the masked network; its gates hold the mask logits m, shape (M,), and the temperature tau. Its batch
            norms change too if the settings say so.
        velocity: momentum of the mask logits, shape (M,).
        heads: auxiliary heads C_aux with their momentum.
        norm_optimizer: optimiser of the batch norms' weights and additive biases; None unless these are trained.
        pool: joint distributions of past batches; None unless the mutual information is estimated over several batches.
        generator: source of the initial weights of the auxiliary heads and of the order of their training samples.
        position: finished passes over the training set and finished batches.
        tally: sums over the steps of the present epoch.
        steps: number of steps in the last finished epoch.
        history: one record per finished epoch.
        picks: for each selection rule the selected epoch, its score, and what :meth:`learned` returned at its end.
        heads_trained: whether the auxiliary heads have had their first training (line 4).
        started_at: digest of the mask logits before the first step, and of the tensors that the masks which the search
            starts from hold, by which a saved state is recognised.
    """

    network: MaskedNetwork
    velocity: Tensor
    heads: BiasHeads
    norm_optimizer: torch.optim.Optimizer | None
    pool: JointPool | None
    generator: torch.Generator
    position: Position
    tally: EpochTally
    started_at: str
    steps: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    picks: dict[str, tuple[int, float | None, dict[str, Tensor]]] = field(default_factory=dict)
    heads_trained: bool = False

    @classmethod
    def at_start(
        cls, network: MaskedNetwork, heads: BiasHeads, generator: torch.Generator, position: Position,
        config: SearchConfig,
    ) -> SearchState:  # fmt: skip
        """The state before the first training of the auxiliary heads (Algorithm 1, line 4)."""
        logits = network.gates.logits.detach()
        norm_optimizer = None
        if config.batchnorm == "affine":
            norm_optimizer = torch.optim.SGD(
                [parameter.requires_grad_() for norm in network.norms for parameter in norm.parameters()],
                lr=config.mask_lr, momentum=config.mask_momentum, weight_decay=config.mask_weight_decay,
            )  # fmt: skip
        return cls(
            network=network,
            velocity=torch.zeros_like(logits),
            heads=heads,
            norm_optimizer=norm_optimizer,
            pool=JointPool(config.mi_pool) if config.mi_pool else None,
            generator=generator,
            position=position,
            tally=EpochTally(network.gates.closed),
            started_at=tensors_digest({"logits": logits, **network.start.state}),
        )

    @property
    def logits(self) -> Tensor:
        """The mask logits m, shape (M,), without a gradient; writing into this tensor changes the masks."""
        return self.network.gates.logits.detach()

    def learned(self) -> dict[str, Tensor]:
        """A copy of what masks are learned with: the mask logits as "logits", and tensors of norm layers by name.

        These are what the masks that the search starts from hold, and what the search changes.
        """
        changed = set(self.network.start.state)
        if self.network.config.batchnorm != "frozen":
            names = {id(module): name for name, module in self.network.model.named_modules()}
            changed |= {f"{names[id(norm)]}.{leaf}" for norm in self.network.norms for leaf in state_tensors(norm)}
        tensors = {name: tensor for name, tensor in state_tensors(self.network.model).items() if name in changed}
        return {name: tensor.cpu().clone() for name, tensor in {"logits": self.logits, **tensors}.items()}

    def extra(self) -> dict[str, Any]:
        """What a saved state holds beside the variables of every search."""
        return {}

    def restore_extra(self, content: dict[str, Any]) -> None:
        """Restore what :meth:`extra` returned."""


_OF_GRADUAL = ("taken", "moments", "shares", "drop", "before")


@dataclass
class GradualState(SearchState):
    """The variables of a gradual search (:mod:`.gradual`) beside those of every search.

    Attributes:
        taken: number of steps that have been taken.
        moments: running means of dJ/dgate and of its square, shape (2, M).
        shares: shares of the dense network's cost that are allowed at the start and at the end of the round.
        drop: what the share falls by in a round without a budget.
        before: mask logits before the round, shape (M,).
    """

    taken: int = 0
    moments: Tensor = field(default_factory=lambda: torch.zeros(2, 0))
    shares: tuple[float, float] = (1.0, 1.0)
    drop: float = 0.0
    before: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        self.moments = torch.zeros_like(self.logits).repeat(2, 1)

    def extra(self) -> dict[str, Any]:
        """What a saved state holds beside the variables of every search."""
        return {name: getattr(self, name) for name in _OF_GRADUAL}

    def restore_extra(self, content: dict[str, Any]) -> None:
        """Restore what :meth:`extra` returned."""
        for name in _OF_GRADUAL:
            value = content[name]
            setattr(self, name, value.to(self.logits.device) if isinstance(value, Tensor) else value)
