"""Bias labels for data that have none: what a network learns first (BISE, Sec. 4.4 and App. K), or what it shows.

:func:`pseudo_bias_labels` needs no bias label at all; :func:`predicted_bias_labels` needs those of a few samples.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, repeat

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..data.loader import BatchLoader, BiasedDataset
from ..digests import state_tensors
from ..errors import ConfigError, DataError, ModelError
from ..gates.bottleneck import readout_of
from ..mask_search.refitted import refitted_head
from ..metrics.accuracy import predictions
from ..metrics.subgroups import aligned_values, is_aligned
from ..tracing import trace
from .features import bottleneck_features
from .norms import reestimated
from .vanilla import train_vanilla

_LOOKS = (0.125, 0.25, 0.5, 1, 1.5, 2, 3, 4)  # epochs after which it is looked how far two models agree
SEEN = 5_000  # training samples that are looked at, at most
_NORMALISING = 1_000  # those that statistics of batch norms are taken from
_GAIN = 0.01  # by which a later moment must be better, since classes are learned meanwhile
_PATIENCE = 2  # looks in a row that are not, after which it is enough, if the best one is
_FEW = 0.001  # share of misclassified training samples below which the labels are useless
_LEAST = 0.45  # product of agreement and accuracy above chance, below which it is not a bias that was learned first


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
        epochs: training epochs of the identification model.
        warnings: reasons why the labels may be useless, one sentence each.
    """

    labels: tuple[Tensor, ...]
    num_conflicting: int
    accuracy: float
    precision: float | None
    recall: float | None
    agreement: float | None
    epochs: float
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
    epochs: int | None = 1,
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
        epochs: training epochs; 1 in the paper. None = as long as gives the highest product of the agreement and the
            accuracy above chance, of eight moments up to four epochs, the first of equal ones; the second network is
            needed for it. Batch norms then have the statistics of some training samples, since running ones come too
            late for some networks.
        batch_size: samples per batch in the training.
        lr: learning rate of the optimiser (Adam).
        weight_decay: weight decay of the optimiser (Adam).
        seed: random seed of the order of the samples.

    Raises:
        ConfigError: ``epochs`` is None, and there is no second network.
    """
    if epochs is None and second is None:
        raise ConfigError("two networks are needed to find how long to train them: give a second one, or epochs")
    target = train.target.cpu()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    normalising = BatchLoader(train.subset(order[:_NORMALISING]), batch_size) if epochs is None else None
    models = [identification_model] if second is None else [identification_model, second]
    trainings = [
        _Training(
            model, BatchLoader(train, batch_size, shuffle=True, seed=seed + number), normalising, lr, weight_decay
        )
        for number, model in enumerate(models)
    ]
    if epochs is None:
        _train_to_agreement(trainings, train.subset(order[:SEEN]))
    else:
        for training in trainings:
            training.go_on(epochs)
    labels = tuple(trainings[0].predicted(data)[:, None] for data in (train, *others))
    suspected = labels[0][:, 0] != target
    count, share = int(suspected.sum()), float(suspected.double().mean())
    wrong = [suspected] if second is None else [suspected, trainings[1].predicted(train) != target]
    agreement = None if second is None else _agreement(*wrong)
    precision = recall = None
    if train.has_bias:
        bias = train.bias.cpu()
        num_classes = int(target.max()) + 1
        conflicting = (~is_aligned(target, bias, aligned_values(target, bias, num_classes))).any(1)
        hits = int((conflicting & suspected).sum())
        precision = hits / count if count else 0.0
        recall = hits / int(conflicting.sum()) if bool(conflicting.any()) else 0.0
    warnings = tuple(_warnings(wrong, labels[0], target, agreement))
    return PseudoLabels(labels, count, 1 - share, precision, recall, agreement, trainings[0].epochs, warnings)


class _Training:
    """A network in training, which can be stopped at any step.

    Attributes:
        model: the network; trained in place, in eval mode between the steps.
        normalising: samples whose statistics batch norms have in predictions; None for the running ones.
    """

    def __init__(
        self, model: nn.Module, loader: BatchLoader, normalising: BatchLoader | None, lr: float, weight_decay: float
    ) -> None:
        self.model, self._loader, self.normalising = model, loader, normalising
        self._optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
        self._batches = chain.from_iterable(repeat(loader))
        self._steps = 0

    @property
    def epochs(self) -> float:
        """Passes over the training data so far."""
        return self._steps / len(self._loader)

    def go_on(self, epochs: float) -> None:
        """Train until there were ``epochs`` passes over the training data in all, and one step at least."""
        steps = max(1, round(epochs * len(self._loader)))
        train_vanilla(self.model, islice(self._batches, steps - self._steps), self._optimizer, epochs=1)
        self._steps = steps

    def predicted(self, data: BiasedDataset) -> Tensor:
        """Predicted classes, shape (N,)."""
        model = self.model if self.normalising is None else reestimated(self.model, self.normalising)
        return predictions(model, BatchLoader(data, 256))[0]

    def state(self) -> tuple[int, dict[str, Tensor]]:
        """A copy of what :meth:`go_back` returns to."""
        return self._steps, {name: tensor.clone() for name, tensor in state_tensors(self.model).items()}

    def go_back(self, state: tuple[int, dict[str, Tensor]]) -> None:
        """Return to what the network was; it is not to be trained further."""
        self._steps, tensors = state
        self.model.load_state_dict(tensors, strict=False)


def _train_to_agreement(trainings: Sequence[_Training], seen: BiasedDataset) -> None:
    """Train two networks side by side to the moment at which their mistakes say most of what both learn first.

    That both misclassify the same samples is not enough, since two networks that have learned nothing yet do so too,
    and so do two that have learned a feature which tells little of the classes. Of the classes, a bias tells much.
    Networks without mistakes say nothing.

    Args:
        trainings: the two networks.
        seen: training samples whose classification is looked at.
    """
    best, later = float("-inf"), 0
    states: list[tuple[int, dict[str, Tensor]]] = []
    for epochs in _LOOKS:
        wrong = []
        for training in trainings:
            training.go_on(epochs)
            wrong.append(training.predicted(seen) != seen.target.cpu())
        has_mistakes = all(float(each.double().mean()) >= _FEW for each in wrong)
        score = _agreement(*wrong) * _above_chance(wrong, seen.target.cpu()) if has_mistakes else 0.0
        if score > best + _GAIN:
            best, states, later = score, [training.state() for training in trainings], 0
        else:
            later += 1
        if best >= _LEAST and later >= _PATIENCE:
            break
    for training, state in zip(trainings, states, strict=True):
        training.go_back(state)


def _agreement(wrong: Tensor, also: Tensor) -> float:
    """Share of the samples that are wrong by either of two networks that are so by both, for bools of shape (N,)."""
    either = int((wrong | also).sum())
    return int((wrong & also).sum()) / either if either else 1.0


def _above_chance(wrong: Sequence[Tensor], target: Tensor) -> float:
    """Mean accuracy of networks over the classes: 0 for guessing, 1 without mistakes, which are bools of shape (N,)."""
    classes = target.unique().tolist()
    missed = sum(float(each[target == y].double().mean()) for each in wrong for y in classes) / len(wrong)
    return 1 - missed / max(1, len(classes) - 1)


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


def _warnings(wrong: Sequence[Tensor], labels: Tensor, target: Tensor, agreement: float | None) -> list[str]:
    """Reasons why the pseudo bias labels may be useless, one sentence each.

    Args:
        wrong: which training samples the identification model misclassifies, and then the second one if there is one.
        labels: pseudo bias labels of the training set.
        target: its class labels, on the CPU.
        agreement: what both share; None if there is no second one.
    """
    share, classes = float(wrong[0].double().mean()), target.unique().tolist()
    found = []
    if share < _FEW:
        found.append(
            f"the identification model misclassifies {share:.2%} of the training samples: it separates nothing; "
            "train it for a shorter time"
        )
    missed, worst = max((float(wrong[0][target == y].double().mean()), y) for y in classes)
    if len(labels.unique()) == 1 or share > 1 - 1.5 / len(classes):
        found.append(
            f"the identification model has learned next to nothing ({1 - share:.1%} right): its errors say nothing of "
            "a bias; train it for longer"
        )
    elif missed > 0.5:
        found.append(
            f"the identification model misclassifies {missed:.0%} of the training samples of class {worst}: it has not "
            "learned to see that class at all; train it for longer"
        )
    if agreement is not None and agreement * (above := _above_chance(wrong, target)) < _LEAST:
        found.append(
            f"two identification models share {agreement:.0%} of the samples that either of them gets wrong, "
            f"with an accuracy {above:.0%} of the way from chance: what they learn first is no bias that tells most of "
            "the classes, so pseudo labels may be worth little; label some validation samples if you can"
        )
    return found
