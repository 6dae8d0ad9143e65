"""Accuracy per subgroup, and the figures that follow from it, such as unbiased and worst-group accuracy."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.batch import Loader, as_batch
from ..distributed import gathered
from ..errors import DataError
from ..tracing import logits_of, run
from .subgroups import is_aligned

_SIDES = ("aligned", "conflicting")


@dataclass(frozen=True)
class SubgroupAccuracy:
    """Accuracy of one subgroup.

    Attributes:
        name: name of the subgroup, such as "y=1 b=0".
        n: number of samples, >= 1.
        correct: number of correct predictions.
    """

    name: str
    n: int
    correct: int

    @property
    def accuracy(self) -> float:
        """Share of correct predictions, in [0, 1]."""
        return self.correct / self.n


@dataclass(frozen=True)
class Evaluation:
    """Accuracies of a classifier over n samples, all in [0, 1].

    Attributes:
        n: number of samples.
        accuracy: share of correct predictions over all samples.
        unbiased_accuracy: unweighted mean of the accuracies of all subgroups that have samples.
        worst_group_accuracy: lowest accuracy of a subgroup that has samples.
        worst_class_accuracy: lowest accuracy of a class; needs no bias labels.
        subgroups: accuracy of each subgroup that has samples. For one bias, subgroups are the (y, b) cells; for several
            biases, the patterns of aligned and conflicting biases; without bias labels, the classes.
        aligned_accuracy: accuracy over the samples that are aligned with every bias; None if there are none.
        conflicting_accuracy: accuracy over all other samples; None if there are none.
    """

    n: int
    accuracy: float
    unbiased_accuracy: float
    worst_group_accuracy: float
    worst_class_accuracy: float
    subgroups: tuple[SubgroupAccuracy, ...]
    aligned_accuracy: float | None = None
    conflicting_accuracy: float | None = None


def evaluate(model: nn.Module, loader: Loader, aligned: Tensor, *, sharded: bool = False) -> Evaluation:
    """Evaluate the accuracy of a classifier per subgroup, on the model's device and in its present mode.

    Args:
        model: classifier.
        loader: loader of batches with named fields.
        aligned: the bias value that each class is aligned with, shape (classes, K), int64.
        sharded: whether every process of ``torch.distributed`` has a part of the samples; all get the same result.

    Raises:
        DataError: the loader is empty.
    """
    return score(*predictions(model, loader, sharded=sharded), aligned)


def predictions(model: nn.Module, loader: Loader, *, sharded: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Predict the classes of all samples; see :func:`evaluate` for the arguments.

    Returns:
        Predicted classes (N,), class labels (N,) and bias labels (N, K), int64, on the CPU.

    Raises:
        DataError: the loader is empty.
    """
    device = next(iter([*model.parameters(), *model.buffers()])).device
    predicted, targets, biases = [], [], []
    with torch.no_grad():
        for raw in loader:
            batch = as_batch(raw)
            predicted.append(logits_of(run(model, batch.to(device).input)).argmax(1).cpu())
            targets.append(batch.target.cpu())
            biases.append(batch.bias.cpu())
    if not predicted:
        raise DataError("no samples to evaluate on")
    labels, target, bias = (torch.cat(parts) for parts in (predicted, targets, biases))
    if sharded:
        labels, target, bias = (gathered(part.to(device)).cpu() for part in (labels, target, bias))
    return labels, target, bias


def score(predicted: Tensor, target: Tensor, bias: Tensor, aligned: Tensor) -> Evaluation:
    """Compute the accuracies of predicted classes.

    Args:
        predicted: predicted classes, shape (N,), int64.
        target: class labels, shape (N,), int64.
        bias: bias labels, shape (N, K), int64.
        aligned: the bias value that each class is aligned with, shape (classes, K), int64.
    """
    correct = predicted == target
    subgroups = []
    for name, members in subgroup_members(target, bias, aligned):
        n = int(members.sum())
        if n:
            subgroups.append(SubgroupAccuracy(name, n, int(correct[members].sum())))
    accuracies = [subgroup.accuracy for subgroup in subgroups]
    sides: list[float | None] = [None, None]
    if bias.shape[1]:
        on_side = is_aligned(target, bias, aligned).all(1)
        sides = [float(correct[side].double().mean()) if side.any() else None for side in (on_side, ~on_side)]
    return Evaluation(
        n=len(target),
        accuracy=float(correct.double().mean()),
        unbiased_accuracy=sum(accuracies) / len(accuracies),
        worst_group_accuracy=min(accuracies),
        worst_class_accuracy=min(float(correct[target == y].double().mean()) for y in target.unique().tolist()),
        subgroups=tuple(subgroups),
        aligned_accuracy=sides[0],
        conflicting_accuracy=sides[1],
    )


def subgroup_members(target: Tensor, bias: Tensor, aligned: Tensor) -> list[tuple[str, Tensor]]:
    """Name and members of each subgroup of an :class:`Evaluation`, including subgroups without samples.

    The arguments are those of :func:`score`.

    Returns:
        Pairs of a name and a bool tensor of shape (N,), which is True for the members.
    """
    if bias.shape[1] == 0:
        return [(_class_name(y), target == y) for y in target.unique().tolist()]
    if bias.shape[1] == 1:
        column = bias[:, 0]
        cells = itertools.product(target.unique().tolist(), column.unique().tolist())
        return [(_cell_name(y, b), (target == y) & (column == b)) for y, b in cells]
    flags = is_aligned(target, bias, aligned)
    patterns = itertools.product(_SIDES, repeat=bias.shape[1])
    return [
        (", ".join(sides), (flags == torch.tensor([side == _SIDES[0] for side in sides])).all(1)) for sides in patterns
    ]


def subgroup_labels(
    classes: Sequence[str], bias_values: Sequence[Sequence[str]], bias_names: Sequence[str] = ()
) -> dict[str, str]:
    """Names of subgroups in the words of the data, such as "blond, male", by the names in an :class:`Evaluation`.

    Args:
        classes: class names.
        bias_values: per bias the names of its values.
        bias_names: names of the biases; subgroups of several biases say with which of them they are aligned.

    Returns:
        Name of a subgroup -> its name in the words of the data, for subgroups that have one.

    >>> subgroup_labels(["dark", "blond"], [["male", "female"]])["y=1 b=0"]
    'blond, male'
    >>> subgroup_labels([], [], ["colour", "place"])["aligned, conflicting"]
    'colour aligned, place conflicting'
    """
    labels = {_class_name(y): name for y, name in enumerate(classes)}
    if len(bias_values) == 1 and bias_values[0]:
        for (y, one), (b, other) in itertools.product(enumerate(classes), enumerate(bias_values[0])):
            labels[_cell_name(y, b)] = f"{one}, {other}"
    if len(bias_names) > 1:
        for sides in itertools.product(_SIDES, repeat=len(bias_names)):
            labels[", ".join(sides)] = ", ".join(map(" ".join, zip(bias_names, sides, strict=True)))
    return labels


def _class_name(y: int) -> str:
    """Name of a subgroup that is a class."""
    return f"y={y}"


def _cell_name(y: int, b: int) -> str:
    """Name of a subgroup that is a (y, b) cell."""
    return f"y={y} b={b}"
