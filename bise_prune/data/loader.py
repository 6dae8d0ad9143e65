"""Data sets held as arrays, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import DataError
from .batch import Batch


@dataclass(frozen=True)
class BiasedDataset:
    """Images (uint8, or floats fed as they are) with class and bias labels.

    Attributes:
        inputs: shape (N, ...); uint8 images are (N, C, H, W) and read as value / 255, then normalised.
        target: class labels, shape (N,), int64.
        bias: bias labels, shape (N, K), int64.
        mean: per channel, on the [0, 1] scale.
        std: per channel.
    """

    inputs: Tensor
    target: Tensor
    bias: Tensor
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.inputs) == len(self.target) == len(self.bias) or self.bias.ndim != 2:
            raise DataError(
                f"{len(self.inputs)} inputs, {len(self.target)} targets and bias labels of shape "
                f"{tuple(self.bias.shape)} do not belong together"
            )

    def __len__(self) -> int:
        return len(self.inputs)

    def batch(self, rows: Tensor) -> Batch:
        """The samples ``rows`` (int64), ready for a network."""
        inputs = self.inputs[rows]
        if inputs.dtype == torch.uint8:
            inputs = inputs.float() / 255
        if self.mean:
            shape = (1, -1) + (1,) * (inputs.ndim - 2)
            inputs = (inputs - torch.tensor(self.mean).view(shape)) / torch.tensor(self.std).view(shape)
        return Batch(inputs, self.target[rows], self.bias[rows])

    def subset(self, rows: Tensor) -> BiasedDataset:
        """A data set of the samples ``rows``."""
        return BiasedDataset(self.inputs[rows], self.target[rows], self.bias[rows], self.mean, self.std)


@dataclass
class BatchLoader:
    """Batches of a :class:`BiasedDataset`; shuffled anew, and reproducibly, on each pass.

    Attributes:
        data: the data set.
        batch_size: samples per batch; the last may have fewer.
        shuffle: whether to shuffle.
        seed: of the shuffling; pass n of equal seeds is equal.
    """

    data: BiasedDataset
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    _pass: int = 0

    def set_epoch(self, number: int) -> None:
        """Make the next pass the one of this number."""
        self._pass = number

    def __len__(self) -> int:
        return -(-len(self.data) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        rows = torch.arange(len(self.data))
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._pass)
            rows = torch.randperm(len(self.data), generator=generator)
        self._pass += 1
        for part in rows.split(self.batch_size):
            yield self.data.batch(part)


@dataclass(frozen=True)
class DataSplits:
    """A data set's splits, and what is known of them.

    Attributes:
        train: the biased training set.
        val: to select masks on; None if there is none.
        test: to report on; None if there is none.
        classes: class names, if known.
        notes: what a reader of the results should know of the data.
    """

    train: BiasedDataset
    val: BiasedDataset | None = None
    test: BiasedDataset | None = None
    classes: Sequence[str] = field(default=())
    notes: Sequence[str] = field(default=())
