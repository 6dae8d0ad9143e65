"""Rules that say, for each torch function by its name, what it does with channels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .functions import NONLINEARITIES, Slot, replace_tensors, slot_filled, tensors_in
from .norms import NORMS, REDUCTIONS, groups_of, parameters_of, reduced_dims
from .origins import Origin, Weights
from .reasons import Reason, Why
from .record import Call, Nonlinearity, Trace, Value
from .weights import Steps

_ELEMENTWISE = (NONLINEARITIES - {"prelu"}) | {
    "add", "sub", "rsub", "mul", "div", "neg", "abs", "exp", "log", "log1p", "sqrt", "rsqrt", "square", "pow", "erf",
    "maximum", "minimum", "zeros_like", "ones_like", "addcmul", "addcdiv",
    "sin", "cos", "clamp", "clamp_min", "clamp_max", "reciprocal", "threshold", "hardshrink", "softshrink",
    "to", "float", "double", "half", "bfloat16", "type", "dropout", "alpha_dropout",
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
_CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
_TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}
_PRODUCTS = {"matmul", "bmm", "scaled_dot_product_attention"}
_MATRIX_PRODUCTS = {"matmul", "mm"}
_SAME_SHAPE = {"local_response_norm", "setitem", "softmax", "masked_fill"}


class ChannelRules:
    """Determines what each call does with channels, and completes the trace with it.

    Args:
        trace: the trace so far; the rules complete it.
        owner: id of a parameter or buffer -> name of the module that it belongs to and its name in that module; None
            for tensors that several modules share.
        steps: what has been made of parameters so far.
        model: the network.
    """

    def __init__(
        self, trace: Trace, owner: Mapping[int, tuple[str, str] | None], steps: Steps, model: nn.Module
    ) -> None:
        self.trace, self.owner, self.steps, self.model = trace, owner, steps, model
        self.layers: dict[str, str] = {}  # name of a layer -> full name of its weight
        self.ways: dict[str, object] = {}  # full name of a weight -> what it goes through
        self.nonlinearities = 0  # number of calls of nonlinearities so far

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
            _opaque(call, Why.LEAVES_TORCH)
            return
        pools = name in REDUCTIONS or ("adaptive" in name and all(size in (1, None) for size in _pooled_to(call)))
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
        name, first = call.function, self._read(call, 0)
        if not any(tensor.is_floating_point() for tensor in tensors):
            _opaque(call, Why.INTEGERS)
        elif name == "embedding":
            self._embed(call, tensors, outputs[0])
        elif name in _CONVOLUTIONS or name in _TRANSPOSED or name == "linear" or _multiplies_by_matrix(call, shapes):
            self._mixing(call, tensors, shapes, outputs[0])
        elif name == "batch_norm" or name == "instance_norm":
            self._normalise(call, tensors, first, outputs[0])
        elif name == "prelu":
            self._prelu(call, tensors, first, outputs[0])
        elif name in _ELEMENTWISE:
            self._elementwise(call, tensors, shapes, outputs[0])
        elif name in _MOVEMENTS:
            self._movement(call, tensors, shapes, outputs)
        elif name in NORMS:
            self._normalise_all(call, tensors, first, outputs[0])
        elif name in REDUCTIONS:
            self._reduce(call, first, outputs[0])
        elif name in _CHANNELWISE or name == "pad":
            self._channelwise(call, first, outputs[0])
        elif name in _PRODUCTS:
            self._product(call, outputs[0])
        else:
            _opaque(call, Why.NO_RULE)
            if name in _SAME_SHAPE and first is not None:
                outputs[0].compact, outputs[0].layer = first.compact, first.layer

    def _read(self, call: Call, position: int) -> Value | None:
        """Return the value that a call reads at a position; None for weights."""
        operand = call.operands[position] if len(call.operands) > position else None
        return self.trace.values[operand] if operand is not None else None

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

    def _mixing(self, call: Call, tensors: list[Tensor], shapes: list[tuple[int, ...]], output: Value) -> None:
        """Rule for convolutions and linear layers."""
        inputs, spatial = self._read(call, 0), _CONVOLUTIONS.get(call.function, _TRANSPOSED.get(call.function, 0))
        dim = 1 if spatial else len(shapes[0]) - 1
        weights = self._weights(call, tensors)
        call.transposed = call.function in _TRANSPOSED or call.function in _MATRIX_PRODUCTS
        if weights is not None and weights.weight.flipped:
            call.transposed = not call.transposed
        slot = call.argument(1, "weight")
        if isinstance(slot, Slot):
            place = shapes[0] if call.function in _TRANSPOSED else output.shape
            call.macs = math.prod(place) // place[dim] * tensors[slot.position].numel()
        if spatial and len(shapes[0]) != spatial + 2:
            _opaque(call, Why.UNBATCHED)
            return
        output.compact = tuple(size if d == dim else 1 for d, size in enumerate(output.shape))
        if weights is None:
            _opaque(call, Why.FOREIGN_WEIGHTS)
            return
        call.weights, layer = weights, self._layer(weights.weight.name)
        way = weights.weight.way, call.transposed
        if way != self.ways.setdefault(weights.weight.name, way):
            self.trace.rigid.add(weights.weight.name)  # another layer makes something else of it
            _opaque(call, Why.FOREIGN_WEIGHTS)
            return
        call.whole = inputs is None or inputs.compact != along(shapes[0], dim)
        call.layer, output.layer, call.kind = layer, layer, "mixing"
        if spatial:
            call.groups = call.argument(6, "groups", 1)
            padding = call.argument(4, "padding", 0)
            call.padded = bool(padding == "same" or (padding != "valid" and any(_as_tuple(padding))))
            if call.transposed:
                call.padded = True  # kernels overlap, so that the sum of the weights differs from place to place
        if call.groups > 1 and call.groups == shapes[0][1] == output.shape[1] and inputs is not None and not call.whole:
            call.kind = "channelwise"
            call.maps[0, 0] = torch.arange(inputs.num_channels)

    def _embed(self, call: Call, tensors: list[Tensor], output: Value) -> None:
        """Rule for embeddings: a linear layer without an additive bias whose inputs, the words, all stay."""
        weight = self.steps.origin(tensors[1]) if call.argument(3, "max_norm") is None else None
        if weight is None or weight.steps or weight.behind or call.operands[0] is None:
            _opaque(call, Why.NO_RULE)
            return
        output.compact = along(output.shape, len(output.shape) - 1)
        call.kind, call.transposed, call.whole = "mixing", True, True
        call.weights = Weights(weight, None)
        call.layer = output.layer = self._layer(weight.name)

    def _product(self, call: Call, output: Value) -> None:
        """Rule for products of two tensors, as in attention: opaque on their own, but with known channels.

        A product over the channels of both keeps their heads; the product of heads with channels keeps the channels.
        """
        _opaque(call, Why.NO_RULE)
        left = self._read(call, 0)
        right = self._read(call, 2 if call.function == "scaled_dot_product_attention" else 1)
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

    def _weights(self, call: Call, tensors: list[Tensor]) -> Weights | None:
        """Return where the weight and the additive bias of a call come from; None if they cannot be followed."""
        slots = call.argument(1, "weight"), call.argument(2, "bias")
        if not isinstance(slots[0], Slot) or (call.function in _MATRIX_PRODUCTS and slots[0].position != 1):
            return None
        weight = self.steps.origin(tensors[slots[0].position])
        if weight is None:
            return None
        if isinstance(slots[1], Slot):
            bias = self.steps.origin(tensors[slots[1].position])
            return None if bias is None or bias.behind else Weights(weight, bias)
        return Weights(weight, self._place_for_bias(call, weight))

    def _place_for_bias(self, call: Call, weight: Origin) -> Origin | None:
        """Return where an additive bias could be added that a call does not have; None if it takes none."""
        owner, _, leaf = weight.name.rpartition(".")
        is_own = not weight.steps and not weight.behind and leaf in ("weight", "in_proj_weight")
        place = self.model.get_submodule(owner if is_own else call.module)
        name = leaf.replace("weight", "bias") if is_own else "bias"
        is_layer = is_own or isinstance(place, (nn.Linear, nn.modules.conv._ConvNd))
        if call.function in _MATRIX_PRODUCTS or not is_layer or name not in place._parameters:
            return None
        return Origin(f"{owner if is_own else call.module}.{name}".lstrip("."))

    def _layer(self, weight: str) -> str:
        """Return the name of the layer with a weight: its module's, if no other layer has that name."""
        module = re.sub(r"(^|\.)parametrizations\.\w+$", "", weight.rpartition(".")[0])
        name = module if module and self.layers.get(module, weight) == weight else weight
        self.layers[name] = weight
        return name

    def _owned(
        self, call: Call, tensors: list[Tensor], names: tuple[str, ...], positions: tuple[int, ...]
    ) -> str | None:
        """Return the module whose own parameters, under the same names, a call computes with; None if there is none."""
        found = set()
        for name, position in zip(names, positions, strict=True):
            slot = call.argument(position, name.removeprefix("in_proj_"))
            if isinstance(slot, Slot):
                owner = self.owner.get(id(tensors[slot.position]))
                found.add(owner[0] if owner is not None and owner[1] == name else None)
        (layer,) = found if len(found) == 1 else (None,)
        return layer

    def _normalise(self, call: Call, tensors: list[Tensor], first: Value | None, output: Value) -> None:
        """Rule for batch norm and instance norm."""
        names = ("running_mean", "running_var", "weight", "bias")
        if not any(isinstance(call.argument(p, n), Slot) for p, n in enumerate(names, 1)):
            call.layer = None
        else:
            call.layer = self._owned(call, tensors, names, (1, 2, 3, 4))
            if call.layer is None:
                _opaque(call, Why.FOREIGN_NORM)
                return
        if first is None or first.compact is None or first.compact != along(first.shape, 1):
            if first is not None:
                output.compact, output.layer = first.compact, first.layer
            _opaque(call, Why.NORM_DIMENSION)
            return
        self._same_channels(call, first, output)

    def _normalise_all(self, call: Call, tensors: list[Tensor], first: Value | None, output: Value) -> None:
        """Rule for norms whose statistics run over channels."""
        if first is None:
            _opaque(call, Why.READS_UNKNOWN)
            return
        output.compact, output.layer = first.compact, first.layer
        slots = parameters_of(call)
        owners = {self.owner.get(id(tensors[slot.position])) for slot in slots.values()}
        layers = {None if owner is None else owner[0] for owner in owners}
        names = {None if owner is None else owner[1] for owner in owners}
        groups = groups_of(call, first)
        if groups is None or names != set(slots) or len(layers) > 1:
            _opaque(call, Why.NORMALISES_ALL)
            return
        self._same_channels(call, first, output)
        call.kind, call.groups, call.layer = "normalising", groups, next(iter(layers), None)

    def _reduce(self, call: Call, first: Value | None, output: Value) -> None:
        """Rule for means, sums, norms and extremes, over places or over channels."""
        if first is None or first.compact is None:
            _opaque(call, Why.READS_UNKNOWN)
            return
        dims = reduced_dims(call, len(first.shape))
        channels = {dim for dim, size in enumerate(first.compact) if size > 1}
        if dims is None or (channels & set(dims) and (not channels <= set(dims) or call.function in ("amax", "amin"))):
            _opaque(call, Why.RUNS_OVER_CHANNELS)
            return
        if not channels and len(dims) == len(first.shape):
            _opaque(call, Why.READS_UNKNOWN)
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

    def _same_channels(self, call: Call, first: Value, output: Value) -> None:
        """Mark a call as channelwise, with the channels of its first operand as the channels of its output."""
        call.kind = "channelwise"
        output.compact, output.layer = first.compact, first.layer
        call.maps[0, 0] = torch.arange(first.num_channels)

    def _prelu(self, call: Call, tensors: list[Tensor], first: Value | None, output: Value) -> None:
        """Rule for PReLU."""
        slot = call.argument(1, "weight")
        owner = self.owner.get(id(tensors[slot.position])) if isinstance(slot, Slot) else None
        if first is None or first.compact is None or owner is None:
            _opaque(call, Why.FOREIGN_SLOPES)
            return
        if tensors[slot.position].numel() > 1 and first.compact != along(first.shape, 1):
            _opaque(call, Why.SLOPES_DIMENSION)
            return
        call.layer = owner[0]
        self._same_channels(call, first, output)

    def _channelwise(self, call: Call, first: Value | None, output: Value) -> None:
        """Rule for pooling, interpolation and padding beside the channels."""
        name = call.function
        if first is None or first.compact is None:
            _opaque(call, Why.READS_UNKNOWN)
            return
        compact = list(first.compact)
        if name == "pad":
            amounts, mode = call.argument(1, "pad"), call.argument(2, "mode", "constant")
            touched = [len(compact) - 1 - i // 2 for i, amount in enumerate(amounts) if amount]
            if mode == "constant" and call.argument(3, "value"):
                _opaque(call, Why.PADS_A_VALUE)
                return
            if any(compact[dim] > 1 for dim in touched):
                self._pad_channels(call, first, output)
                return
            call.padded = mode == "constant"
        elif any(size > 1 for size in compact[2:]) or len(compact) != len(output.shape):
            _opaque(call, Why.RUNS_OVER_CHANNELS)
            return
        elif "avg_pool" in name and "adaptive" not in name:
            call.padded = any(_as_tuple(call.argument(3, "padding", 0))) or bool(call.argument(6, "divisor_override"))
        output.compact, output.layer, call.kind = tuple(compact), first.layer, "channelwise"
        call.maps[0, 0] = torch.arange(first.num_channels)

    def _pad_channels(self, call: Call, first: Value, output: Value) -> None:
        """Rule for padding that adds channels of zeros, as in the shortcuts of ResNets for CIFAR."""
        beside = [[size for d, size in enumerate(value.shape) if d != first.dim] for value in (first, output)]
        if first.dim is None or call.argument(2, "mode", "constant") != "constant" or beside[0] != beside[1]:
            _opaque(call, Why.PADS_CHANNELS)
            return
        numbers = torch.arange(1, first.num_channels + 1).view(first.compact or ()).expand(first.shape)
        ids = _compressed(nn.functional.pad(numbers, call.argument(1, "pad")))
        output.compact, call.kind = tuple(ids.shape), "movement"
        call.maps[0, 0] = ids.reshape(-1) - 1

    def _elementwise(self, call: Call, tensors: list[Tensor], shapes: list[tuple[int, ...]], output: Value) -> None:
        """Rule for functions that compute entry by entry, with broadcasting."""
        known = [(k, value) for k in range(len(tensors)) if (value := self._read(call, k)) is not None]
        structured = [value for _, value in known if value.compact is not None]
        ndim = len(output.shape)
        if not structured or any(len(shape) > ndim for shape in shapes):
            _opaque(call, Why.READS_UNKNOWN)
            return
        compacts = [_aligned(value.compact or (), ndim) for value in structured]
        compact = tuple(max(sizes) for sizes in zip(*compacts, strict=True))
        numbers = {}
        for k, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
            value, aligned = self._read(call, k), _aligned(shape, ndim)
            if value is None:  # a parameter, a buffer or a tensor created during the pass
                part = tuple(size if compact[d] > 1 else 1 for d, size in enumerate(aligned))
                own = part[ndim - len(shape) :]
                is_foreign = any(size > 1 for size in part) and self.owner.get(id(tensor)) is None
                # A table may be as wide as the tensor beside it is asked to be.
                is_fitted = self.steps.origin(tensor) is None and any(v.measured for v in structured)
                if is_foreign and (sum(size > 1 for size in part) > 1 or is_fitted):
                    output.compact, output.layer = compact, structured[0].layer
                    _opaque(call, Why.READS_FOREIGN)
                    return
                value = self._constant(tensor, call, k, own)
                value.foreign = is_foreign
            elif value.compact is None:
                if any(aligned[d] > 1 for d in range(ndim) if compact[d] > 1):
                    output.compact, output.layer = compact, structured[0].layer
                    _opaque(call, Why.READS_UNKNOWN)
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
                _opaque(call, Why.DIMENSIONS_DIFFER)
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
            value = self._read(call, k)
            if not tensor.is_floating_point() and (value is None or call.function == "getitem"):
                sources.append(None)  # an index tensor
                places.append(tensor)
                continue
            if value is None:
                value = self._constant(tensor, call, k, self._beside(call, shapes[k]))
                value.foreign = value.parameter is None and value.num_channels > 1
            if value.compact is None:
                _opaque(call, Why.MOVES_UNKNOWN)
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
                _opaque(call, Why.MOVES_UNKNOWN)
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
        known = [self._read(call, k) for k in range(len(call.operands))]
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
        _opaque(call, Why.DIMENSIONS_DIFFER)
        return False

    def _at_nonlinearity(self, call: Call, output: Value) -> None:
        """Add a call of a nonlinearity to the trace, with its channel dimension."""
        if output.dim is None:
            # If unknown, the channels are assumed in dimension 1, or in the last one for token sequences.
            ndim = len(output.shape)
            dim = ndim - 1 if ndim == 3 else min(1, ndim - 1)
            if output.compact is None or output.num_channels > 1:
                _opaque(call, Why.READS_UNKNOWN)
                output.compact = along(output.shape, dim)
        else:
            dim = output.dim
        index, size = self.nonlinearities - 1, output.shape[dim]
        layer = output.layer if output.num_channels == size else None
        self.trace.nonlinearities.append(
            Nonlinearity(index, call.function, dim, size, layer, call.index, call.operands[0])
        )


def _opaque(call: Call, why: Why) -> None:
    """Mark a call as opaque, for the given reason."""
    call.kind, call.why, call.maps = "opaque", Reason(why, function=call.function), {}
    call.layer = call.weights = None


def _multiplies_by_matrix(call: Call, shapes: list[tuple[int, ...]]) -> bool:
    """Whether a call multiplies a tensor by a matrix that does not depend on the model's input."""
    is_product = call.function in _MATRIX_PRODUCTS and len(call.operands) == 2
    return is_product and call.operands[0] is not None and call.operands[1] is None and len(shapes[1]) == 2


def _cuts_at_zero(call: Call) -> bool:
    """Whether a call is a ReLU that is written as a clamp."""
    return call.kind == "elementwise" and call.function in ("clamp", "clamp_min") and call.argument(1, "min") == 0


def _pooled_to(call: Call) -> tuple[Any, ...]:
    """Return the output size of an adaptive pooling."""
    return _as_tuple(call.argument(1, "output_size"))


def along(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    """Return the compact shape of a tensor whose channels lie along dimension ``dim``."""
    return tuple(size if d == dim else 1 for d, size in enumerate(shape))


def _aligned(sizes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Return a shape with leading dimensions of size 1, so that it has ``ndim`` dimensions (as in broadcasting)."""
    return (1,) * (ndim - len(sizes)) + tuple(sizes)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    """Return a list or tuple as a tuple, and any other value as a tuple of one element."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _compressed(ids: Tensor) -> Tensor:
    """Cut every dimension along which all channel numbers are equal to size 1."""
    if not ids.numel():
        return ids
    for dim in range(ids.ndim):
        first = ids.narrow(dim, 0, 1)
        if ids.shape[dim] == 1 or ids.stride(dim) == 0 or bool((ids == first).all()):
            ids = first
    return ids
