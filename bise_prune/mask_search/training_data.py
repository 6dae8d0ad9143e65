"""The training set of a search: its batches, its labels, and which samples are bias-conflicting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..config import SearchConfig
from ..data.batch import Batch, Loader, as_batch
from ..data.loader import BatchLoader, sharded
from ..errors import DataError
from ..metrics.subgroups import aligned_values, is_aligned
from .weights import SampleWeights, sample_weights

EXHAUSTED = "the training loader yields nothing on its second pass: give a loader, not an iterator"

# A batch: the numbers of its samples if the loader is a BatchLoader, otherwise the batch itself.
Part = Tensor | Batch


class Labels(NamedTuple):
    """Labels of N samples: class y (N,), bias b (N, K), weight r (N,), and which are bias-conflicting (N, K)."""

    target: Tensor
    bias: Tensor
    weight: Tensor
    conflicting: Tensor


@dataclass
class Position:
    """How far a search has come in its training data.

    Attributes:
        passes: number of passes over the training set that have begun.
        batches: number of finished batches in the present epoch.
    """

    passes: int = 0
    batches: int = 0


class TrainingData:
    """Batches of the training set; the processes of ``torch.distributed`` divide those of a ``BatchLoader``.

    Args:
        loader: loader of the biased training set.

    Attributes:
        loader: the loader, restricted to this process's part.
        first: first batch of the loader.

    Raises:
        DataError: the loader is empty.
    """

    def __init__(self, loader: Loader) -> None:
        loader = sharded(loader)
        first = next(iter(loader), None)
        if first is None:
            raise DataError("the training loader is empty")
        self.loader, self.first = loader, as_batch(first)

    @property
    def in_memory(self) -> BatchLoader | None:
        """The loader if it is a ``BatchLoader``, whose samples are accessible by number and equal on each pass."""
        return self.loader if isinstance(self.loader, BatchLoader) else None

    def next_pass(self, position: Position) -> Iterator[Part]:
        """Start the next pass over the training set and yield its batches."""
        set_epoch = getattr(self.loader, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(position.passes)
        position.passes += 1
        if self.in_memory is not None:
            yield from self.in_memory.rows()
        else:
            yield from map(as_batch, self.loader)

    def batch(self, part: Part) -> Batch:
        """The samples of a batch."""
        return cast(BatchLoader, self.loader).data.batch(part) if isinstance(part, Tensor) else part


class TrainingLabels:
    """The labels of the training set, checked, and what follows from them: sample weights and bias-conflicting samples.

    Args:
        target: class labels of the whole set, shape (N,), on the CPU, in the data set's order if it is known.
        bias: bias labels, shape (N, K).
        num_classes: number of outputs of the network.
        config: settings of the search; ``weighting`` and ``rho`` are used here.
        aligned: bias value that each class is aligned with, shape (classes, K); None for the one most associated with
            it.
        device: device on which the labels of a batch are needed.
        dtype: precision of the weights.

    Attributes:
        aligned: bias value that each class is aligned with, shape (classes, K), on the device.
        num_conflicting: number of bias-conflicting samples per bias.
        num_bias_classes: number of bias classes |B_k| per bias.
        weights: sample weights as a function of the labels.
        known: labels of the whole set, in the order in which they were given.

    Raises:
        ConfigError: ``weighting`` or ``rho`` does not fit the number of biases.
        DataError: there are no bias labels, no bias-conflicting sample, or labels that do not fit the network.
    """

    def __init__(
        self,
        target: Tensor,
        bias: Tensor,
        num_classes: int,
        config: SearchConfig,
        aligned: Tensor | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if not bias.shape[1]:
            raise DataError("the training data have no bias labels: give some, or find pseudo labels for them first")
        if int(target.max()) >= num_classes or min(int(target.min()), int(bias.min())) < 0:
            raise DataError(
                f"labels run from {int(target.min())} to {int(target.max())}, but the model has {num_classes} classes; "
                "labels must lie in [0, classes)"
            )
        found = aligned_values(target, bias, num_classes) if aligned is None else aligned.cpu()
        self.num_conflicting: tuple[int, ...] = tuple((~is_aligned(target, bias, found)).sum(0).tolist())
        if not min(self.num_conflicting):
            raise DataError(
                f"no bias-conflicting sample among {len(target)} for bias {self.num_conflicting.index(0)}: "
                "the label and the bias cannot be told apart, so there is nothing to learn masks from"
            )
        weights = sample_weights(target, bias, num_classes, found, config.weighting, config.rho)
        self.weights: SampleWeights = weights.to(device, dtype)
        self.aligned, self.device = found.to(device), device
        self.num_bias_classes = [max(2, int(column.max()) + 1) for column in bias.unbind(1)]
        self.known = self._judged(target.to(device), bias.to(device))

    def of(self, part: Part) -> Labels:
        """Labels and weights of a batch, on the device."""
        if isinstance(part, Tensor):
            rows = part.to(self.device)
            return Labels(*(tensor.index_select(0, rows) for tensor in self.known))
        return self._judged(part.target.to(self.device), part.bias.to(self.device))

    def _judged(self, target: Tensor, bias: Tensor) -> Labels:
        """The labels with their weights, and which samples are bias-conflicting."""
        return Labels(target, bias, self.weights(target, bias), ~is_aligned(target, bias, self.aligned))
