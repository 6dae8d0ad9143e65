"""Attention in a trace: which channels of which layers its queries, keys and values are, head by head.

Attention is found by its product, ``scaled_dot_product_attention`` or a softmax between two matrix products. From there
the calls that only move data are followed back to the tensors of one channel dimension that were split into heads, and
forwards to the tensor in which the heads lie side by side again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from .functions import Slot, replace_tensors, slot_filled, tensors_in
from .record import Attention, Call, Side, Trace, Value

# Functions between the first product of attention and its softmax, or behind that, which work on the scores of each
# head alone; their other operands may be masks or biases of positions.
_ON_SCORES = {"add", "sub", "mul", "div", "masked_fill", "where", "to", "float", "double", "half", "type", "type_as",
              "dropout", "tanh", "clamp", "contiguous"}  # fmt: skip
# Functions that move data whose arguments contain no sizes, so that they work on any number of heads and channels.
SIZE_FREE = {"transpose", "permute", "swapaxes", "swapdims", "movedim", "moveaxis", "contiguous", "clone", "detach"}
_LONGEST = 24  # calls between split queries or keys and attention
_SCALINGS = {"mul", "div", "dropout", "to", "float", "double", "half", "type"}


def attentions_in(trace: Trace) -> list[Attention]:
    """Find the attentions whose values and results can be followed, in order of execution."""
    useful = trace.useful
    found = [_attention(trace, *core, useful) for core in _cores(trace)]
    return [attention for attention in found if attention is not None]


def _cores(trace: Trace) -> Iterator[tuple[tuple[Call, ...], list[Call], tuple[int, int, int]]]:
    """Yield the products of each attention, the calls on scores between them, and queries, keys and values."""
    for call in trace.calls:
        if call.function == "scaled_dot_product_attention":
            q, k, v = (*call.operands, None, None, None)[:3]
            if q is not None and k is not None and v is not None:
                yield (call,), [], (q, k, v)
        elif call.function == "softmax" and call.argument(1, "dim") in (-1, len(call.shapes[0]) - 1):
            before, first = _scores(trace, call)
            after, second = _shares(trace, call)
            if first is None or second is None or len(first.operands) != 2 or len(second.operands) != 2:
                continue
            (q, k), (_, v) = first.operands, second.operands
            if q is not None and k is not None and v is not None:
                yield (first, second), [*before, call, *after], (q, k, v)


def _scores(trace: Trace, softmax: Call) -> tuple[list[Call], Call | None]:
    """The calls between the product of queries and keys and a softmax, and that product."""
    passed: list[Call] = []
    call = softmax
    while True:
        shape = trace.values[call.outputs[0]].shape
        if _regroups(call, trace):
            shape = trace.values[call.operands[0] or 0].shape
        same = [o for o in call.operands if o is not None and trace.values[o].shape == shape]
        source = trace.values[same[0]].call if same else None
        if source is None:
            return passed, None
        call = trace.calls[source]
        if call.function in ("matmul", "bmm"):
            return passed, call
        if not _works_on_scores(call, trace):
            return passed, None
        passed.insert(0, call)


def _shares(trace: Trace, softmax: Call) -> tuple[list[Call], Call | None]:
    """The calls between a softmax and the product with the values, and that product."""
    passed: list[Call] = []
    call = softmax
    while True:
        readers = [trace.calls[reader] for reader in trace.values[call.outputs[0]].readers]
        products = [reader for reader in readers if reader.function in ("matmul", "bmm")]
        if products and products[0].operands[0] == call.outputs[0]:
            return passed, products[0]
        onward = [reader for reader in readers if _works_on_scores(reader, trace)]
        if not onward:
            return passed, None
        call = onward[0]
        passed.append(call)


def _works_on_scores(call: Call, trace: Trace) -> bool:
    """Whether a call works on the scores of each head alone."""
    return (call.function in _ON_SCORES and len(call.outputs) == 1) or _regroups(call, trace)


def _regroups(call: Call, trace: Trace) -> bool:
    """Whether a call sees samples as windows of images or the reverse, beside heads and scores; it names all heads."""
    if call.function not in ("view", "reshape", "unflatten", "flatten") or call.operands[:1] in ((), (None,)):
        return False
    before, after = (trace.values[value].shape for value in (call.operands[0] or 0, call.outputs[0]))
    return len(before) != len(after) and min(len(before), len(after)) > 3 and before[-3:] == after[-3:]


def _attention(
    trace: Trace, products: tuple[Call, ...], on_scores: list[Call], parts: tuple[int, int, int], useful: set[int]
) -> Attention | None:
    """Return what is known of one attention; None if its values or results are not followed."""
    (queries, before_queries), (keys, before_keys) = (
        _split_before(trace, part, trace.values[parts[0]].shape[-1]) for part in parts[:2]
    )
    values = _split(trace, parts[2])
    results = _merged(trace, products[-1].outputs[0], useful)
    heads = 1 if results is None else len(results.channels)
    queries, keys, values = (_for_all(side, heads) for side in (queries, keys, values))
    if values is None or results is None or values.channels.shape != results.channels.shape:
        return None
    if queries is None or keys is None or not queries.channels.shape == keys.channels.shape == (
        heads, queries.channels.shape[1]
    ):  # fmt: skip
        queries = keys = None
        before_queries = before_keys = []
    head_by_head = [*before_queries, *before_keys]
    sides = [side for side in (queries, keys, values, results) if side is not None]
    if any(one.last in other.path for one in sides for other in sides if one is not other):
        return None
    inner = {call.index for call in (*products, *on_scores, *head_by_head)} | {
        index for side in sides for index, _ in (*side.path, *side.repeats)
    }
    ends = {side.whole for side in sides}
    for index in inner:
        for output in trace.calls[index].outputs:
            outside = {reader for reader in trace.values[output].readers if reader in useful} - inner
            if (outside or output in trace.outputs) and output not in ends:
                return None
    known = {output for index in inner for output in trace.calls[index].outputs} | ends
    beside, external = {}, set[int]()
    if queries is None:
        external |= set(parts[:2])
    dim = len(trace.values[products[-1].outputs[0]].shape) - 3  # that of the heads
    for call in (*products, *on_scores):
        ndim = len(trace.values[call.outputs[0]].shape)
        for k, operand in enumerate(call.operands):
            if operand in known or (operand in parts[:2] and queries is None):
                continue
            if operand is not None:
                external.add(operand)
            place = dim - ndim + len(call.shapes[k])
            if place >= 0 and call.shapes[k][place] == heads > 1:
                beside[call.index, k] = place
    for call in head_by_head:
        external |= {operand for operand in call.operands if operand is not None} - known
    return Attention(
        tuple(call.index for call in products), frozenset(inner), queries, keys, values, results,
        trace.values[parts[0]].shape[-1], not head_by_head, beside, frozenset(external),
        any(_regroups(call, trace) for call in on_scores),
    )  # fmt: skip


def _for_all(side: Side | None, heads: int) -> Side | None:
    """The same side for several heads, if it has one that all of them share."""
    if side is None or len(side.channels) != 1:
        return side
    return replace(side, channels=side.channels.expand(heads, -1))


def _split(trace: Trace, part: int) -> Side | None:
    """Follow queries, keys or values back to the tensor that was split into heads, which may be repeated then."""
    start, tail = part, list[tuple[int, int]]()
    while (number := trace.values[start].call) is not None and _is_free(call := trace.calls[number]):
        tail.insert(0, (number, 0))
        start = call.operands[0] or 0
    before, repeats, shares = _unrepeated(trace, start)
    if shares is None or (side := _split_once(trace, before)) is None:
        return _split_once(trace, part)
    return replace(side, channels=side.channels[shares], repeats=repeats, path=(*side.path, *tail))


def _is_free(call: Call) -> bool:
    """Whether a call moves a tensor in a way in which no size is written."""
    return call.kind == "movement" and call.function in SIZE_FREE and len(call.operands) == len(call.outputs) == 1


def _split_once(trace: Trace, part: int) -> Side | None:
    """Follow queries, keys or values back to the tensor that was split into heads."""
    mapping, path, index = torch.arange(trace.values[part].num_channels), list[tuple[Call, int]](), part
    while True:
        value = trace.values[index]
        call = None if value.call is None else trace.calls[value.call]
        if call is None or not _passes(call, value, trace.values[part]):
            break
        (k,) = {k for k, o in call.maps if call.outputs[o] == index}
        o = call.outputs.index(index)
        mapping = call.maps[k, o][mapping]
        path.insert(0, (call, o))
        operand = call.operands[k]
        if operand is None or bool((mapping < 0).any()):
            return None
        index = operand
    while path and len(trace.values[index].shape) != len(trace.values[part].shape) - 1:
        (call, o), *path = path  # tokens of a batch may have been rows of a matrix, as in GPT-2
        index = call.outputs[o]
    if trace.values[index].dim is None:
        return None
    probe, channels = _random(trace.values[index].shape), torch.arange(trace.values[index].num_channels)
    for place, (call, o) in enumerate(path):
        (k,) = {k for k, output in call.maps if output == o}
        channels, made = channels[call.maps[k, o]], call.outputs[o]
        later = [(c, p) for c, p in path[place + 1 :] if c.kind == "movement"]
        if call.kind != "movement" or not all(_is_free(c) or _copies(c, p, trace) for c, p in later):
            continue
        if later and 1 in trace.values[made].shape[1:3]:
            continue  # with a single head, or a single token, which dimension is which is seen at the end only
        moved = _moved(probe, path[: place + 1], index, made, trace)
        sides = _sides(trace, made, index, path[: place + 1], channels)
        found = next((side for side in sides if _agree(moved, split(probe, side, trace))), None)
        if found is not None:
            return replace(found, path=tuple((c.index, p) for c, p in path))
    return None


def _split_before(trace: Trace, part: int, width: int) -> tuple[Side | None, list[Call]]:
    """Follow queries or keys back, also through calls that work on each head alone, such as norms and rotary positions.

    Returns:
        Where they were split into heads, and the calls behind that; None and no calls if they are not followed.
    """
    if (side := _split(trace, part)) is not None:
        return side, []
    part, repeats, shares = _unrepeated(trace, part)
    region: dict[int, Call] = {}
    start, waiting, heads = None, [part], trace.values[part].shape[-3:-2]
    while waiting:
        value = trace.values[waiting.pop()]
        if start is not None and value.index == start.value:
            continue
        side = _split_once(trace, value.index)
        if side is not None and side.channels.shape[1] == width and side.path[-1] == side.last:
            if start is not None:
                return None, []
            start = side
            continue
        if value.call is None or len(region) == _LONGEST:
            return None, []
        call = region[value.call] = trace.calls[value.call]
        read = [trace.values[operand] for operand in call.operands if operand is not None]
        waiting += [v.index for v in read if v.call is not None and (heads == (1,) or v.shape[-3:-2] != (1,))]
    calls = sorted(region.values(), key=lambda call: call.index)
    if start is None or not _works_by_head(start, calls, part, trace):
        return None, []
    if shares is not None:
        start = replace(start, channels=start.channels[shares], repeats=repeats)
    return start, calls


def _unrepeated(trace: Trace, part: int) -> tuple[int, tuple[tuple[int, int], ...], Tensor | None]:
    """Follow queries or keys back to the tensor whose heads were repeated.

    Returns:
        That tensor, the calls that repeat, and for each head the one that it repeats; None if there is no such tensor.
    """
    apart, index = trace.values[part], part
    mapping, path = torch.arange(apart.num_channels), list[tuple[int, int]]()
    while (number := trace.values[index].call) is not None and len(apart.shape) > 2:
        call = trace.calls[number]
        if call.kind != "movement" or len(call.operands) != 1 or call.operands[0] is None or len(call.outputs) != 1:
            break
        mapping, index = call.maps[0, 0][mapping], call.operands[0]
        path.insert(0, (number, 0))
        value, width = trace.values[index], apart.shape[-1]
        if len(value.shape) != len(apart.shape) or value.shape[-3] >= apart.shape[-3]:
            continue
        shares = mapping[::width] // width
        if len(shares) in (1, apart.shape[-3]) and torch.equal(
            mapping, (shares[:, None] * width + torch.arange(width)).flatten()
        ):
            return index, tuple(path), shares.expand(apart.shape[-3])
    return part, (), None


def _works_by_head(side: Side, calls: list[Call], part: int, trace: Trace) -> bool:
    """Whether calls return the same for the other heads if one is left out, tried on random numbers."""
    heads = len(side.channels)
    if heads == 1:
        return True
    dim, end = side.order.index(len(side.order) - 2), len(trace.values[part].shape) - 3
    rest = torch.arange(1, heads)
    probe, constants = _random(trace.values[side.value].shape).float(), dict[tuple[int, int], Tensor]()
    fewer = probe.index_select(dim, rest)
    for written in (heads, heads - 1):  # a number of heads among the arguments may be read off a tensor
        try:
            whole = _computed(calls, side.value, probe, part, constants, {})
            found = _computed(calls, side.value, fewer, part, constants, {heads: written})
        except (RuntimeError, TypeError, ValueError, IndexError):
            continue
        expected = whole.index_select(end, rest)
        if found.shape == expected.shape and torch.allclose(found, expected, atol=1e-5):
            return True
    return False


def _computed(
    calls: list[Call],
    start: int,
    x: Tensor,
    end: int,
    constants: dict[tuple[int, int], Tensor],
    sizes: Mapping[int, int],
) -> Tensor:
    """Run calls one after the other, with random numbers, which are kept, in place of other tensors.

    Sizes among the arguments of calls that reshape are replaced by others.
    """
    tensors = {start: x}
    for call in calls:
        given = []
        for k, shape in enumerate(call.shapes):
            known = tensors.get(-1 if (operand := call.operands[k]) is None else operand)
            constant = constants.setdefault((call.index, k), _random(shape, call.index + k).abs().float())
            given.append(constant if known is None else known.clone())
        args, kwargs = replace_tensors((call.args, call.kwargs), partial(slot_filled, given), Slot)
        if call.function in ("view", "reshape", "expand"):
            written: Any = args[1] if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]
            args = (args[0], [sizes.get(size, size) for size in written])
        results = tensors_in([call.run(*args, **kwargs)])
        tensors |= dict(zip(call.outputs, results, strict=False))
    return tensors[end]


def _merged(trace: Trace, part: int, useful: set[int]) -> Side | None:
    """Follow the results of attention to the tensor in which the heads lie side by side."""
    mapping, path, index = torch.arange(trace.values[part].num_channels), list[tuple[Call, int]](), part
    grid = trace.values[part]
    while trace.values[index].dim is None or len(trace.values[index].shape) == len(grid.shape):
        readers = {reader for reader in trace.values[index].readers if reader in useful}
        call = trace.calls[readers.pop()] if len(readers) == 1 else None
        if call is None or len(call.outputs) != 1 or not _passes(call, trace.values[index], grid):
            return None
        (k,) = {k for k, _ in call.maps}
        mapping = mapping[call.maps[k, 0]]
        path.append((call, 0))
        index = call.outputs[0]
    if len(set(mapping.tolist())) != len(mapping) or len(mapping) != grid.num_channels:
        return None
    probe = _random(grid.shape)
    moved = _moved(probe, path, part, index, trace)
    sides = _sides(trace, part, index, path, mapping.argsort())
    return next((side for side in sides if _agree(moved, merge(probe, side, trace))), None)


def _passes(call: Call, value: Value, apart: Value) -> bool:
    """Whether a call only moves one tensor, or scales one whose heads lie apart as in the tensor ``apart``."""
    if len({k for k, _ in call.maps}) != 1 or sum(o is not None for o in call.operands) != 1:
        return False
    is_apart = value.dim is None or len(value.shape) == len(apart.shape)
    return call.kind == "movement" or (call.kind == "elementwise" and call.function in _SCALINGS and is_apart)


def _sides(trace: Trace, part: int, whole: int, path: list[tuple[Call, int]], channels: Tensor) -> Iterator[Side]:
    """Yield a side for each order in which the dimensions beside the channels may stand."""
    apart, together = trace.values[part], trace.values[whole]
    dims = [d for d, size in enumerate(apart.compact or ()) if size > 1]
    others = len(together.shape) - 1
    if len(dims) == 1 and len(apart.shape) == 4:
        dims = [1, *dims]  # a single head, or one that was repeated
        channels = channels.expand(apart.shape[1], -1) if dims[1] > 1 else channels
    if len(dims) != 2 or len(apart.shape) != others + 2:
        return
    shape = (apart.shape[dims[0]], apart.shape[dims[1]])
    moving = [(call.index, o) for call, o in path if call.kind == "movement" and not _copies(call, o, trace)]
    if channels.numel() != shape[0] * shape[1] or not moving or not _are_heads(channels.reshape(shape)):
        return
    indices = tuple((call.index, o) for call, o in path)
    for beside in permutations(range(others)):
        rest = iter(beside)
        order = tuple(others + dims.index(d) if d in dims else next(rest) for d in range(others + 2))
        yield Side(part, whole, channels.reshape(shape), indices, moving[-1], order)


def _copies(call: Call, output: int, trace: Trace) -> bool:
    """Whether a call that moves data returns the tensor that it reads, or all of it."""
    operands = [(k, trace.values[operand]) for k, operand in enumerate(call.operands) if operand is not None]
    result = trace.values[call.outputs[output]]
    return len(operands) == 1 and (
        (operands[0][1].shape, operands[0][1].compact) == (result.shape, result.compact)
        and call.keeps(operands[0][0], output)
    )


def _are_heads(channels: Tensor) -> bool:
    """Whether no channel is twice in a head, and any two heads have all their channels in common, or none."""
    heads = {tuple(head) for head in channels.tolist()}
    return len({channel for head in heads for channel in head}) == len(heads) * channels.shape[1]


def split(whole: Tensor, side: Side, trace: Trace) -> Tensor:
    """Split a tensor into heads, as the calls of a side do."""
    chosen = whole.movedim(_dim(side, trace), -1)[..., side.channels.flatten()]
    return chosen.view(*chosen.shape[:-1], *side.channels.shape).permute(side.order)


def merge(apart: Tensor, side: Side, trace: Trace) -> Tensor:
    """Put heads side by side, as the calls of a side do."""
    back = torch.tensor(side.order).argsort().tolist()
    flat = apart.permute(back).flatten(-2)
    return flat[..., side.channels.flatten().argsort()].movedim(-1, _dim(side, trace))


def _dim(side: Side, trace: Trace) -> int:
    """The channel dimension of a side's whole tensor."""
    dim = trace.values[side.whole].dim
    assert dim is not None
    return dim


def _moved(probe: Tensor, path: Iterable[tuple[Call, int]], start: int, end: int, trace: Trace) -> Tensor | None:
    """Run the calls that move a tensor, one on the result of the other; None if one does not run on it."""
    tensors = {start: probe}
    for call, _ in path:
        (k,) = (k for k, operand in enumerate(call.operands) if operand is not None)
        x = tensors.get(call.operands[k] or 0)
        if x is None:
            return None
        try:
            results = _run(call, k, x) if call.kind == "movement" else [x]
        except (RuntimeError, TypeError):
            return None
        tensors |= dict(zip(call.outputs, results, strict=False))
    return tensors.get(end)


def _run(call: Call, position: int, x: Tensor) -> list[Tensor]:
    """Run a call with a tensor at a position, and nothing in place of other tensors; its results."""
    args, kwargs = replace_tensors(
        (call.args, call.kwargs), lambda slot: x if slot.position == position else None, Slot
    )
    return list(tensors_in([call.run(*args, **kwargs)]))


def _random(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Random numbers, float64, without a draw from torch's own generator."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _agree(one: Tensor | None, other: Tensor) -> bool:
    """Whether two tensors are the same."""
    return one is not None and one.shape == other.shape and torch.equal(one, other)
