"""Lowering: from a layout to edits of function calls, so that each call gets what the masked network gives it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..tracing import SIZE_FREE, Attention, Call, Side
from .edits import Edit, Merge, Regather, Split
from .layout import Layout

_LIBRARIES = ("torchvision", "timm", "transformers")  # whose norms read their attributes


@dataclass(frozen=True)
class Lowering:
    """Changes of function calls that are needed besides narrower layers.

    Attributes:
        edits: the edits, at most one per call.
        totals: name of an edited function -> number of its counted calls in a whole forward pass of the slim network.
    """

    edits: tuple[Edit, ...]
    totals: dict[str, int]


def lower(layout: Layout, model: nn.Module) -> Lowering:
    """Return the edits that the slim network with ``layout``, made from the dense network ``model``, needs."""
    edits = []
    gathered = _gathered(layout)
    attended = _attended(layout)
    vanished: set[int] = set()  # calls of modules that an identity replaces are no longer counted
    for call in layout.trace.calls:
        if call.layer in layout.dead:
            source = layout.trace.values[call.operands[0]].call if call.operands[0] is not None else None
            padding = getattr(model.get_submodule(call.module), "padding_mode", "zeros")
            vanished |= {call.index} if padding == "zeros" or source is None else {call.index, source}
    gone: Counter[str] = Counter()
    for call in layout.trace.calls:
        if call.index in vanished:
            gone[call.function] += 1
            continue
        if (attention := layout.trace.attention_of.get(call.index)) is not None and layout.attends(attention):
            edit = attended.get(call.index)
            if (mask := layout.zeroed.get(call.index)) is not None:
                edit = replace(edit or Edit(call.function, call.count), mask=_kept(layout, call, mask))
        else:
            edit = gathered.get(call.index) or _edit(layout, call, layout.zeroed.get(call.index))
        if (changes := _over_channels(layout, model, call)) and (edit is None or edit.action == "run"):
            edit = replace(edit or Edit(call.function, call.count), **changes)
        if edit is not None:
            edits.append(replace(edit, count=edit.count - gone[call.function]))
    for layer in layout.trace.folds:
        fold = layout.fold_of(layer)
        for step, position in () if fold is None else fold.skipped.values():
            passed = (None,) * len(step.shapes)
            edits.append(Edit(step.function, step.count or 0, "skip", position, results=passed))
    totals = {edit.function: layout.trace.totals[edit.function] - gone[edit.function] for edit in edits}
    return Lowering(tuple(edits), totals)


def _edit(layout: Layout, call: Call, mask: Tensor | None) -> Edit | None:
    """Return the edit of one call that is not gathered; None if the call runs unchanged."""
    present = layout.present
    is_empty = any(0 in layout.trace.values[o].shape for o in call.outputs)  # code may ask for its size
    if call.outputs and not is_empty and not any(bool(present[o].any()) for o in call.outputs):
        return Edit(call.function, call.count, "skip", results=(None,) * len(call.outputs))
    operands: dict[int, Regather] = {}
    fixed: dict[int, tuple[tuple[int, ...], tuple[float, ...]]] = {}
    dropped: list[int] = []
    for k, operand in enumerate(call.operands):
        wanted = _wanted(layout, call, k)
        if operand is None or wanted is None:
            continue
        if bool(present[operand].any()):
            change = _regather(layout, operand, wanted)
            if change is not None:
                operands[k] = change
        elif call.kind == "movement":
            dropped.append(k)  # left out of a concatenation
        elif call.kind == "elementwise":
            fixed[k] = _constants(layout, call, operand, wanted)
    survivor = _survivor(layout, call, fixed)
    if survivor is not None:
        return Edit(call.function, call.count, "copy", survivor, results=(operands.get(survivor),))
    keep = None if mask is None else _kept(layout, call, mask)
    if not (operands or fixed or dropped or keep):
        return None
    action: Literal["run", "drop"] = "drop" if dropped else "run"
    return Edit(call.function, call.count, action, 0, operands, fixed, (), keep, tuple(dropped))


def _over_channels(layout: Layout, model: nn.Module, call: Call) -> dict[str, Any]:
    """Return what a norm or a mean over channels must be told about the channels that it has; {} if nothing."""
    if not call.outputs or not bool(layout.present[call.outputs[0]].any()):
        return {}
    if call.kind == "reducing":
        there = layout.present[call.operands[0] or 0]
        return {"share": float(there.double().mean())} if call.function == "mean" and not bool(there.all()) else {}
    there = layout.present[call.outputs[0]]
    if call.function == "layer_norm" and call.index in layout.closed:
        return {"zeros": missing} if (missing := int((~there).sum())) else {}
    left_out, is_narrow = layout.analysis.normed.get(call.index, ~there)[there], not bool(there.all())
    if call.function == "layer_norm" and (bool(left_out.any()) or (is_narrow and not _tells_width(model, call))):
        return {"statistics": tuple((~left_out).tolist())}
    if call.kind != "normalising" or not is_narrow:
        return {}
    if call.function == "rms_norm":
        return {"share": float(there.double().mean())}
    is_told = call.function != "group_norm" or _tells_width(model, call)
    return {} if is_told else {"groups": int(there.view(call.groups, -1).any(1).sum())}


def _tells_width(model: nn.Module, call: Call) -> bool:
    """Whether a norm is run by a module whose attributes say how wide it is; other subclasses may not read them."""
    module = model.get_submodule(call.module)
    is_norm = call.layer == call.module and isinstance(module, (nn.LayerNorm, nn.GroupNorm))
    is_own = type(module).forward in (nn.LayerNorm.forward, nn.GroupNorm.forward)
    return is_norm and (is_own or type(module).__module__.partition(".")[0] in _LIBRARIES)


def _kept(layout: Layout, call: Call, mask: Tensor) -> tuple[int, tuple[bool, ...]]:
    """Return the channel dimension of a call's result, and which of its channels are not multiplied by zero."""
    (output,) = call.outputs
    dim = layout.trace.values[output].dim
    return dim if dim is not None else 1, tuple((~mask)[layout.present[output]].tolist())


def _wanted(layout: Layout, call: Call, position: int) -> Tensor | None:
    """Return the channels of an operand that a call computes with, in order; None if it takes the present ones."""
    operand = call.operands[position]
    if operand is None or call.kind == "mixing" or (call.kind == "movement" and call.function != "cat"):
        return None
    if call.kind == "opaque":
        channels = len(layout.present[operand])
        return torch.arange(channels) if layout.trace.values[operand].dim is not None else None
    mapping, output = call.maps.get((position, 0)), call.outputs[0]
    if mapping is None:
        return None
    if layout.trace.values[output].dim is None and bool(layout.present[output].all() & layout.present[operand].all()):
        return None  # channels along several dimensions, of which the operand may have one, stay as they are
    wanted = mapping[(mapping >= 0) & layout.present[output]]
    broadcast = len(layout.present[operand]) == 1 < len(wanted)
    return torch.zeros(1, dtype=torch.int64) if broadcast else wanted


def _constants(layout: Layout, call: Call, operand: int, wanted: Tensor) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return shape and entries of the constants that replace an operand without present channels."""
    output = layout.trace.values[call.outputs[0]]
    numbers = layout.analysis.constant[operand][wanted].nan_to_num(0.0)
    shape = tuple(len(wanted) if dim == output.dim else 1 for dim in range(len(output.shape)))
    return shape, tuple(numbers.tolist())


def _survivor(layout: Layout, call: Call, fixed: Mapping[int, tuple[tuple[int, ...], tuple[float, ...]]]) -> int | None:
    """Return the position of the operand that an addition of zeros returns unchanged (a dead residual branch)."""
    if call.function != "add" or len(fixed) != 1 or len(call.operands) != 2:
        return None
    ((gone, (_, numbers)),) = fixed.items()
    other = call.operands[1 - gone]
    scaled = any(isinstance(value, (int, float)) for value in call.kwargs.values())  # add(x, y, alpha=2)
    if any(numbers) or scaled or other is None:
        return None
    stays, result = layout.trace.values[other], layout.trace.values[call.outputs[0]]
    return 1 - gone if (stays.shape, stays.full) == (result.shape, result.full) else None


def _regather(layout: Layout, value: int, wanted: Tensor) -> Regather | None:
    """Return how the channels ``wanted`` are made from the present ones of a value; None if they are the same."""
    present, constant = layout.present[value], layout.analysis.constant[value]
    kept = present.nonzero().flatten()
    if torch.equal(kept, wanted):
        return None
    dim = layout.trace.values[value].dim
    position = torch.full((len(present),), -1, dtype=torch.int64)
    position[kept] = torch.arange(len(kept))
    index: list[int] = []
    extra: list[float] = []
    slots: dict[float, int] = {}
    for channel in wanted.tolist():
        place = int(position[channel]) if channel >= 0 else -1
        if place < 0:
            number = float(constant[channel].nan_to_num(0.0)) if channel >= 0 else 0.0
            if number not in slots:
                slots[number] = len(extra)
                extra.append(number)
            place = len(kept) + slots[number]
        index.append(place)
    return Regather(dim if dim is not None else 1, tuple(index), tuple(extra), len(kept))


def _attended(layout: Layout) -> dict[int, Edit]:
    """Return the edits inside attentions that lost heads or channels of heads, or may read their width elsewhere."""
    edits: dict[int, Edit] = {}
    # Code that asks how wide a stream is may take that for the width of attention.
    is_narrower = any(value.measured and not bool(layout.present[value.index].all()) for value in layout.trace.values)
    for attention in layout.trace.attentions:
        if not layout.attends(attention):
            continue
        kept, pairs = layout.heads_kept(attention)
        if bool(kept.all()) and (pairs is None or bool(pairs.all())) and not is_narrower:
            continue
        results: dict[int, list[Split | Merge | None]] = {}
        sides = [(attention.queries, pairs), (attention.keys, pairs), (attention.values, kept)]
        for side, cells in [*sides, (attention.results, kept)]:
            if side is None or cells is None:
                continue
            index, o = side.last
            for passed, _ in (*side.path, *side.repeats):
                call = layout.trace.calls[passed]
                runs = passed > index and call.function in SIZE_FREE and side is not attention.results
                if call.kind == "movement" and not runs:
                    results.setdefault(passed, [None] * len(call.outputs))
            results[index][o] = _heads(layout, side, cells, is_split=side is not attention.results)
        for index, changes in results.items():
            call = layout.trace.calls[index]
            position = next(k for k, operand in enumerate(call.operands) if operand is not None)
            edits[index] = Edit(call.function, call.count, "skip", position, results=tuple(changes))
        edits |= _products(layout, attention, kept, pairs)
        for index in attention.inner if layout.demands.numbers else ():
            call = layout.trace.calls[index]
            numbers = [value for value in call.args[1:] if isinstance(value, (int, float))]
            if call.function in ("mul", "div") and len(numbers) == 1:
                edit = edits.get(index) or Edit(call.function, call.count)
                edits[index] = replace(edit, number=float(numbers[0]))
    return edits


def _heads(layout: Layout, side: Side, cells: Tensor, is_split: bool) -> Split | Merge:
    """Return how the channels in some cells (heads, width) are split from their tensor, or merged into it."""
    present = layout.present[side.whole]
    dim = layout.trace.values[side.whole].dim
    assert dim is not None
    place = present.cumsum(0)[side.channels[cells]] - 1
    wanted = place if is_split else place.argsort()
    plain = torch.equal(wanted, torch.arange(int(present.sum())))
    index = None if plain else tuple(wanted.tolist())
    return Split(dim, index, int(cells.any(1).sum()), side.order) if is_split else Merge(dim, index, side.order)


def _products(layout: Layout, attention: Attention, kept: Tensor, pairs: Tensor | None) -> dict[int, Edit]:
    """Return the edits of the products of an attention, and of what has one entry a head beside them."""
    edits: dict[int, Edit] = {}
    heads = kept.any(1)
    if not bool(heads.all()):
        for (index, k), dim in attention.beside.items():
            call = layout.trace.calls[index]
            edit = edits.get(index) or Edit(call.function, call.count)
            change = Regather(dim, tuple(heads.nonzero().flatten().tolist()), (), len(heads))
            edits[index] = replace(edit, operands={**edit.operands, k: change})
    first = layout.trace.calls[attention.products[0]]
    if len(attention.products) == 1 and pairs is not None and first.kwargs.get("scale") is None:
        edit = edits.get(first.index) or Edit(first.function, first.count)
        edits[first.index] = replace(edit, scale=pairs.shape[1] ** -0.5)
    return edits


def _gathered(layout: Layout) -> dict[int, Edit]:
    """Return edits of movement calls whose results are gathered from the value where a chain of them begins."""
    trace, present, origin = layout.trace, layout.present, layout.movement.origin
    chains: dict[int, list[Call]] = {}
    for call in trace.calls:
        if layout.movement.kinds.get(call.index) == "gather":
            chains.setdefault(origin[call.outputs[0]][0], []).append(call)
    edits: dict[int, Edit] = {}
    for source, calls in chains.items():
        finals = [o for call in calls for o in call.outputs if trace.values[o].dim is not None]
        if bool(present[source].all()) and all(bool(present[o].all()) for o in finals):
            continue
        for call in calls:
            results = [
                _regather(layout, source, origin[output][1][present[output]])
                if output in finals and bool(present[output].any())
                else None
                for output in call.outputs
            ]
            edits[call.index] = Edit(call.function, call.count, "skip", results=tuple(results))
    return edits
