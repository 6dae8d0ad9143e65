"""What a search changes as it goes on."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..config import SearchConfig
from .heads import BiasHeads
from .mutual_information import JointPool
from .network import MaskedNetwork
from .result import EpochRecord
from .training_data import Position

SUMS = ("objective", "cross_entropy", "mutual_information", "head_cross_entropy", "silent_share")


class EpochTally:
    """What the present epoch has added up so far.

    Args:
        closed: closed channels at its start, bool (M,).

    Attributes:
        sums: of :data:`SUMS` over the steps, float64.
        pushes: per gate the sum of dJ/dgate towards closing an open or opening a closed channel, and of its positive
            parts, shape (2, M).
        closed_before: closed channels at the start.
        flipped: channels that opened or closed since, also those that came back.
    """

    def __init__(self, closed: Tensor) -> None:
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=closed.device)
        self.pushes = torch.zeros(2, len(closed), device=closed.device)
        self.closed_before, self.flipped = closed, torch.zeros_like(closed)

    def note(self, slopes_GM: Tensor, shares_GS: Tensor, closed: Tensor) -> None:
        """Add G steps: their gradients dJ/dgate, and their figures in the order of :data:`SUMS`."""
        push = torch.where(closed, -slopes_GM, slopes_GM)
        self.pushes += torch.stack([push.sum(0), push.clamp(min=0).sum(0)])
        self.sums += shares_GS.sum(0)


@dataclass
class SearchState:
    """The variables of Algorithm 1 and the place where it is; a stopped search goes on from these to the same bits.

    Attributes:
        network: its gates hold the mask logits m (M,) and the temperature tau; its batch norms may follow.
        velocity: momentum of m, shape (M,).
        heads: the auxiliary heads C_aux with their momentum.
        norm_optimizer: of the batch norms' affine parameters, where these are trained.
        pool: joint distributions of past batches, where the information is pooled.
        generator: source of the heads' first weights and of the order of their training samples.
        position: passes and batches that are done.
        tally: sums of the present epoch.
        steps: of the last whole epoch.
        history: one record per epoch.
        picks: rule -> epoch, score, and what :meth:`learned` was at its end.
        heads_trained: whether line 4 is behind.
        started_at: sum of the logits before the first step.
    """

    network: MaskedNetwork
    velocity: Tensor
    heads: BiasHeads
    norm_optimizer: torch.optim.Optimizer | None
    pool: JointPool | None
    generator: torch.Generator
    position: Position
    tally: EpochTally
    started_at: float
    steps: int = 0
    history: list[EpochRecord] = field(default_factory=list)
    picks: dict[str, tuple[int, float | None, dict[str, Tensor]]] = field(default_factory=dict)
    heads_trained: bool = False

    @classmethod
    def at_start(
        cls, network: MaskedNetwork, heads: BiasHeads, generator: torch.Generator, position: Position,
        config: SearchConfig,
    ) -> SearchState:  # fmt: skip
        """The state before line 4."""
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
            started_at=float(logits.double().sum()),
        )

    @property
    def logits(self) -> Tensor:
        """The mask logits m, shape (M,), without a gradient; changes to them are changes of the masks."""
        return self.network.gates.logits.detach()

    def learned(self) -> dict[str, Tensor]:
        """A copy of the mask logits by "logits", and of the batch norms' tensors by name if these change."""
        tensors = {"logits": self.logits.cpu().clone()}
        if self.network.config.batchnorm != "frozen":
            names = {id(module): name for name, module in self.network.model.named_modules()}
            for norm in self.network.norms:
                for leaf, tensor in norm.state_dict().items():
                    tensors[f"{names[id(norm)]}.{leaf}"] = tensor.detach().cpu().clone()
        return tensors
