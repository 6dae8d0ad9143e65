"""The result of a search: the masks that each selection rule picks, and one record per epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..gates.masks import MaskSet
from ..metrics.accuracy import Evaluation
from .selection import LAST, Selected


@dataclass(frozen=True)
class EpochRecord:
    """Figures of one epoch of the search; losses are means over its batches.

    Attributes:
        epoch: number of the epoch, from 1.
        temperature: temperature tau during the epoch; None in a gradual search.
        objective: objective J (Eq. 5).
        cross_entropy: reweighted cross-entropy L_r (Eq. 4).
        mutual_information: mutual information I, in [0, 1] for each bias, summed over the biases.
        silent_share: share of (batch, bias) pairs with at most one bias-conflicting sample, where I is 0.
        head_cross_entropy: cross-entropy of the auxiliary heads, summed over the biases.
        mask_flips: number of channels that opened or closed during the epoch, including those that returned.
        closed: number of closed channels at the end of the epoch.
        cost: cost of the gated network at the end of the epoch, as a share of the dense network's; None without a
            budget.
        validation: accuracies of the masked network at the end of the epoch; None without validation data.
        training_accuracy: accuracy of the masked network at the end of the epoch on a sample of the training set that
            is balanced over the subgroups, in [0, 1]; None in the paper's search.
        refitted_accuracy: the same with a head that is refitted to that sample; None in the paper's search.
        backed_out: whether the network collapsed in the epoch, so that the next one starts from the masks before it.
    """

    epoch: int
    temperature: float | None
    objective: float
    cross_entropy: float
    mutual_information: float
    silent_share: float
    head_cross_entropy: float
    mask_flips: int
    closed: int
    cost: float | None
    validation: Evaluation | None
    training_accuracy: float | None = None
    refitted_accuracy: float | None = None
    backed_out: bool = False


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    Attributes:
        picks: selected masks by rule: always "last", and with validation data the other rules that these support (see
            :class:`bise_prune.SearchConfig`).
        rule: rule that the settings ask for.
        history: one record per epoch; fewer than scheduled if the search stopped early.
        aligned: bias value that each class is aligned with, shape (classes, K).
        num_conflicting: number of bias-conflicting training samples, per bias.
        stopped_early: whether the search ended because no mask could change any more.
    """

    picks: Mapping[str, Selected]
    rule: str
    history: tuple[EpochRecord, ...]
    aligned: Tensor
    num_conflicting: tuple[int, ...]
    stopped_early: bool

    @property
    def masks(self) -> MaskSet:
        """The masks that the rule in the settings selects."""
        return self.picks[self.rule].masks

    @property
    def best(self) -> MaskSet:
        """The masks with the highest unbiased validation accuracy; the last ones if no epoch was selected by it."""
        return self.picks.get("best", self.picks[LAST]).masks

    @property
    def last(self) -> MaskSet:
        """The masks at the end of the last epoch."""
        return self.picks[LAST].masks

    @property
    def best_epoch(self) -> int:
        """The epoch that the masks in ``best`` come from."""
        return self.picks.get("best", self.picks[LAST]).epoch
