"""Whether a classifier does better than one that does not look at its input, and whether one of two is the better."""

# Shape suffixes: N samples.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from .fairness import LEVEL

_ROUNDING = 1e-9  # sums of the same shares in another order


@dataclass(frozen=True)
class AgainstChance:
    """The accuracy of a classifier, beside that of one which gives the same answers equally often, but at random.

    Attributes:
        accuracy: unweighted mean over the groups of the share of correct predictions.
        chance: its expectation if the predictions do not depend on the input. With one group for each class, or with
            equally many groups of each class, this is 1 / C for C classes, whatever the predictions are.
        noise: standard error of ``accuracy`` under that assumption; 0 if all predictions are equal.
        is_constant: whether all predictions are equal although the labels are not.
    """

    accuracy: float
    chance: float
    noise: float
    is_constant: bool

    def is_above(self, errors: float = NormalDist().inv_cdf((1 + LEVEL) / 2)) -> bool:
        """Whether the accuracy is above chance by more than so many standard errors."""
        return self.accuracy > self.chance + errors * self.noise + _ROUNDING


def against_chance(predicted_N: Tensor, target_N: Tensor, members: Sequence[Tensor] | None = None) -> AgainstChance:
    """Compare the accuracy of predictions with that of random predictions of the same frequencies.

    Args:
        predicted_N: predicted classes, shape (N,), int64.
        target_N: class labels, shape (N,), int64.
        members: for each group, which samples belong to it, bool of shape (N,); groups without samples are left out.
            None = all samples are one group, so that the accuracy is the plain one.

    >>> against_chance(torch.tensor([1, 1, 1, 1]), torch.tensor([0, 0, 1, 1]))
    AgainstChance(accuracy=0.5, chance=0.5, noise=0.0, is_constant=True)
    """
    groups = [torch.ones_like(target_N, dtype=torch.bool)] if members is None else [m for m in members if m.any()]
    size = int(torch.cat([predicted_N, target_N]).max()) + 1
    frequency = torch.bincount(predicted_N, minlength=size).double() / len(predicted_N)
    is_constant = len(predicted_N.unique()) == 1
    accuracies, expected, variances = [], [], []
    for group in groups:
        accuracies.append(float((predicted_N == target_N)[group].double().mean()))
        expected.append(float(frequency[target_N[group]].mean()))
        variances.append(expected[-1] * (1 - expected[-1]) / int(group.sum()))
    return AgainstChance(
        accuracy=sum(accuracies) / len(groups),
        chance=sum(expected) / len(groups),
        noise=0.0 if is_constant else sum(variances) ** 0.5 / len(groups),
        is_constant=is_constant and len(target_N.unique()) > 1,
    )


def unbiased_change(groups: Iterable[tuple[int, int, int]], level: float = LEVEL) -> tuple[float, float]:
    """Interval of the change of the unbiased accuracy between two classifiers on the same samples.

    Each subgroup counts with two more samples, one of them put right and one put wrong by half each (Agresti and Min,
    2005), so that a subgroup of a few samples, all of them put wrong, is no proof.

    Args:
        groups: for each subgroup its number of samples, and how many of these only the second and only the first
            classifier predicts correctly.
        level: confidence level, in (0, 1).

    Returns:
        Lower and upper bound, for the second classifier minus the first.

    >>> low, high = unbiased_change([(1000, 0, 100), (1000, 0, 100)])
    >>> -0.13 < low < high < -0.08
    True
    """
    changes, variances = [], []
    for n, fixed, broken in groups:
        change = (fixed - broken) / (n + 2)
        changes.append(change)
        variances.append(((fixed + broken + 1) / (n + 2) - change**2) / (n + 2))
    middle = sum(changes) / len(changes)
    half = NormalDist().inv_cdf((1 + level) / 2) * sum(variances) ** 0.5 / len(changes)
    return middle - half, middle + half
