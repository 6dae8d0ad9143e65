"""Accuracy per subgroup, and what is made of it."""

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


@dataclass(frozen=True)
class SubgroupAccuracy:
    """One subgroup: its name, samples and correct predictions."""

    name: str
    n: int
    correct: int

    @property
    def accuracy(self) -> float:
        """Share of correct predictions, in [0, 1]."""
        return self.correct / self.n


@dataclass(frozen=True)
class Evaluation:
    """Accuracies in [0, 1] over n samples.

    Attributes:
        n: samples.
        accuracy: share of correct predictions over all samples.
        unbiased_accuracy: unweighted mean over the subgroups that have samples.
        worst_group_accuracy: the lowest of them.
        worst_class_accuracy: the lowest over the classes, which needs no bias labels.
        subgroups: (y, b) cells for one bias; for several, the patterns of aligned and conflicting biases; the classes
            where no bias labels are known.
        aligned_accuracy: over the samples that are aligned with every bias; None where there are none.
        conflicting_accuracy: over the others, likewise.
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
    """Accuracy of ``model`` on ``loader``, on the model's device and in its present mode.

    Args:
        model: a classifier.
        loader: batches with named fields.
        aligned: the bias value each class is aligned with, shape (classes, K).
        sharded: whether every process of ``torch.distributed`` brings a part of the samples; each gets the result.

    Raises:
        DataError: the loader is empty.
    """
    return score(*predictions(model, loader, sharded=sharded), aligned)


def predictions(model: nn.Module, loader: Loader, *, sharded: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted classes (N,), labels (N,) and bias labels (N, K) of all samples, on the CPU; see :func:`evaluate`."""
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
    """Accuracies of predicted classes, shape (N,), against labels of shape (N,) and bias labels of shape (N, K)."""
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
    """The subgroups of :class:`Evaluation`, with or without samples: each one's name and members, bool (N,)."""
    if bias.shape[1] == 0:
        return [(_class_name(y), target == y) for y in target.unique().tolist()]
    if bias.shape[1] == 1:
        column = bias[:, 0]
        cells = itertools.product(target.unique().tolist(), column.unique().tolist())
        return [(_cell_name(y, b), (target == y) & (column == b)) for y, b in cells]
    flags = is_aligned(target, bias, aligned)
    patterns = itertools.product((True, False), repeat=bias.shape[1])
    return [
        (", ".join("aligned" if flag else "conflicting" for flag in pattern), (flags == torch.tensor(pattern)).all(1))
        for pattern in patterns
    ]


def subgroup_labels(classes: Sequence[str], bias_values: Sequence[Sequence[str]]) -> dict[str, str]:
    """Subgroup's name -> what it is called in the data, as in "blond, male", for subgroups that have such names.

    Args:
        classes: class names.
        bias_values: per bias the names of its values; subgroups of several biases are called by their alignment.

    >>> subgroup_labels(["dark", "blond"], [["male", "female"]])["y=1 b=0"]
    'blond, male'
    """
    labels = {_class_name(y): name for y, name in enumerate(classes)}
    if len(bias_values) == 1 and bias_values[0]:
        for (y, one), (b, other) in itertools.product(enumerate(classes), enumerate(bias_values[0])):
            labels[_cell_name(y, b)] = f"{one}, {other}"
    return labels


def _class_name(y: int) -> str:
    return f"y={y}"


def _cell_name(y: int, b: int) -> str:
    return f"y={y} b={b}"
