"""Data sets held as arrays, and batches of them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import DataError
from .batch import Batch, Input, as_batch, input_map


@dataclass(frozen=True)
class BiasedDataset:
    """Samples with class and bias labels.

    Attributes:
        inputs: shape (N, ...); uint8 images are (N, C, H, W) and read as value / 255, then normalised; others are fed
            as they are. A mapping from names to tensors, such as a tokenizer's, goes to the network as keywords.
        target: class labels, shape (N,), int64.
        bias: bias labels, shape (N, K), int64; K = 0 where they are not known.
        mean: per channel, on the [0, 1] scale.
        std: per channel.
        origin: what each sample was made of, shape (N,), int64, where several samples show one thing and so are not
            independent (a scan in ten colours); None where each stands for itself.
    """

    inputs: Tensor | Mapping[str, Tensor]
    target: Tensor
    bias: Tensor
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    origin: Tensor | None = None

    def __post_init__(self) -> None:
        if isinstance(self.inputs, Tensor):
            sizes = {len(self.inputs)}
        else:
            sizes = {len(tensor) for tensor in self.inputs.values()}
        if not sizes == {len(self.target)} == {len(self.bias)} or self.bias.ndim != 2:
            raise DataError(
                f"{', '.join(map(str, sorted(sizes)))} inputs, {len(self.target)} targets and bias labels of shape "
                f"{tuple(self.bias.shape)} do not belong together"
            )

    @classmethod
    def collected(cls, source: Iterable[Any] | Dataset[Any]) -> BiasedDataset:
        """All samples of somebody's data set or loader in memory, so that what no mask changes is computed once.

        Args:
            source: a map-style ``Dataset`` whose samples have the fields ``input``, ``target`` and ``bias``, or any
                iterable of batches of them.

        Raises:
            DataError: a field is missing, or there is no sample.
        """
        batches = DataLoader(source, 256) if isinstance(source, Dataset) else source
        parts = [as_batch(raw) for raw in batches]
        if not parts:
            raise DataError("there is no sample to collect")
        first = parts[0].input
        inputs: Input
        if isinstance(first, Tensor):
            inputs = torch.cat([cast(Tensor, part.input) for part in parts])
        else:
            inputs = {name: torch.cat([cast(dict[str, Tensor], part.input)[name] for part in parts]) for name in first}
        return cls(inputs, torch.cat([part.target for part in parts]), torch.cat([part.bias for part in parts]))

    def __len__(self) -> int:
        return len(self.target)

    @property
    def has_bias(self) -> bool:
        """Whether bias labels are known."""
        return self.bias.shape[1] > 0

    @property
    def num_bytes(self) -> int:
        """Of all inputs."""
        tensors = [self.inputs] if isinstance(self.inputs, Tensor) else list(self.inputs.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def batch(self, rows: Tensor) -> Batch:
        """The samples ``rows`` (int64), ready for a network; texts are cut to the longest among them."""
        inputs = self._at(rows)
        if isinstance(inputs, dict):
            if "attention_mask" in inputs and len(rows):
                longest = max(1, int((inputs["attention_mask"] != 0).any(0).nonzero().amax()) + 1)
                inputs = {name: tensor[:, :longest] for name, tensor in inputs.items()}
        else:
            if inputs.dtype == torch.uint8:
                inputs = inputs.float() / 255
            if self.mean:
                shape = (1, -1) + (1,) * (inputs.ndim - 2)
                inputs = (inputs - inputs.new_tensor(self.mean).view(shape)) / inputs.new_tensor(self.std).view(shape)
        return Batch(inputs, self.target[rows], self.bias[rows])

    def example(self, size: int = 2) -> Input:
        """The first samples' input, at their full length, to trace and measure a network with."""
        rows = torch.arange(min(size, len(self)))
        inputs = self._at(rows)
        return self.batch(rows).input if isinstance(inputs, Tensor) else inputs

    def subset(self, rows: Tensor) -> BiasedDataset:
        """A data set of the samples ``rows``."""
        origin = None if self.origin is None else self.origin[rows]
        return replace(self, inputs=self._at(rows), target=self.target[rows], bias=self.bias[rows], origin=origin)

    def with_bias(self, bias: Tensor) -> BiasedDataset:
        """The same samples with other bias labels, shape (N, K)."""
        return replace(self, bias=bias)

    def to(self, device: torch.device | str) -> BiasedDataset:
        """The data set on another device."""
        inputs = input_map(self._inputs, lambda tensor: tensor.to(device))
        return replace(self, inputs=inputs, target=self.target.to(device), bias=self.bias.to(device))

    @property
    def _inputs(self) -> Input:
        return self.inputs if isinstance(self.inputs, Tensor) else dict(self.inputs)

    def _at(self, rows: Tensor) -> Input:
        return input_map(self._inputs, lambda tensor: tensor.index_select(0, rows.to(tensor.device)))


@dataclass
class BatchLoader:
    """Batches of a :class:`BiasedDataset`; shuffled anew, and reproducibly, on each pass.

    Attributes:
        data: the data set.
        batch_size: samples per batch; the last may have fewer, but a single one joins the batch before when shuffled.
        shuffle: whether to shuffle.
        seed: of the shuffling; pass n of equal seeds is equal.
        stratified: whether every batch gets its share of every subgroup, as evenly as whole samples allow.
        shard: (i, n) = of each batch the i-th of n parts, for n processes that share the work.
        workers: threads that gather and normalise the next batches meanwhile; 0 = none.
        pin_memory: whether they put them where a GPU can fetch them while it computes.
    """

    data: BiasedDataset
    batch_size: int
    shuffle: bool = False
    seed: int = 0
    stratified: bool = False
    shard: tuple[int, int] = (0, 1)
    workers: int = 0
    pin_memory: bool = False
    _pass: int = 0

    def set_epoch(self, number: int) -> None:
        """Make the next pass the one of this number."""
        self._pass = number

    def __len__(self) -> int:
        alone = self.shuffle and len(self.data) > 1 and len(self.data) % self.batch_size == 1 < self.batch_size
        return -(-len(self.data) // self.batch_size) - alone

    def rows(self) -> Iterator[Tensor]:
        """The samples of each batch of one pass, by number."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self._pass)
        self._pass += 1
        order = torch.arange(len(self.data))
        if self.shuffle:
            order = torch.randperm(len(self.data), generator=generator)
        if self.stratified:
            order = _evenly(order, torch.cat([self.data.target[:, None], self.data.bias], 1).cpu(), generator)
        index, count = self.shard
        parts = list(order.split(self.batch_size))
        if (
            self.shuffle and len(parts) > 1 and len(parts[-1]) == 1 < self.batch_size
        ):  # batch norms cannot train on one sample
            parts[-2:] = [torch.cat(parts[-2:])]
        for part in parts:
            yield part[index::count]

    def __iter__(self) -> Iterator[Batch]:
        return (batch for _, batch in self.prepared(self.rows()))

    def prepared(self, parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, Batch]]:
        """Each of some batches' sample numbers with the batch, which is made ahead of its turn."""
        if not self.workers:
            for rows in parts:
                yield rows, self._ready(rows)
            return
        waiting: deque[tuple[Tensor, Future[Batch]]] = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            for rows in parts:
                waiting.append((rows, pool.submit(self._ready, rows)))
                if len(waiting) > self.workers:
                    first, batch = waiting.popleft()
                    yield first, batch.result()
            for first, batch in waiting:
                yield first, batch.result()

    def _ready(self, rows: Tensor) -> Batch:
        batch = self.data.batch(rows)
        if not self.pin_memory:
            return batch
        pinned = input_map(batch.input, lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())
        return batch._replace(input=pinned)


def _evenly(order: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """``order`` rearranged so that the samples of each distinct row of ``labels`` come at equal distances."""
    _, cell, counts = labels[order].unique(dim=0, return_inverse=True, return_counts=True)
    start = torch.rand(len(counts), generator=generator, dtype=torch.float64)
    place = torch.empty(len(order), dtype=torch.float64)
    for index, count in enumerate(counts.tolist()):
        place[cell == index] = (torch.arange(count) + start[index]) / count
    return order[place.argsort(stable=True)]


@dataclass(frozen=True)
class DataSplits:
    """A data set's splits, and what is known of them.

    Attributes:
        train: the biased training set.
        val: to select masks on; None if there is none.
        test: to report on; None if there is none.
        classes: class names, if known.
        notes: what a reader of the results should know of the data.
        warnings: what calls the results into question.
        without_bias: whether the data have no place for bias labels, so that none were forgotten.
        bias_values: per bias the names of its values, if they have any; () for a bias whose values are numbers.
    """

    train: BiasedDataset
    val: BiasedDataset | None = None
    test: BiasedDataset | None = None
    classes: Sequence[str] = field(default=())
    notes: Sequence[str] = field(default=())
    warnings: Sequence[str] = field(default=())
    without_bias: bool = False
    bias_values: Sequence[Sequence[str]] = field(default=())

    @property
    def by_name(self) -> dict[str, BiasedDataset | None]:
        """The splits by their names."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def fingerprint(self) -> str:
        """A digest of all labels and of some inputs, to tell data sets apart."""
        digest = hashlib.sha256()
        for data in self.by_name.values():
            if data is None:
                digest.update(b"-")
                continue
            rows = torch.linspace(0, len(data) - 1, min(64, len(data))).long()
            inputs = data._at(rows)
            for tensor in (data.target, data.bias, *([inputs] if isinstance(inputs, Tensor) else inputs.values())):
                digest.update(repr(tuple(tensor.shape)).encode() + tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()
