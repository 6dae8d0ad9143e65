"""Where the weights of layers come from: parameters, or what the forward pass makes of parameters alone.

A weight may be standardised, divided by its spectral norm, or the sum of a matrix and a product of two narrow ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .functions import Slot, replace_tensors, slot_filled, tensors_in

_CASTS = {"to", "float", "double", "half", "bfloat16", "type", "type_as"}
_TRANSPOSES = {"t", "transpose", "permute", "swapaxes", "swapdims", "adjoint", "get", "contiguous", "detach"}

# What a step reads: a parameter or buffer by its full name, a result of an earlier step as (step, position), or else a
# constant tensor.
Source = str | tuple[int, int] | Tensor


@dataclass(frozen=True)
class Step:
    """A call of a torch function on parameters and constants alone.

    Attributes:
        function: canonical name of the function.
        count: number of counted calls of that name before this call; None if it is not counted.
        run: the function itself, to be called with ``args`` and ``kwargs``.
        args: positional arguments, with a :class:`Slot` in place of each tensor.
        kwargs: keyword arguments, with a :class:`Slot` in place of each tensor.
        sources: what is in these places.
        shapes: shapes of the results.
        is_part: whether the call is one of several that stand for one in the code, which may look at its operands.
    """

    function: str
    count: int | None
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sources: tuple[Source, ...]
    shapes: tuple[tuple[int, ...], ...]
    is_part: bool

    @property
    def transposes(self) -> bool | None:
        """Whether the step exchanges rows and columns of a matrix (True), or returns it unchanged (False)."""
        if self.function not in _TRANSPOSES or len(self.sources) != 1 or [len(shape) for shape in self.shapes] != [2]:
            return None
        for swaps, shape in ((False, self.shapes[0]), (True, self.shapes[0][::-1])):
            numbers = torch.arange(math.prod(shape)).view(shape)
            args, kwargs = replace_tensors((self.args, self.kwargs), partial(slot_filled, [numbers]), Slot)
            result = self.run(*args, **kwargs)
            if torch.equal(result, numbers.t() if swaps else numbers):
                return swaps
        return None


@dataclass(frozen=True)
class Origin:
    """Where the weight or the additive bias of a layer comes from.

    Attributes:
        name: full name of the parameter that holds it, or that the slim network stores it in.
        steps: index of each step that makes it of parameters -> the step; empty if the parameter is read as it is.
        result: what the steps return in the end.
        path: index of each step between the parameter and the result -> position of the operand that leads there.
        behind: indices of transposes behind the result, which run in the slim network as well.
        flipped: whether these exchange rows and columns in all.
    """

    name: str
    steps: Mapping[int, Step] = field(default_factory=dict)
    result: Source = ""
    path: Mapping[int, int] = field(default_factory=dict)
    behind: frozenset[int] = frozenset()
    flipped: bool = False
    _known: dict[Any, Tensor] = field(default_factory=dict, compare=False, repr=False)

    @property
    def way(self) -> object:
        """What the parameter goes through, in a form that can be compared with that of another call."""
        order = {index: place for place, index in enumerate(self.steps)}

        def name(source: Source) -> object:
            if isinstance(source, tuple):
                return order[source[0]], source[1]
            return id(source) if isinstance(source, Tensor) else source

        steps = [
            (step.function, repr(step.args), repr(step.kwargs), [name(source) for source in step.sources])
            for step in self.steps.values()
        ]
        return self.flipped, name(self.result), steps

    def tensor(self, model: nn.Module) -> Tensor | None:
        """Return the tensor, as the parameter is or will be shaped; in float64 if it is the result of steps.

        Args:
            model: the dense network; its parameters are read.
        """
        if not self.steps:
            owner, _, leaf = self.name.rpartition(".")
            found = getattr(model.get_submodule(owner), leaf, None)
            return found if isinstance(found, Tensor) else None
        names = {name for step in self.steps.values() for name in step.sources if isinstance(name, str)}
        given = {name: _tensor_of(model, name) for name in sorted(names)}
        key = tuple((id(tensor), tensor._version) for tensor in given.values())
        if key not in self._known:
            self._known.clear()
            self._known[key] = self._evaluated({name: _in_double(tensor) for name, tensor in given.items()})
        return self._known[key]

    def _evaluated(self, given: Mapping[str, Tensor]) -> Tensor:
        """Run the steps in float64."""
        results: dict[int, list[Tensor]] = {}
        device = next(iter(given.values())).device

        def found(source: Source) -> Tensor:
            if isinstance(source, str):
                return given[source].clone()
            if isinstance(source, tuple):
                return results[source[0]][source[1]]
            return _in_double(source.to(device))

        with torch.no_grad():
            for index, step in self.steps.items():
                tensors = [found(source) for source in step.sources]
                if step.function in _CASTS:
                    results[index] = tensors[:1]
                    continue
                args, kwargs = replace_tensors((step.args, step.kwargs), partial(slot_filled, tensors), Slot)
                results[index] = list(tensors_in([step.run(*args, **kwargs)]))
            return found(self.result)


def _in_double(tensor: Tensor) -> Tensor:
    """Return a tensor in float64, if it holds no whole numbers."""
    return tensor.detach().double() if tensor.is_floating_point() else tensor.detach()


def _tensor_of(model: nn.Module, name: str) -> Tensor:
    """Return a parameter or buffer by its full name."""
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(owner), leaf)
    return tensor


@dataclass(frozen=True)
class Weights:
    """The weight and the additive bias that a convolution or linear layer computes with.

    Attributes:
        weight: origin of the weight.
        bias: origin of the additive bias, whose parameter may be None; None if there cannot be one.
    """

    weight: Origin
    bias: Origin | None

    @property
    def origins(self) -> tuple[Origin, ...]:
        """The origins of both."""
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def of(self, model: nn.Module) -> Tensor:
        """Return the weight as ``model`` has it; see :meth:`Origin.tensor`."""
        weight = self.weight.tensor(model)
        assert weight is not None
        return weight

    def bias_of(self, model: nn.Module) -> Tensor | None:
        """Return the additive bias as ``model`` has it, if it has one."""
        return None if self.bias is None else self.bias.tensor(model)


@dataclass(frozen=True)
class Fold:
    """How the slim network reads the weights of a layer that are made in steps: from parameters, without the steps.

    Attributes:
        skipped: index of each step that is skipped -> the step and the position of the operand that it passes on.
        spent: names of parameters and buffers that only these steps read.
    """

    skipped: Mapping[int, tuple[Step, int]]
    spent: frozenset[str]
