"""Rules that select the epoch whose masks are the result, by validation accuracy with or without bias labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..config import Select
from ..errors import ConfigError
from ..gates.masks import MaskSet
from ..metrics.accuracy import Evaluation

LAST = "last"
RULES: Mapping[str, Callable[[Evaluation], float]] = {
    "best": lambda evaluation: evaluation.unbiased_accuracy,
    "worst-group": lambda evaluation: evaluation.worst_group_accuracy,
    "accuracy": lambda evaluation: evaluation.accuracy,
    "worst-class": lambda evaluation: evaluation.worst_class_accuracy,
}
NEED_BIAS = ("best", "worst-group")
DESCRIPTIONS = {
    "best": "highest unbiased accuracy on the validation split, the later epoch of equals",
    "worst-group": "highest worst-group accuracy on the validation split, the later epoch of equals",
    "accuracy": "highest accuracy on the validation split (no bias labels used), the later epoch of equals",
    "worst-class": "highest worst-class accuracy on the validation split (no bias labels used), the later of equals",
    LAST: "last epoch",
}
# Of a gradual search without a target, in which each epoch closes more.
SMALLEST = {
    "best": "last epoch within half a point of the highest unbiased accuracy on the validation split",
    "worst-group": "last epoch within half a point of the highest worst-group accuracy on the validation split",
    "accuracy": "last epoch within half a point of the highest accuracy on the validation split (no bias labels used)",
    "worst-class": "last epoch within half a point of the highest worst-class accuracy on the validation split",
    LAST: "last epoch within half a point of the whole network's accuracy on a balanced training sample",
}
# Of a search that judges by a refitted last layer.
REFITTED = {
    "best": "last epoch within one standard error of the highest unbiased validation accuracy, last layer refitted",
    "worst-group": "last epoch within one standard error of the highest worst-group accuracy, last layer refitted",
    "accuracy": "last epoch within one standard error of the highest validation accuracy, last layer refitted",
    "worst-class": "last epoch within one standard error of the highest worst-class accuracy, last layer refitted",
    LAST: "last epoch",
}


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
