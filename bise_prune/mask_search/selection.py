"""Rules that select the epoch whose masks are the result, by validation accuracy with or without bias labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..config import SearchConfig, Select
from ..errors import ConfigError
from ..gates.masks import MaskSet
from ..metrics.accuracy import Evaluation, SubgroupAccuracy

LAST = "last"
RULES: Mapping[str, Callable[[Evaluation], float]] = {
    "best": lambda evaluation: evaluation.unbiased_accuracy,
    "worst-group": lambda evaluation: evaluation.worst_group_accuracy,
    "accuracy": lambda evaluation: evaluation.accuracy,
    "worst-class": lambda evaluation: evaluation.worst_class_accuracy,
}
# Standard errors of these figures; that of the worst class as if all samples were of it, whose number is not known.
ERRORS: Mapping[str, Callable[[Evaluation], float]] = {
    "best": lambda evaluation: _error_of_mean(evaluation.subgroups),
    "worst-group": lambda evaluation: _error_of_mean([min(evaluation.subgroups, key=lambda group: group.accuracy)]),
    "accuracy": lambda evaluation: standard_error(evaluation.accuracy, evaluation.n),
    "worst-class": lambda evaluation: standard_error(evaluation.worst_class_accuracy, evaluation.n),
}
NEED_BIAS = ("best", "worst-group")
_FIGURES = {
    "best": "unbiased accuracy on the validation split",
    "worst-group": "worst-group accuracy on the validation split",
    "accuracy": "accuracy on the validation split (no bias labels used)",
    "worst-class": "worst-class accuracy on the validation split (no bias labels used)",
}


def standard_error(accuracy: float, num_samples: int) -> float:
    """Standard error of an accuracy on so many samples."""
    return math.sqrt(accuracy * (1 - accuracy) / num_samples)


def _error_of_mean(groups: Sequence[SubgroupAccuracy]) -> float:
    """Standard error of the mean of the groups' accuracies, half a success and half a failure added to each.

    Without these, a group of one sample would seem to be known for sure.
    """
    shares = [(group.correct + 0.5) / (group.n + 1) for group in groups]
    variance = sum(share * (1 - share) / group.n for share, group in zip(shares, groups, strict=True))
    return math.sqrt(variance) / len(groups)


def description(rule: str, search: SearchConfig | None = None, has_target: bool = False) -> str:
    """What a rule picks, for reports.

    Args:
        rule: name of the rule.
        search: settings of the search whose epochs are picked from; None for epochs of training.
        has_target: whether the search has a target.
    """
    is_gradual = search is not None and search.is_gradual
    if rule == LAST:
        within = (
            " within half a point of the whole network's accuracy on a balanced training sample, "
            "or within a point or one standard error if no other is"
        )
        return "last epoch" + (within if is_gradual and not has_target else "")
    highest = f"highest {_FIGURES[rule]}"
    if search is not None and search.refit == "head":
        return f"last epoch within one standard error of the {highest}, last layer refitted"
    if not is_gradual:
        return f"{highest}, the later epoch of equals"
    if has_target:
        return f"{highest}; after trades, the last epoch within one standard error of it"
    return f"last epoch within half a point of the {highest}; after trades, within one standard error"


@dataclass(frozen=True)
class Selected:
    """The masks that a selection rule picks.

    Attributes:
        epoch: number of the epoch, from 1.
        masks: masks at the end of that epoch.
        score: validation accuracy that the rule maximises; None for "last".
    """

    epoch: int
    masks: MaskSet
    score: float | None = None


def resolve(select: Select, has_validation: bool, has_bias: bool) -> str:
    """The name of the rule that ``select`` stands for; "auto" becomes a rule that the given data support.

    Args:
        select: the setting.
        has_validation: whether there are validation data.
        has_bias: whether the validation data have bias labels.

    Raises:
        ConfigError: the rule needs validation data, or bias labels on them, that are not given.
    """
    if select == "auto":
        if not has_validation:
            return LAST
        return "best" if has_bias else "worst-class"
    if select != LAST and not has_validation:
        raise ConfigError(f"select '{select}' needs validation data; give some, or use 'last'")
    if select in NEED_BIAS and not has_bias:
        raise ConfigError(
            f"select '{select}' needs bias labels on the validation data; give them, or use 'accuracy', 'worst-class' "
            "or 'last'"
        )
    return select
