"""Rules that say, for each torch function by its name, what it does with channels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .functions import COMPARISONS, LOGICAL, NONLINEARITIES, Slot, replace_tensors, slot_filled, tensors_in
from .layers import CONVOLUTIONS, TRANSPOSED, LayerRules, along, as_tuple, leave, multiplies_by_matrix
from .norms import NORMS, REDUCTIONS, reduced_dims
from .places import KEEP_CONSTANTS, OVER_PLACES, dims_over
from .reasons import Why
from .record import Call, Nonlinearity, Value

_CASTS = {"to", "float", "double", "half", "bfloat16", "type"}
_ELEMENTWISE = (NONLINEARITIES - {"prelu"}) | COMPARISONS | LOGICAL | _CASTS | {
    "add", "sub", "rsub", "mul", "div", "neg", "abs", "exp", "log", "log1p", "sqrt", "rsqrt", "square", "pow", "erf",
    "maximum", "minimum", "zeros_like", "ones_like", "addcmul", "addcdiv",
    "sin", "cos", "clamp", "clamp_min", "clamp_max", "reciprocal", "threshold", "hardshrink", "softshrink",
    "expm1", "masked_fill", "dropout", "alpha_dropout",
    "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d",
}  # fmt: skip
_CHANNELWISE = {
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "interpolate", "upsample",
}  # fmt: skip
_MOVEMENTS = {
    "reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "movedim",
    "moveaxis", "swapaxes", "swapdims", "chunk", "split", "tensor_split", "split_with_sizes", "unbind", "getitem",
    "narrow", "select", "expand", "expand_as", "repeat", "roll", "flip", "cat", "stack", "channel_shuffle",
    "repeat_interleave", "contiguous", "clone", "detach",
}  # fmt: skip
_PRODUCTS = {"matmul", "bmm", "scaled_dot_product_attention"}
_SAME_SHAPE = {"local_response_norm", "setitem", "softmax"}


class ChannelRules(LayerRules):
    """Determines what each call does with channels, and completes the trace with it; see :class:`LayerRules`.

    Attributes:
        nonlinearities: number of calls of nonlinearities so far.
    """

    nonlinearities = 0

    def apply(self, call: Call, tensors: list[Tensor], shapes: list[tuple[int, ...]], outputs: list[Value]) -> None:
        """Complete the description of a call that has just run.

        Args:
            call: the call, with its operands and outputs.
            tensors: the tensors among its arguments, in order.
            shapes: shapes of these tensors before the call.
            outputs: the values that the call returns.
        """
        name = call.function
        if not outputs:
            leave(call, Why.LEAVES_TORCH)
            return
        pools = (
            name in REDUCTIONS
            or name in OVER_PLACES
            or ("adaptive" in name and all(size in (1, None) for size in _pooled_to(call)))
        )
        for value in outputs:
            read = [self.trace.values[operand].full for operand in call.operands if operand is not None]
            value.full = (any(read) and not pools) or name in ("interpolate", "upsample")
        self._apply_rule(call, tensors, shapes, outputs)
        if name in NONLINEARITIES or _cuts_at_zero(call):
            self._at_nonlinearity(call, outputs[0])

    def _apply_rule(
        self, call: Call, tensors: list[Tensor], shapes: list[tuple[int, ...]], outputs: list[Value]
    ) -> None:
        """Apply the rule for the function of a call; a call without a rule becomes opaque."""
        name, first = call.function, self.read(call, 0)
        is_float = any(tensor.is_floating_point() for tensor in tensors)
        is_logical = (name in LOGICAL or name in _CASTS) and all(tensor.dtype == torch.bool for tensor in tensors)
        if not is_float and not is_logical:
            leave(call, Why.INTEGERS)
        elif name == "embedding":
            self.embed(call, tensors, outputs[0])
        elif name in CONVOLUTIONS or name in TRANSPOSED or name == "linear" or multiplies_by_matrix(call, shapes):
            self.multiply(call, tensors, shapes, outputs[0])
        elif name == "batch_norm" or name == "instance_norm":
            self.normalise(call, tensors, first, outputs[0])
        elif name == "prelu":
            self.prelu(call, tensors, first, outputs[0])
        elif (name in _ELEMENTWISE or (name in ("max", "min") and len(tensors) == 2)) and len(outputs) == 1:
            self._elementwise(call, tensors, shapes, outputs[0])
        elif name in _MOVEMENTS:
            self._movement(call, tensors, shapes, outputs)
        elif name in NORMS:
            self.normalise_all(call, tensors, first, outputs[0])
        elif name in REDUCTIONS:
            self._reduce(call, first, outputs[0])
        elif name in OVER_PLACES:
            self._over_places(call, first, outputs)
        elif name in _CHANNELWISE or name == "pad":
            self._channelwise(call, first, outputs[0])
        elif name in _PRODUCTS:
            self._product(call, outputs[0])
        else:
            leave(call, Why.NO_RULE)
            if name in _SAME_SHAPE and first is not None:
                outputs[0].compact, outputs[0].layer = first.compact, first.layer

    def _constant(self, tensor: Tensor, call: Call, position: int, compact: tuple[int, ...] | None) -> Value:
        """Add a value for a parameter, a buffer or another constant tensor that a call computes with."""
        owner = self.owner.get(id(tensor))
        value = Value(len(self.trace.values), tuple(tensor.shape), compact, full=False, readers=[call.index])
        if owner is not None:
            value.layer, value.parameter = owner[0], f"{owner[0]}.{owner[1]}".lstrip(".")
        else:
            value.origin = self.steps.origin(tensor)
        self.trace.values.append(value)
        call.operands = tuple(value.index if k == position else o for k, o in enumerate(call.operands))
        return value

    def _product(self, call: Call, output: Value) -> None:
        """Rule for products of two tensors, as in attention: opaque on their own, but with known channels.

        A product over the channels of both keeps their heads; the product of heads with channels keeps the channels.
        """
        leave(call, Why.NO_RULE)
        left = self.read(call, 0)
        right = self.read(call, 2 if call.function == "scaled_dot_product_attention" else 1)
        ndim = len(output.shape)
        if right is None or right.compact is None or ndim < 3 or len(right.compact) != ndim:
            return
        if left is None or left.compact is None:  # columns are those of the right one, whatever the rows are
            if right.compact[-2] == 1:
                output.compact = (*right.compact[:-2], 1, right.compact[-1])
            return
        contracts = left.compact[-1] > 1
        is_fused = call.function == "scaled_dot_product_attention"
        if len(left.compact) != ndim or left.compact[-2] > 1:
            return
        if right.compact[-2] == 1 if is_fused else (right.compact[-2] > 1) == contracts:
            batch = tuple(max(sizes) for sizes in zip(left.compact[:-2], right.compact[:-2], strict=True))
            output.compact = (*batch, 1, right.compact[-1])

    def _reduce(self, call: Call, first: Value | None, output: Value) -> None:
        """Rule for means, sums, norms and extremes, over places or over channels."""
        if first is None or first.compact is None:
            leave(call, Why.READS_UNKNOWN)
            return
        dims = reduced_dims(call, len(first.shape))
        channels = {dim for dim, size in enumerate(first.compact) if size > 1}
        if dims is None or (channels & set(dims) and (not channels <= set(dims) or call.function in ("amax", "amin"))):
            leave(call, Why.RUNS_OVER_CHANNELS)
            return
        if not channels and len(dims) == len(first.shape):
            leave(call, Why.READS_UNKNOWN)
            return
        if channels & set(dims):
            output.compact, call.kind = (1,) * len(output.shape), "reducing"
            return
        compact = list(first.compact)
        if len(output.shape) < len(first.shape):
            compact = [size for dim, size in enumerate(compact) if dim not in dims]
        call.padded = call.function not in ("mean", "amax", "amin")  # the sum of a constant is a multiple of it
        output.compact, output.layer, call.kind = tuple(compact), first.layer, "channelwise"
        call.maps[0, 0] = torch.arange(first.num_channels)

    def _over_places(self, call: Call, first: Value | None, outputs: list[Value]) -> None:
        """Rule for extremes, sorting, running sums and deviations over places; all results have the same channels."""
        if first is None or first.compact is None:
            leave(call, Why.READS_UNKNOWN)
            return
        dims = dims_over(call, len(first.shape))
        if dims is None or any(first.compact[dim] > 1 for dim in dims):
            leave(call, Why.RUNS_OVER_CHANNELS)
            return
        for o, output in enumerate(outputs):
            is_flat = len(output.shape) < len(first.shape)
            output.compact = tuple(n for dim, n in enumerate(first.compact) if not (is_flat and dim in dims))
            output.layer = first.layer
            call.maps[0, o] = torch.arange(first.num_channels)
        call.kind, call.padded = "channelwise", call.function not in KEEP_CONSTANTS

    def _channelwise(self, call: Call, first: Value | None, output: Value) -> None:
        """Rule for pooling, interpolation and padding beside the channels."""
        name = call.function
        if first is None or first.compact is None:
            leave(call, Why.READS_UNKNOWN)
            return
        compact = list(first.compact)
        if name == "pad":
            amounts, mode = call.argument(1, "pad"), call.argument(2, "mode", "constant")
            touched = [len(compact) - 1 - i // 2 for i, amount in enumerate(amounts) if amount]
            if mode == "constant" and call.argument(3, "value"):
                leave(call, Why.PADS_A_VALUE)
                return
            if any(compact[dim] > 1 for dim in touched):
                self._pad_channels(call, first, output)
                return
            call.padded = mode == "constant"
        elif any(size > 1 for size in compact[2:]) or len(compact) != len(output.shape):
            leave(call, Why.RUNS_OVER_CHANNELS)
            return
        elif "avg_pool" in name and "adaptive" not in name:
            call.padded = any(as_tuple(call.argument(3, "padding", 0))) or bool(call.argument(6, "divisor_override"))
        output.compact, output.layer, call.kind = tuple(compact), first.layer, "channelwise"
        call.maps[0, 0] = torch.arange(first.num_channels)

    def _pad_channels(self, call: Call, first: Value, output: Value) -> None:
        """Rule for padding that adds channels of zeros, as in the shortcuts of ResNets for CIFAR."""
        beside = [[size for d, size in enumerate(value.shape) if d != first.dim] for value in (first, output)]
        if first.dim is None or call.argument(2, "mode", "constant") != "constant" or beside[0] != beside[1]:
            leave(call, Why.PADS_CHANNELS)
            return
        numbers = torch.arange(1, first.num_channels + 1).view(first.compact or ()).expand(first.shape)
        ids = _compressed(nn.functional.pad(numbers, call.argument(1, "pad")))
        output.compact, call.kind = tuple(ids.shape), "movement"
        call.maps[0, 0] = ids.reshape(-1) - 1

    def _elementwise(self, call: Call, tensors: list[Tensor], shapes: list[tuple[int, ...]], output: Value) -> None:
        """Rule for functions that compute entry by entry, with broadcasting."""
        known = [(k, value) for k in range(len(tensors)) if (value := self.read(call, k)) is not None]
        structured = [value for _, value in known if value.compact is not None]
        ndim = len(output.shape)
        if not structured or any(len(shape) > ndim for shape in shapes):
            leave(call, Why.READS_UNKNOWN)
            return
        compacts = [_aligned(value.compact or (), ndim) for value in structured]
        compact = tuple(max(sizes) for sizes in zip(*compacts, strict=True))
        numbers = {}
        for k, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
            value, aligned = self.read(call, k), _aligned(shape, ndim)
            if value is None:  # a parameter, a buffer or a tensor created during the pass
                part = tuple(size if compact[d] > 1 else 1 for d, size in enumerate(aligned))
                own = part[ndim - len(shape) :]
                is_foreign = any(size > 1 for size in part) and self.owner.get(id(tensor)) is None
                # A table may be as wide as the tensor beside it is asked to be.
                is_fitted = self.steps.origin(tensor) is None and any(v.measured for v in structured)
                if is_foreign and (sum(size > 1 for size in part) > 1 or is_fitted):
                    output.compact, output.layer = compact, structured[0].layer
                    leave(call, Why.READS_FOREIGN)
                    return
                value = self._constant(tensor, call, k, own)
                value.foreign = is_foreign
            elif value.compact is None:
                if any(aligned[d] > 1 for d in range(ndim) if compact[d] > 1):
                    output.compact, output.layer = compact, structured[0].layer
                    leave(call, Why.READS_UNKNOWN)
                    return
                value.compact = (1,) * len(shape)
            numbers[k] = torch.arange(value.num_channels).view(_aligned(value.compact or (), ndim))
        for _, value in known:
            theirs = _aligned(value.compact or (), ndim)
            if any(
                mine > 1 and size == 1 and _aligned(value.shape, ndim)[d] > 1
                for d, (size, mine) in enumerate(zip(theirs, compact, strict=True))
            ):
                output.compact, output.layer = compact, structured[0].layer
                leave(call, Why.DIMENSIONS_DIFFER)
                return
        output.compact, call.kind = compact, "elementwise"
        layers = [value.layer for value in structured if value.num_channels == output.num_channels]
        output.layer = layers[0] if layers else None
        for k, ids in numbers.items():
            call.maps[k, 0] = ids.expand(compact).reshape(-1)

    def _movement(self, call: Call, tensors: list[Tensor], shapes: list[tuple[int, ...]], outputs: list[Value]) -> None:
        """Rule for functions that only move data: run them on channel numbers and read off the result."""
        places: list[Tensor] = []
        sources: list[tuple[int, int, Value] | None] = []
        start = 0
        for k, tensor in enumerate(tensors):
            value = self.read(call, k)
            if not tensor.is_floating_point() and (value is None or call.function == "getitem"):
                sources.append(None)  # an index tensor
                places.append(tensor)
                continue
            if value is None:
                value = self._constant(tensor, call, k, self._beside(call, shapes[k]))
                value.foreign = value.parameter is None and value.num_channels > 1
            if value.compact is None:
                leave(call, Why.MOVES_UNKNOWN)
                return
            ids = torch.arange(value.num_channels).view(value.compact) + start
            places.append(ids.expand(shapes[k]))
            sources.append((k, start, value))
            start += value.num_channels
        if call.function in ("cat", "stack") and not self._lies_along(call, sources, outputs[0]):
            return
        if any(source is None and call.operands[k] is not None for k, source in enumerate(sources)):
            # An index that depends on the input may pick a place, such as the last token, but no channel.
            zeros = [place if sources[k] is not None else torch.zeros_like(place) for k, place in enumerate(places)]
            found, picked = (
                call.run(*replace_tensors(call.args, partial(slot_filled, given), Slot)) for given in (places, zeros)
            )
            if not torch.equal(found, picked):
                leave(call, Why.MOVES_UNKNOWN)
                return
        args, kwargs = replace_tensors((call.args, call.kwargs), lambda slot: places[slot.position], Slot)
        try:
            result = call.run(*args, **kwargs)
        except RuntimeError:  # a view that the memory layout of the channel numbers does not allow
            args, kwargs = replace_tensors((args, kwargs), Tensor.contiguous)
            result = call.run(*args, **kwargs)
        moved = list(tensors_in([result]))
        call.kind = "movement"
        for o, (ids, output) in enumerate(zip(moved, outputs, strict=True)):
            ids = _compressed(ids)
            output.compact = tuple(ids.shape)
            flat = ids.reshape(-1)
            for k, first, value in filter(None, sources):
                inside = (flat >= first) & (flat < first + value.num_channels)
                call.maps[k, o] = torch.where(inside, flat - first, -1)
            whole = [value for _, _, value in filter(None, sources)]
            if len(whole) == 1 and output.num_channels == whole[0].num_channels:
                output.layer = whole[0].layer

    def _beside(self, call: Call, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Compact shape of a constant that a call moves: the channels of a class token are those of the patches."""
        known = [self.read(call, k) for k in range(len(call.operands))]
        compacts = [value.compact for value in known if value is not None and value.compact is not None]
        if call.function != "cat" or not compacts:
            return shape
        return tuple(size if any(c[d] > 1 for c in compacts if d < len(c)) else 1 for d, size in enumerate(shape))

    def _lies_along(self, call: Call, sources: list[Any], output: Value) -> bool:
        """Whether a concatenation runs along the channels; along another dimension it is treated like a sum."""
        values = [value for _, _, value in filter(None, sources)]
        ndim = len(output.shape)
        dim = call.argument(1, "dim", 0) % ndim
        compacts = [value.compact for value in values]
        if call.function == "stack":
            compacts = [(*compact[:dim], 1, *compact[dim:]) for compact in compacts]
        others = [tuple(size for d, size in enumerate(compact) if d != dim) for compact in compacts]
        if all(size == 1 for other in others for size in other):
            return True
        if len(set(others)) == 1 and all(compact[dim] > 1 for compact in compacts):
            return True  # e.g. parts of each head
        if len(set(compacts)) == 1 and compacts[0][dim] == 1:  # e.g. a class token before the patches
            output.compact, output.layer, call.kind = compacts[0], None, "elementwise"
            for k, _, value in filter(None, sources):
                call.maps[k, 0] = torch.arange(value.num_channels)
            return False
        leave(call, Why.DIMENSIONS_DIFFER)
        return False

    def _at_nonlinearity(self, call: Call, output: Value) -> None:
        """Add a call of a nonlinearity to the trace, with its channel dimension."""
        if output.dim is None:
            # If unknown, the channels are assumed in dimension 1, or in the last one for token sequences.
            ndim = len(output.shape)
            dim = ndim - 1 if ndim == 3 else min(1, ndim - 1)
            if output.compact is None or output.num_channels > 1:
                leave(call, Why.READS_UNKNOWN)
                output.compact = along(output.shape, dim)
        else:
            dim = output.dim
        index, size = self.nonlinearities - 1, output.shape[dim]
        layer = output.layer if output.num_channels == size else None
        self.trace.nonlinearities.append(
            Nonlinearity(index, call.function, dim, size, layer, call.index, call.operands[0])
        )


def _cuts_at_zero(call: Call) -> bool:
    """Whether a call is a ReLU that is written as a clamp."""
    return call.kind == "elementwise" and call.function in ("clamp", "clamp_min") and call.argument(1, "min") == 0


def _pooled_to(call: Call) -> tuple[Any, ...]:
    """Return the output size of an adaptive pooling."""
    return as_tuple(call.argument(1, "output_size"))


def _aligned(sizes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Return a shape with leading dimensions of size 1, so that it has ``ndim`` dimensions (as in broadcasting)."""
    return (1,) * (ndim - len(sizes)) + tuple(sizes)


def _compressed(ids: Tensor) -> Tensor:
    """Cut every dimension along which all channel numbers are equal to size 1."""
    if not ids.numel():
        return ids
    for dim in range(ids.ndim):
        first = ids.narrow(dim, 0, 1)
        if ids.shape[dim] == 1 or ids.stride(dim) == 0 or bool((ids == first).all()):
            ids = first
    return ids
