"""Data sets that are held as tensors in memory, their splits, and a loader that makes batches of them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..digests import tensors_digest
from ..distributed import world
from ..errors import DataError, printable
from .batch import Batch, Input, Loader, as_batch, input_map

_LONGEST_NAME, _LONGEST_NOTE = 200, 2_000  # characters of the name of a class or bias value, and of a note


@dataclass(frozen=True)
class BiasedDataset:
    """N samples with class and bias labels.

    Attributes:
        inputs: model inputs, shape (N, ...). Images of dtype uint8, shape (N, C, H, W), are divided by 255 and
            normalised; other tensors are given to the network unchanged. A mapping from names to tensors, such as a
            tokenizer's, is passed to the network as keyword arguments.
        target: class labels, shape (N,), int64.
        bias: bias labels, shape (N, K), int64; K = 0 if they are not known.
        mean: mean per channel on the [0, 1] scale, for normalisation; () = no normalisation.
        std: standard deviation per channel on the [0, 1] scale.
        origin: number of the object that each sample was made from, shape (N,), int64, if several samples show the same
            object and are therefore not independent (such as a scan in ten colours); None = all samples are
            independent.
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
        """Load all samples of a data set or loader into memory, so that the search can cache what no mask changes.

        Args:
            source: a map-style ``Dataset``, or a list, of samples with the fields ``input``, ``target`` and ``bias``,
                or any iterable of batches of such samples.

        Raises:
            DataError: a field is missing, or there is no sample.
        """
        batches: Iterable[Any]
        if isinstance(source, Dataset) or (isinstance(source, Sequence) and source and _is_sample(source[0])):
            batches = DataLoader(cast("Dataset[Any]", source), 256)
        else:
            batches = source
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
        """Size of all inputs in bytes."""
        tensors = [self.inputs] if isinstance(self.inputs, Tensor) else list(self.inputs.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the inputs, their normalisation, and the labels, in their order; computed once."""
        named = {"input": self.inputs} if isinstance(self.inputs, Tensor) else self.inputs
        scale = torch.tensor([*self.mean, *self.std], dtype=torch.float64)
        return tensors_digest({**named, "target": self.target, "bias": self.bias, "mean and std": scale})

    def batch(self, rows: Tensor) -> Batch:
        """Make the batch of some samples: normalised images, or texts cut to the length of the longest of them.

        Args:
            rows: indices of the samples, shape (n,), int64.
        """
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
        """Input of the first samples, for tracing and measuring a network; texts keep their full padded length."""
        rows = torch.arange(min(size, len(self)))
        inputs = self._at(rows)
        return self.batch(rows).input if isinstance(inputs, Tensor) else inputs

    def subset(self, rows: Tensor) -> BiasedDataset:
        """Make a data set of the samples with the indices ``rows``, int64."""
        origin = None if self.origin is None else self.origin[rows]
        return replace(self, inputs=self._at(rows), target=self.target[rows], bias=self.bias[rows], origin=origin)

    def with_bias(self, bias: Tensor) -> BiasedDataset:
        """Make a data set of the same samples with other bias labels, shape (N, K)."""
        return replace(self, bias=bias)

    def to(self, device: torch.device | str) -> BiasedDataset:
        """Copy the data set to a device."""
        inputs = input_map(self._inputs, lambda tensor: tensor.to(device))
        return replace(self, inputs=inputs, target=self.target.to(device), bias=self.bias.to(device))

    @property
    def _inputs(self) -> Input:
        """The inputs, as a dict if they are a mapping."""
        return self.inputs if isinstance(self.inputs, Tensor) else dict(self.inputs)

    def _at(self, rows: Tensor) -> Input:
        """The inputs of some samples, as they are stored."""
        return input_map(self._inputs, lambda tensor: tensor.index_select(0, rows.to(tensor.device)))


def _printable(texts: Sequence[str], most: int) -> Sequence[str]:
    """Texts as :func:`bise_prune.errors.printable` shows them, in a sequence of the same type."""
    shown = [printable(text, most) for text in texts]
    return tuple(shown) if isinstance(texts, tuple) else shown


def _is_sample(item: Any) -> bool:
    """Whether an item is a single sample and no batch."""
    target = item.get("target") if isinstance(item, Mapping) else getattr(item, "target", None)
    return isinstance(target, int) or (isinstance(target, Tensor) and target.ndim == 0)


@dataclass
class BatchLoader:
    """Loader of the batches of a :class:`BiasedDataset`; each pass has a new, reproducible order if it is shuffled.

    Attributes:
        data: the data set.
        batch_size: samples per batch. The last batch may have fewer; when shuffled, a last batch of one sample is
            joined with the batch before it.
        shuffle: whether to shuffle the samples.
        seed: random seed of the shuffling; pass n has the same order for equal seeds.
        stratified: whether every batch gets its share of every subgroup, as evenly as whole samples allow.
        shard: (i, n): yield the i-th of n parts of each batch, for n processes that share the work.
        workers: threads that prepare the next batches ahead of their use; 0 = none.
        pin_memory: whether inputs are copied to pinned memory, from which a GPU can load them while it computes.
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
        """Set the number of the next pass, which determines its order."""
        self._pass = number

    def __len__(self) -> int:
        alone = self.shuffle and len(self.data) > 1 and len(self.data) % self.batch_size == 1 < self.batch_size
        return -(-len(self.data) // self.batch_size) - alone

    def rows(self) -> Iterator[Tensor]:
        """Yield the sample indices of each batch of one pass, int64."""
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
        ):  # batch norms cannot be trained on one sample
            parts[-2:] = [torch.cat(parts[-2:])]
        for part in parts:
            yield part[index::count]

    def __iter__(self) -> Iterator[Batch]:
        return (batch for _, batch in self.prepared(self.rows()))

    def prepared(self, parts: Iterable[Tensor]) -> Iterator[tuple[Tensor, Batch]]:
        """Yield sample indices together with their batch; worker threads prepare batches ahead of their use.

        Args:
            parts: the sample indices of each batch.
        """
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
        """The batch of some samples, in pinned memory if that is wanted."""
        batch = self.data.batch(rows)
        if not self.pin_memory:
            return batch
        pinned = input_map(batch.input, lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())
        return batch._replace(input=pinned)


def sharded(loader: Loader) -> Loader:
    """The part of a loader's batches that this process of ``torch.distributed`` gets.

    A :class:`BatchLoader` is divided among the processes batch by batch; other loaders must yield each process its part
    themselves, and are returned as they are.
    """
    rank, processes = world()
    return replace(loader, shard=(rank, processes)) if isinstance(loader, BatchLoader) and processes > 1 else loader


def _evenly(order: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Rearrange ``order`` so that the samples of each distinct row of ``labels`` have equal distances."""
    _, cell, counts = labels[order].unique(dim=0, return_inverse=True, return_counts=True)
    start = torch.rand(len(counts), generator=generator, dtype=torch.float64)
    place = torch.empty(len(order), dtype=torch.float64)
    for index, count in enumerate(counts.tolist()):
        place[cell == index] = (torch.arange(count) + start[index]) / count
    return order[place.argsort(stable=True)]


@dataclass(frozen=True)
class DataSplits:
    """The splits of a data set, and information about them.

    Attributes:
        train: the biased training split.
        val: validation split, on which masks are selected; None if there is none.
        test: test split, on which results are reported; None if there is none.
        classes: class names, if known.
        notes: facts about the data for the report.
        warnings: reasons to doubt the results.
        without_bias: whether the data format cannot hold bias labels, so that none were forgotten.
        bias_values: per bias the names of its values; () for a bias whose values are numbers.
        bias_names: names of the biases, such as "colour"; () if they have none.
    """

    train: BiasedDataset
    val: BiasedDataset | None = None
    test: BiasedDataset | None = None
    classes: Sequence[str] = field(default=())
    notes: Sequence[str] = field(default=())
    warnings: Sequence[str] = field(default=())
    without_bias: bool = False
    bias_values: Sequence[Sequence[str]] = field(default=())
    bias_names: Sequence[str] = field(default=())

    def __post_init__(self) -> None:  # names come from users' files, and go to terminals, pages and servers
        names = {"classes": self.classes, "bias_names": self.bias_names, "notes": self.notes, "warnings": self.warnings}
        for name, texts in names.items():
            most = _LONGEST_NAME if name in ("classes", "bias_names") else _LONGEST_NOTE
            object.__setattr__(self, name, _printable(texts, most))
        values = [_printable(texts, _LONGEST_NAME) for texts in self.bias_values]
        object.__setattr__(self, "bias_values", tuple(values) if isinstance(self.bias_values, tuple) else values)

    def bias_name(self, bias: int) -> str:
        """Name of a bias, or its number if it has none."""
        return self.bias_names[bias] if bias < len(self.bias_names) else f"bias {bias}"

    def bias_value(self, bias: int, value: int) -> str:
        """Name of a value of a bias, or its number if it has none."""
        names = self.bias_values[bias] if bias < len(self.bias_values) else ()
        return names[value] if value < len(names) else f"b = {value}"

    @property
    def by_name(self) -> dict[str, BiasedDataset | None]:
        """The splits by the names "train", "val" and "test"; None for one that is missing."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the inputs, their normalisation, and the labels of all splits."""
        parts = [f"{name} {data.fingerprint}" for name, data in self.by_name.items() if data is not None]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()
