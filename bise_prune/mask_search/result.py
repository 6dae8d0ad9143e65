"""What a search returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..gates.masks import MaskSet
from ..metrics.accuracy import Evaluation
from .selection import LAST, Selected


@dataclass(frozen=True)
class EpochRecord:
    """One mask epoch; losses are means over its batches.

    Attributes:
        epoch: from 1.
        temperature: tau during the epoch.
        objective: J (Eq. 5).
        cross_entropy: its reweighted cross-entropy.
        mutual_information: its mutual information, summed over the biases.
        silent_share: share of (batch, bias) pairs with at most one conflicting sample, where the information is 0.
        head_cross_entropy: loss of the auxiliary heads, summed over the biases.
        mask_flips: channels that opened or closed during the epoch, also those that came back.
        closed: closed channels at its end.
        cost: of the gated network at its end, as a share of the dense one's, if there is a budget.
        validation: accuracies of the masked network at its end; None without validation data.
    """

    epoch: int
    temperature: float
    objective: float
    cross_entropy: float
    mutual_information: float
    silent_share: float
    head_cross_entropy: float
    mask_flips: int
    closed: int
    cost: float | None
    validation: Evaluation | None


@dataclass(frozen=True)
class SearchResult:
    """What the search found.

    Attributes:
        picks: the masks by rule: "last" always, the others (see :class:`bise_prune.SearchConfig`) with validation data.
        rule: the rule asked for.
        history: one record per epoch; fewer than scheduled if it stopped early.
        aligned: the bias value each class is aligned with, shape (classes, K).
        num_conflicting: bias-conflicting training samples, per bias.
        stopped_early: whether the search ended since no mask could move any more.
    """

    picks: Mapping[str, Selected]
    rule: str
    history: tuple[EpochRecord, ...]
    aligned: Tensor
    num_conflicting: tuple[int, ...]
    stopped_early: bool

    @property
    def masks(self) -> MaskSet:
        """The masks that the rule asked for picks."""
        return self.picks[self.rule].masks

    @property
    def best(self) -> MaskSet:
        """Masks of the highest unbiased accuracy on the validation data; the last ones without."""
        return self.picks.get("best", self.picks[LAST]).masks

    @property
    def last(self) -> MaskSet:
        """Masks after the last epoch."""
        return self.picks[LAST].masks

    @property
    def best_epoch(self) -> int:
        """The epoch of ``best``."""
        return self.picks.get("best", self.picks[LAST]).epoch
