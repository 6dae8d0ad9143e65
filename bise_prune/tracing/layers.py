"""Rules for the functions that layers call: what they do with channels, and whose parameters they compute with."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .functions import Slot
from .norms import groups_of, normalised_dims, parameters_of
from .origins import Origin, Weights
from .reasons import Reason, Why
from .record import Call, Trace, Value
from .weights import Steps

CONVOLUTIONS = {"conv1d": 1, "conv2d": 2, "conv3d": 3}
TRANSPOSED = {"conv_transpose1d": 1, "conv_transpose2d": 2, "conv_transpose3d": 3}
MATRIX_PRODUCTS = {"matmul", "mm"}


class LayerRules:
    """Determines what calls of layers do with channels, and names the layers.

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

    def read(self, call: Call, position: int) -> Value | None:
        """Return the value that a call reads at a position; None for weights."""
        operand = call.operands[position] if len(call.operands) > position else None
        return self.trace.values[operand] if operand is not None else None

    def multiply(self, call: Call, tensors: list[Tensor], shapes: list[tuple[int, ...]], output: Value) -> None:
        """Rule for convolutions and linear layers."""
        inputs, spatial = self.read(call, 0), CONVOLUTIONS.get(call.function, TRANSPOSED.get(call.function, 0))
        dim = 1 if spatial else len(shapes[0]) - 1
        weights = self._weights(call, tensors)
        call.transposed = call.function in TRANSPOSED or call.function in MATRIX_PRODUCTS
        if weights is not None and weights.weight.flipped:
            call.transposed = not call.transposed
        slot = call.argument(1, "weight")
        if isinstance(slot, Slot):
            place = shapes[0] if call.function in TRANSPOSED else output.shape
            call.macs = math.prod(place) // place[dim] * tensors[slot.position].numel()
        if spatial and len(shapes[0]) != spatial + 2:
            leave(call, Why.UNBATCHED)
            return
        output.compact = tuple(size if d == dim else 1 for d, size in enumerate(output.shape))
        if weights is None:
            leave(call, Why.FOREIGN_WEIGHTS)
            return
        call.weights, layer = weights, self._layer(weights.weight.name)
        way = weights.weight.way, call.transposed
        if way != self.ways.setdefault(weights.weight.name, way):
            self.trace.rigid.add(weights.weight.name)  # another layer makes something else of it
            leave(call, Why.FOREIGN_WEIGHTS)
            return
        call.whole = inputs is None or inputs.compact != along(shapes[0], dim)
        call.layer, output.layer, call.kind = layer, layer, "mixing"
        if spatial:
            call.groups = call.argument(6, "groups", 1)
            padding = call.argument(4, "padding", 0)
            call.padded = bool(padding == "same" or (padding != "valid" and any(as_tuple(padding))))
            if call.transposed:
                call.padded = True  # kernels overlap, so that the sum of the weights differs from place to place
        if call.groups > 1 and call.groups == shapes[0][1] == output.shape[1] and inputs is not None and not call.whole:
            call.kind = "channelwise"
            call.maps[0, 0] = torch.arange(inputs.num_channels)

    def embed(self, call: Call, tensors: list[Tensor], output: Value) -> None:
        """Rule for embeddings: a linear layer without an additive bias whose inputs, the words, all stay."""
        slot = call.argument(1, "weight")
        weight = self.steps.origin(tensors[slot.position]) if isinstance(slot, Slot) else None
        is_scaled = call.argument(3, "max_norm") is not None  # in place
        if weight is None or weight.steps or weight.behind or call.operands[0] is None or is_scaled:
            leave(call, Why.NO_RULE)
            return
        output.compact = along(output.shape, len(output.shape) - 1)
        call.kind, call.transposed, call.whole = "mixing", True, True
        call.weights = Weights(weight, None)
        call.layer = output.layer = self._layer(weight.name)

    def _weights(self, call: Call, tensors: list[Tensor]) -> Weights | None:
        """Return where the weight and the additive bias of a call come from; None if they cannot be followed."""
        slots = call.argument(1, "weight"), call.argument(2, "bias")
        if not isinstance(slots[0], Slot) or (call.function in MATRIX_PRODUCTS and slots[0].position != 1):
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
        if call.function in MATRIX_PRODUCTS or not is_layer or name not in place._parameters:
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

    def normalise(self, call: Call, tensors: list[Tensor], first: Value | None, output: Value) -> None:
        """Rule for batch norm and instance norm."""
        names = ("running_mean", "running_var", "weight", "bias")
        if not any(isinstance(call.argument(p, n), Slot) for p, n in enumerate(names, 1)):
            call.layer = None
        else:
            call.layer = self._owned(call, tensors, names, (1, 2, 3, 4))
            if call.layer is None:
                leave(call, Why.FOREIGN_NORM)
                return
        if first is None or first.compact is None or first.compact != along(first.shape, 1):
            if first is not None:
                output.compact, output.layer = first.compact, first.layer
            leave(call, Why.NORM_DIMENSION)
            return
        self.same_channels(call, first, output)

    def normalise_all(self, call: Call, tensors: list[Tensor], first: Value | None, output: Value) -> None:
        """Rule for norms whose statistics run over channels."""
        if first is None:
            leave(call, Why.READS_UNKNOWN)
            return
        output.compact, output.layer = first.compact, first.layer
        if call.function == "normalize" and first.compact is not None:
            if all(first.compact[dim] == 1 for dim in normalised_dims(call, len(first.shape))):
                self.same_channels(call, first, output)
                call.padded = True  # a constant is divided by a multiple of itself
                return
        slots = parameters_of(call)
        owners = {self.owner.get(id(tensors[slot.position])) for slot in slots.values()}
        layers = {None if owner is None else owner[0] for owner in owners}
        names = {None if owner is None else owner[1] for owner in owners}
        groups = groups_of(call, first)
        if groups is None or names != set(slots) or len(layers) > 1:
            leave(call, Why.NORMALISES_ALL)
            return
        self.same_channels(call, first, output)
        call.kind, call.groups, call.layer = "normalising", groups, next(iter(layers), None)

    def same_channels(self, call: Call, first: Value, output: Value) -> None:
        """Mark a call as channelwise, with the channels of its first operand as the channels of its output."""
        call.kind = "channelwise"
        output.compact, output.layer = first.compact, first.layer
        call.maps[0, 0] = torch.arange(first.num_channels)

    def prelu(self, call: Call, tensors: list[Tensor], first: Value | None, output: Value) -> None:
        """Rule for PReLU."""
        slot = call.argument(1, "weight")
        owner = self.owner.get(id(tensors[slot.position])) if isinstance(slot, Slot) else None
        if first is None or first.compact is None or owner is None:
            leave(call, Why.FOREIGN_SLOPES)
            return
        if tensors[slot.position].numel() > 1 and first.compact != along(first.shape, 1):
            leave(call, Why.SLOPES_DIMENSION)
            return
        call.layer = owner[0]
        self.same_channels(call, first, output)


def leave(call: Call, why: Why) -> None:
    """Mark a call as opaque, for the given reason."""
    call.kind, call.why, call.maps = "opaque", Reason(why, function=call.function), {}
    call.layer = call.weights = None


def multiplies_by_matrix(call: Call, shapes: list[tuple[int, ...]]) -> bool:
    """Whether a call multiplies a tensor by a matrix that does not depend on the model's input."""
    is_product = call.function in MATRIX_PRODUCTS and len(call.operands) == 2
    return is_product and call.operands[0] is not None and call.operands[1] is None and len(shapes[1]) == 2


def along(shape: tuple[int, ...], dim: int) -> tuple[int, ...]:
    """Return the compact shape of a tensor whose channels lie along dimension ``dim``."""
    return tuple(size if d == dim else 1 for d, size in enumerate(shape))


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Return a list or tuple as a tuple, and any other value as a tuple of one element."""
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
