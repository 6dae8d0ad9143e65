"""The training set of a search: its batches, and what is known of their labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..config import SearchConfig
from ..data.batch import Batch, Loader, as_batch
from ..data.loader import BatchLoader
from ..distributed import world
from ..errors import DataError
from ..metrics.subgroups import aligned_values, is_aligned
from .weights import SampleWeights, sample_weights

EXHAUSTED = "the training loader yields nothing on its second pass: give a loader, not an iterator"

# A batch: the numbers of its samples where the data set is at hand (a BatchLoader), otherwise the batch itself.
Part = Tensor | Batch


class Labels(NamedTuple):
    """Of N samples: y (N,), b (N, K), the weight r (N,), and which are bias-conflicting (N, K)."""

    target: Tensor
    bias: Tensor
    weight: Tensor
    conflicting: Tensor


@dataclass
class Position:
    """Where a search is in its training data.

    Attributes:
        passes: passes over the training set that have begun.
        batches: batches of the present epoch that are done.
    """

    passes: int = 0
    batches: int = 0


class TrainingData:
    """Batches of a loader; those of a ``BatchLoader`` are divided among the processes of ``torch.distributed``.

    Args:
        loader: the biased training set.

    Attributes:
        first: its first batch.

    Raises:
        DataError: the loader is empty.
    """

    def __init__(self, loader: Loader) -> None:
        rank, processes = world()
        if isinstance(loader, BatchLoader) and processes > 1:
            loader = dataclasses.replace(loader, shard=(rank, processes))
        first = next(iter(loader), None)
        if first is None:
            raise DataError("the training loader is empty")
        self.loader, self.first = loader, as_batch(first)

    @property
    def in_memory(self) -> BatchLoader | None:
        """The loader, if its samples can be had by their numbers and are the same on each pass."""
        return self.loader if isinstance(self.loader, BatchLoader) else None

    def next_pass(self, position: Position) -> Iterator[Part]:
        """The batches of the next pass."""
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
    """What the labels of a training set say: weights, alignment, and which samples conflict with their bias.

    Args:
        target: class labels of the whole set, shape (N,), on the CPU, in the data set's order where it is known.
        bias: bias labels, shape (N, K).
        num_classes: outputs of the network.
        config: ``weighting`` and ``rho``.
        aligned: the bias value each class is aligned with, shape (classes, K); None = by association.
        device: where batches are needed.
        dtype: precision of the weights.
        in_order: whether the order of the samples is known.

    Attributes:
        aligned: as given or found, on the device.
        num_conflicting: bias-conflicting samples per bias.
        num_bias_classes: |B_k| per bias.
        digest: what tells this label set from another one.

    Raises:
        DataError: no bias labels, no conflicting sample, or labels that do not fit the network.
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
        in_order: bool,
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
        self.digest: list[Any] = [digest(torch.cat([target[:, None], bias], 1), in_order), found.tolist()]
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
        """A batch's labels on the device."""
        if isinstance(part, Tensor):
            rows = part.to(self.device)
            return Labels(*(tensor.index_select(0, rows) for tensor in self.known))
        return self._judged(part.target.to(self.device), part.bias.to(self.device))

    def _judged(self, target: Tensor, bias: Tensor) -> Labels:
        return Labels(target, bias, self.weights(target, bias), ~is_aligned(target, bias, self.aligned))


def digest(labels: Tensor, in_order: bool) -> list[Any]:
    """What tells label sets (N, columns) apart: a sum that knows the order, or the counts of distinct rows."""
    if in_order:
        return [len(labels), (torch.arange(1, len(labels) + 1) @ labels.cpu()).tolist()]
    rows, counts = labels.unique(dim=0, return_counts=True)
    return [rows.tolist(), counts.tolist()]
