"""Bias labels for data that have none: what a network learns first (BISE, Sec. 4.4 and App. K), or what it shows.

:func:`pseudo_bias_labels` needs no bias label at all; :func:`predicted_bias_labels` needs those of a few samples.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..data.loader import BatchLoader, BiasedDataset
from ..errors import DataError, ModelError
from ..gates.bottleneck import readout_of
from ..mask_search.refitted import refitted_head
from ..metrics.accuracy import predictions
from ..metrics.subgroups import aligned_values, is_aligned
from ..tracing import trace
from .features import bottleneck_features
from .vanilla import train_vanilla

_FEW = 0.001  # share of misclassified training samples below which the labels are useless
_LEAST_AGREEMENT = 0.7  # of two models on what they get wrong, below which it is not the bias that they have learned


@dataclass(frozen=True)
class PseudoLabels:
    """Pseudo bias labels, and how reliable they are.

    Attributes:
        labels: predictions of the identification model, one tensor of shape (N, 1), int64, per data set.
        num_conflicting: number of misclassified training samples, which count as bias-conflicting.
        accuracy: accuracy of the identification model on the training set, in [0, 1].
        precision: share of the misclassified samples that are bias-conflicting by the true bias labels, in [0, 1]; None
            if these are not known.
        recall: share of the truly bias-conflicting samples that are misclassified, in [0, 1]; None if the true bias
            labels are not known.
        agreement: share of the training samples misclassified by either of two identification models that both
            misclassify, in [0, 1]; None without a second one.
        warnings: reasons why the labels may be useless, one sentence each.
    """

    labels: tuple[Tensor, ...]
    num_conflicting: int
    accuracy: float
    precision: float | None
    recall: float | None
    agreement: float | None
    warnings: tuple[str, ...]

    @property
    def is_trusted(self) -> bool:
        """Whether there is no reason why they may be useless."""
        return not self.warnings


def pseudo_bias_labels(
    identification_model: nn.Module,
    train: BiasedDataset,
    *others: BiasedDataset,
    second: nn.Module | None = None,
    epochs: int = 1,
    batch_size: int = 100,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    seed: int = 0,
) -> PseudoLabels:
    """Train a network for a short time and use its predictions as pseudo bias labels.

    This works because networks learn biases before classes. Whether it did can be told without bias labels: networks
    that start from different weights then misclassify the same samples.

    Args:
        identification_model: untrained network of the architecture to debias; trained in place with Adam.
        train: the biased training set; its bias labels, if any, serve only to measure precision and recall.
        others: further data sets to label, such as the validation set.
        second: untrained network with other weights, which is trained in place on another order of the samples, to
            measure the agreement; None = it is not measured.
        epochs: training epochs; 1 in the paper.
        batch_size: samples per batch in the training.
        lr: learning rate of the optimiser (Adam).
        weight_decay: weight decay of the optimiser (Adam).
        seed: random seed of the order of the samples.
    """

    def labels_by(model: nn.Module, order: int, *sets: BiasedDataset) -> tuple[Tensor, ...]:
        """Train a network, and predict the classes of some data sets by it."""
        optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
        train_vanilla(model, BatchLoader(train, batch_size, shuffle=True, seed=order), optimizer, epochs=epochs)
        return tuple(predictions(model, BatchLoader(data, 256))[0][:, None] for data in sets)

    labels = labels_by(identification_model, seed, train, *others)
    suspected = labels[0][:, 0] != train.target.cpu()
    count, share = int(suspected.sum()), float(suspected.double().mean())
    agreement = None
    if second is not None:
        again = labels_by(second, seed + 1, train)[0][:, 0] != train.target.cpu()
        either = int((suspected | again).sum())
        agreement = int((suspected & again).sum()) / either if either else 1.0
    precision = recall = None
    if train.has_bias:
        target, bias = train.target.cpu(), train.bias.cpu()
        num_classes = int(target.max()) + 1
        conflicting = (~is_aligned(target, bias, aligned_values(target, bias, num_classes))).any(1)
        hits = int((conflicting & suspected).sum())
        precision = hits / count if count else 0.0
        recall = hits / int(conflicting.sum()) if bool(conflicting.any()) else 0.0
    warnings = tuple(_warnings(suspected, labels[0], train, agreement))
    return PseudoLabels(labels, count, 1 - share, precision, recall, agreement, warnings)


def predicted_bias_labels(model: nn.Module, labelled: BiasedDataset, *others: BiasedDataset) -> tuple[Tensor, ...]:
    """Predict bias labels by a linear classifier for each bias, on the features that the network's last layer reads.

    The bias is easy to read from the features of a biased network, so that few labelled samples suffice (as Nam et al.,
    ICLR 2022, who train a network for it).

    Args:
        model: network that ends in a linear or convolutional layer; never changed.
        labelled: samples with true bias labels; each subgroup of them has the same weight.
        others: data sets to label.

    Returns:
        Bias labels, shape (N, K), int64, per data set.

    Raises:
        ModelError: the network does not end in such a layer.
    """
    bias, device = labelled.bias.cpu(), next(model.parameters()).device
    readout = readout_of(model, trace(model, labelled.batch(torch.arange(2)).to(device).input))
    learned, *features = (bottleneck_features(model, readout.layers, data) for data in (labelled, *others))
    labels: list[list[Tensor]] = [[] for _ in others]
    for column in bias.unbind(1):
        cells = torch.stack([labelled.target.cpu(), column], 1).unique(dim=0, return_inverse=True)[1]
        weights = 1 / cells.bincount()[cells].double()
        values = max(2, int(column.max()) + 1)
        head = refitted_head(learned, column.to(learned.device), values, weights.to(learned.device))
        for found, own in zip(labels, features, strict=True):
            found.append(linear(own, head[:, :-1], head[:, -1]).argmax(1).cpu())
    return tuple(torch.stack(found, 1) for found in labels)


def with_pseudo_labels(data: BiasedDataset, labels: Tensor) -> BiasedDataset:
    """Replace the bias labels of a data set by pseudo bias labels, shape (N, 1), int64.

    Raises:
        DataError: the labels do not have the shape (N, 1) for the N samples of ``data``.
    """
    if labels.shape != (len(data), 1):
        raise DataError(f"pseudo labels of shape {tuple(labels.shape)} for {len(data)} samples")
    return replace(data, bias=labels.to(data.target.device))


def untrained_copy(model: nn.Module, seed: int = 0) -> nn.Module:
    """Copy a network and give it new random weights.

    Args:
        model: the network; never changed.
        seed: random seed of the weights.

    Raises:
        ModelError: some modules with weights cannot reset them; pass an untrained network instead.
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


def _warnings(suspected: Tensor, labels: Tensor, train: BiasedDataset, agreement: float | None) -> list[str]:
    """Reasons why the pseudo bias labels may be useless, one sentence each."""
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
    else:
        target = train.target.cpu()
        worst, number = max((float(suspected[target == y].double().mean()), y) for y in target.unique().tolist())
        if worst > 0.5:
            found.append(
                f"the identification model misclassifies {worst:.0%} of the training samples of class {number}: it has "
                "not learned to see that class at all; train it for longer"
            )
    if agreement is not None and agreement < _LEAST_AGREEMENT:
        found.append(
            f"two identification models share {agreement:.0%} of the samples that either of them gets wrong: what they "
            "learn first is not one bias, so that the pseudo labels say little of it"
        )
    return found
