"""Pseudo bias labels where there are none: what a network learns first (BISE, Sec. 4.4 and App. K)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..data.loader import BatchLoader, BiasedDataset
from ..errors import DataError, ModelError
from ..metrics.subgroups import aligned_values, is_aligned
from ..tracing import logits_of, run
from .vanilla import train_vanilla

_FEW = 0.001  # share of misclassified training samples below which nothing is separated


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo bias labels, and how far they can be trusted.

    Attributes:
        labels: the identification model's predictions, one tensor (N, 1) per data set, int64.
        num_conflicting: misclassified samples of the first data set: those taken for bias-conflicting.
        accuracy: of the identification model on the first data set.
        precision: share of them that are conflicting by the true bias labels; None where those are not known.
        recall: share of the truly conflicting samples among them; None likewise.
        warnings: why the labels may be useless, in words.
    """

    labels: tuple[Tensor, ...]
    num_conflicting: int
    accuracy: float
    precision: float | None
    recall: float | None
    warnings: tuple[str, ...]


def pseudo_bias_labels(
    identification_model: nn.Module,
    train: BiasedDataset,
    *others: BiasedDataset,
    epochs: int = 1,
    batch_size: int = 100,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    seed: int = 0,
) -> PseudoLabels:
    """Train a network for a moment; its predictions are the pseudo bias labels: biases are learned before classes.

    Args:
        identification_model: untrained, of the architecture that is to be debiased; trained in place with Adam.
        train: the biased training set; bias labels, if it has any, serve to measure precision and recall only.
        others: further sets to label, such as the validation set.
        epochs: the paper's is 1.
        batch_size: of the training.
        lr: of Adam.
        weight_decay: of Adam.
        seed: of the order of the samples.
    """
    optimizer = torch.optim.Adam(identification_model.parameters(), lr=lr, weight_decay=weight_decay)
    train_vanilla(
        identification_model, BatchLoader(train, batch_size, shuffle=True, seed=seed), optimizer, epochs=epochs
    )
    labels = tuple(_predictions(identification_model, data)[:, None] for data in (train, *others))
    suspected = labels[0][:, 0] != train.target.cpu()
    count, share = int(suspected.sum()), float(suspected.double().mean())
    precision = recall = None
    if train.has_bias:
        target, bias = train.target.cpu(), train.bias.cpu()
        num_classes = int(target.max()) + 1
        conflicting = (~is_aligned(target, bias, aligned_values(target, bias, num_classes))).any(1)
        hits = int((conflicting & suspected).sum())
        precision = hits / count if count else 0.0
        recall = hits / int(conflicting.sum()) if bool(conflicting.any()) else 0.0
    return PseudoLabels(labels, count, 1 - share, precision, recall, tuple(_warnings(suspected, labels[0], train)))


def with_pseudo_labels(data: BiasedDataset, labels: Tensor) -> BiasedDataset:
    """``data`` with pseudo labels (N, 1) in place of bias labels.

    Raises:
        DataError: the labels are those of another data set.
    """
    if labels.shape != (len(data), 1):
        raise DataError(f"pseudo labels of shape {tuple(labels.shape)} for {len(data)} samples")
    return replace(data, bias=labels.to(data.target.device))


def untrained_copy(model: nn.Module, seed: int = 0) -> nn.Module:
    """A network of the same architecture with new random weights.

    Raises:
        ModelError: some of its weights belong to modules that cannot reset them; pass an untrained one instead.
    """
    fresh = copy.deepcopy(model)
    stuck = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, module in fresh.named_modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(module.parameters(recurse=False), None) is not None:
                stuck.append(name or type(module).__name__)
    if stuck:
        raise ModelError(
            f"no untrained copy of {type(model).__name__}: {', '.join(stuck[:3])} cannot reset their weights; pass an "
            "untrained identification model"
        )
    return fresh


def _predictions(model: nn.Module, data: BiasedDataset) -> Tensor:
    device = next(model.parameters()).device
    with torch.no_grad():
        parts = [logits_of(run(model, batch.to(device).input)).argmax(1).cpu() for batch in BatchLoader(data, 256)]
    return torch.cat(parts)


def _warnings(suspected: Tensor, labels: Tensor, train: BiasedDataset) -> list[str]:
    share, classes = float(suspected.double().mean()), len(train.target.unique())
    found = []
    if share < _FEW:
        found.append(
            f"the identification model misclassifies {share:.2%} of the training samples: it separates nothing; "
            "train it for a shorter time"
        )
    if len(labels.unique()) == 1 or share > 1 - 1.5 / classes:
        found.append(
            f"the identification model has learned next to nothing ({1 - share:.1%} right): its errors say nothing of "
            "a bias; train it for longer"
        )
    return found
