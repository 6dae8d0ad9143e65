"""A cache of the activations before the first gate: no mask changes them, so each sample's are computed only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...data.batch import Input, input_length, input_map
from ...data.loader import BatchLoader
from ...gates.masks import GateSite
from ...tracing import Call, CallCounter, FunctionMode, Trace, logits_of, replace_tensors, run, tensors_in

_LEAST_SHARE = 0.05  # least share of the multiply-accumulates for which a cache pays off


class CachedPrefix:
    """Cached results of the calls of a forward pass that no gate affects.

    Args:
        outputs: for each such call that the rest of the network reads, its output tensors over the whole data set.
        skipped: for every other such call, tensors without data that have the shapes of its output for the first batch.
        batch_size: number of samples in the first batch.
        example: an input, of which only the structure is used.
    """

    def __init__(
        self, outputs: Mapping[Key, _Stored], skipped: Mapping[Key, Any], batch_size: int, example: Input
    ) -> None:
        self.outputs, self.skipped, self.batch_size, self.example = outputs, skipped, batch_size, example

    def placeholder(self, size: int) -> Input:
        """An input of ``size`` samples that holds no data."""
        return input_map(self.example, lambda tensor: tensor.new_empty((size, *tensor.shape[1:]), device="meta"))

    def replaying(self, rows: Tensor) -> FunctionMode:
        """The function mode under which a forward pass over the samples ``rows`` uses the cache."""
        return _Replay(self, rows)


Key = tuple[str, int]


@dataclass
class _Stored:
    """A call's output: its structure, and tensors of shape (N, ...) to put at the places in it."""

    structure: Any
    tensors: list[Tensor]


@dataclass(frozen=True)
class _Place:
    """The place of a tensor within a call's output."""

    position: int


def cached_prefix(
    model: nn.Module, trace: Trace, sites: list[GateSite], loader: BatchLoader, device: torch.device, limit: int
) -> CachedPrefix | None:
    """Build the cache for a network and a data set; None if it would not pay off, not fit, or not give the same logits.

    Args:
        model: the network without gates, in eval mode.
        trace: trace of one of its forward passes.
        sites: gate sites of the network.
        loader: loader whose data set is cached; each sample's input must be the same on every pass.
        device: device of the network.
        limit: most memory that the cache may take, in bytes.
    """
    keys, frontier = _unreached(trace, sites)
    total = sum(call.macs for call in trace.calls)
    saved = sum(call.macs for call in trace.calls if call.key in keys)
    if saved < _LEAST_SHARE * max(total, 1):
        return None
    data, size = loader.data, loader.batch_size
    first = data.batch(torch.arange(min(size, len(data)))).to(device).input
    if not isinstance(first, Tensor) or trace.as_exported:  # texts differ in length from batch to batch
        return None
    with torch.no_grad(), _Record(keys) as record:
        expected = logits_of(run(model, first))
    count = input_length(first)
    stored: dict[Key, _Stored] = {}
    for key in frontier:
        tensors = list(tensors_in([record.outputs[key]]))
        if not tensors or any(len(tensor) != count for tensor in tensors):
            return None
        places = map(_Place, range(len(tensors)))
        structure = replace_tensors(record.outputs[key], partial(_next_of, places))
        stored[key] = _Stored(structure, tensors)
    per_sample = sum(tensor[0].numel() * tensor.element_size() for part in stored.values() for tensor in part.tensors)
    if per_sample * len(data) > limit:
        return None
    skipped = {
        key: replace_tensors(output, lambda tensor: tensor.to("meta")) for key, output in record.outputs.items()
        if key not in stored
    }  # fmt: skip
    for part in stored.values():
        part.tensors = [tensor.new_empty((len(data), *tensor.shape[1:])) for tensor in part.tensors]
    for rows in torch.arange(len(data)).split(size):
        with torch.no_grad(), _Record(frontier) as record:
            run(model, data.batch(rows).to(device).input)
        for key, part in stored.items():
            for whole, tensor in zip(part.tensors, tensors_in([record.outputs[key]]), strict=True):
                whole[rows] = tensor
    cache = CachedPrefix(stored, skipped, count, first)
    return cache if _agrees(cache, model, expected) else None


def _next_of(places: Iterator[_Place], _: Tensor) -> _Place:
    """The next place, whatever the tensor."""
    return next(places)


def _unreached(trace: Trace, sites: list[GateSite]) -> tuple[set[Key], set[Key]]:
    """Keys of the calls that no gate affects, and of those among them whose output the rest of the network reads."""
    gated_calls = {trace.call_of[call.key].index for site in sites for call in site.calls}
    reached: set[int] = set()
    keys, frontier = set(), set()

    def read(call: Call) -> None:
        """Add the calls that produce this call's operands and are not affected by a gate."""
        for operand in call.operands:
            source = None if operand is None or operand in reached else trace.values[operand].call
            if source is not None:
                frontier.add(trace.calls[source].key)

    for call in trace.calls:
        inside = call.function == "layer_norm" and call.index in gated_calls
        if inside or any(operand in reached for operand in call.operands):
            reached.update(call.outputs)
            read(call)
            continue
        keys.add(call.key)
        if call.index in gated_calls:
            frontier.add(call.key)
            reached.update(call.outputs)
    return keys, frontier


def _agrees(cache: CachedPrefix, model: nn.Module, expected: Tensor) -> bool:
    """Whether a forward pass with the cache gives the expected logits on the first batch."""
    rows = torch.arange(cache.batch_size)
    try:
        with torch.no_grad(), cache.replaying(rows):
            found = logits_of(run(model, cache.placeholder(len(rows))))
    except (AttributeError, LookupError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False  # the network reads values that a tensor without data does not have
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


class _Record(CallCounter):
    """While active, keeps the outputs of the calls with these keys."""

    def __init__(self, keys: set[Key]) -> None:
        super().__init__()
        self.keys = keys
        self.outputs: dict[Key, Any] = {}

    def called(
        self, key: Key, counted: bool, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        output = self.passed_on(func, args, kwargs)
        if counted and key in self.keys:
            self.outputs[key] = output
        return output


class _Replay(CallCounter):
    """While active, returns cached outputs or tensors without data instead of calling the cached functions."""

    def __init__(self, cache: CachedPrefix, rows: Tensor) -> None:
        super().__init__()
        self.cache, self.rows = cache, rows

    def called(
        self, key: Key, counted: bool, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if counted and key in self.cache.outputs:
            stored = self.cache.outputs[key]
            rows = self.rows.to(stored.tensors[0].device)
            return replace_tensors(
                stored.structure, lambda place: stored.tensors[place.position].index_select(0, rows), _Place
            )
        if counted and key in self.cache.skipped:
            return replace_tensors(self.cache.skipped[key], self._resized)
        return self.passed_on(func, args, kwargs)

    def _resized(self, tensor: Tensor) -> Tensor:
        """The tensor without data, for as many samples as are asked for."""
        if tensor.ndim and len(tensor) == self.cache.batch_size:
            return tensor.new_empty((len(self.rows), *tensor.shape[1:]))
        return tensor
