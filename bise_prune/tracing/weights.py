"""Weights of layers: parameters, or what the forward pass makes of parameters alone, such as by weight normalisation.

A weight may be an expression: standardised, divided by its spectral norm, the sum of a matrix and a product of two
narrow ones. Calls on parameters alone are recorded as steps. If a parameter of the weight's shape goes into the
expression, and nothing else reads it, the slim network stores the weight in that parameter and skips the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .functions import is_in_place, replace_tensors, tensors_in
from .record import Slot, Trace, slot_filled

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
            self._known[key] = self._evaluated({name: tensor.detach().double() for name, tensor in given.items()})
        return self._known[key]

    def _evaluated(self, given: Mapping[str, Tensor]) -> Tensor:
        """Run the steps in float64."""
        results: dict[int, list[Tensor]] = {}

        def found(source: Source) -> Tensor:
            if isinstance(source, str):
                return given[source].clone()
            if isinstance(source, tuple):
                return results[source[0]][source[1]]
            return source.double() if source.is_floating_point() else source

        with torch.no_grad():
            for index, step in self.steps.items():
                tensors = [found(source) for source in step.sources]
                if step.function in _CASTS:
                    results[index] = tensors[:1]
                    continue
                args, kwargs = replace_tensors((step.args, step.kwargs), partial(slot_filled, tensors), Slot)
                results[index] = list(tensors_in([step.run(*args, **kwargs)]))
            return found(self.result)


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


class Steps:
    """Records calls on parameters and constants alone, and what reads parameters and the results of such calls.

    Args:
        owner: id of a parameter or buffer -> name of the module that it belongs to and its name in that module; None
            for tensors that several modules share.
        shapes: full name of each parameter -> its shape.

    Attributes:
        readers: a parameter's or buffer's full name, or (step, position) -> what reads it: indices of calls in the
            trace, and -1 - index of a step.
    """

    def __init__(self, owner: Mapping[int, tuple[str, str] | None], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.owner, self.shapes = owner, shapes
        self.steps: list[Step] = []
        self.readers: dict[Source, set[int]] = {}
        self._made: dict[int, tuple[int, int]] = {}
        self._alive: list[Tensor] = []  # as long as a tensor lives, no other one has its id

    def source(self, tensor: Tensor) -> Source:
        """Return where a tensor comes from that does not depend on the model's input."""
        if id(tensor) in self._made:
            return self._made[id(tensor)]
        owner = self.owner.get(id(tensor))
        return tensor if owner is None else f"{owner[0]}.{owner[1]}".lstrip(".")

    def read(self, tensors: Iterable[Tensor], reader: int) -> None:
        """Note that a call of the trace, or -1 - index of a step, reads tensors."""
        for tensor in tensors:
            source = self.source(tensor)
            if not isinstance(source, Tensor):
                self.readers.setdefault(source, set()).add(reader)

    def note(
        self,
        key: tuple[str, int],
        counted: bool,
        run: Callable[..., Any],
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        sources: tuple[Source, ...],
        results: list[Tensor],
        is_part: bool,
    ) -> None:
        """Record a call that has just run, if it makes something of parameters."""
        if all(isinstance(source, Tensor) for source in sources):
            return
        changes_in_place = key[0] == "setitem" or is_in_place(run)
        given = {id(tensor) for tensor in tensors_in([*arguments[0], *arguments[1].values()])}
        fresh = [result for result in results if changes_in_place or id(result) not in given]
        if not fresh:
            return
        positions = iter(range(len(sources)))
        args, kwargs = replace_tensors(arguments, lambda _: Slot(next(positions)))
        shapes = tuple(tuple(result.shape) for result in results)
        for source in sources:
            if not isinstance(source, Tensor):
                self.readers.setdefault(source, set()).add(-1 - len(self.steps))
        for place, result in enumerate(results):
            self._made[id(result)] = (len(self.steps), place)
            self._alive.append(result)
        self.steps.append(Step(key[0], key[1] if counted else None, run, args, kwargs, sources, shapes, is_part))

    def origin(self, tensor: Tensor) -> Origin | None:
        """Return where a layer's weight comes from; None if no parameter can hold it."""
        source, shape, behind, flipped = self.source(tensor), tuple(tensor.shape), set[int](), False
        while isinstance(source, tuple) and (swaps := self.steps[source[0]].transposes) is not None:
            behind.add(source[0])
            flipped ^= swaps
            shape = shape[::-1] if swaps else shape
            (source,) = self.steps[source[0]].sources
        if isinstance(source, str):
            return Origin(source, {}, source, {}, frozenset(behind), flipped)
        path = None if isinstance(source, Tensor) else self._path(source, shape)
        if path is None:
            return None
        name, places = path
        steps = {index: self.steps[index] for index in sorted(self._before(source))}
        return Origin(name, steps, source, places, frozenset(behind), flipped)

    def _before(self, source: Source) -> set[int]:
        """The steps that a result is made by."""
        found, waiting = set[int](), [source]
        while waiting:
            source = waiting.pop()
            if isinstance(source, tuple) and source[0] not in found:
                found.add(source[0])
                waiting += self.steps[source[0]].sources
        return found

    def _path(self, source: Source, shape: tuple[int, ...]) -> tuple[str, dict[int, int]] | None:
        """A parameter that a result is made of, if possible of the given shape, and how the steps lead to it."""
        seen = set[int]()
        waiting: list[tuple[Source, dict[int, int]]] = [(source, {})]
        found: tuple[str, dict[int, int]] | None = None
        while waiting:
            source, places = waiting.pop(0)
            if isinstance(source, str) and self.shapes.get(source) == shape:
                return source, places
            is_whole = not any(self.steps[index].is_part for index in places)
            if isinstance(source, str) and source in self.shapes and found is None and is_whole:
                found = source, places
            if isinstance(source, tuple) and source[0] not in seen:
                seen.add(source[0])
                before = self.steps[source[0]].sources
                waiting += [(operand, {**places, source[0]: k}) for k, operand in enumerate(before)]
        return found


def folds(trace: Trace, steps: Steps) -> dict[str, Fold]:
    """Return how the weights of layers that are made in steps are read in the slim network.

    Names of parameters that must keep their shape, since something else reads them or what is made of them, are added
    to the trace.

    Args:
        trace: the trace, complete but for these.
        steps: the steps of the same pass, and what read their results.
    """
    found = {}
    for layer, calls in trace.calls_by_layer.items():
        origins = [o for call in calls if call.weights is not None for o in call.weights.origins]
        inside = {-1 - index for o in origins for index in (*o.steps, *o.behind)} | {call.index for call in calls}
        made = {index: step for o in origins for index, step in o.steps.items()}
        path = {index: place for o in origins for index, place in o.path.items()}
        for origin in origins:
            if not _read_inside(steps, origin.name, inside):
                trace.rigid.add(origin.name)
        skipped: dict[int, tuple[Step, int]] = {}
        done = {call.index for call in calls} | {-1 - index for o in origins for index in o.behind}
        for index in sorted(made, reverse=True):
            readers = set().union(*(steps.readers.get((index, k), set()) for k in range(len(made[index].shapes))))
            if readers <= done:
                done.add(-1 - index)
                if made[index].count is not None:  # others run on what the skipped ones pass on
                    skipped[index] = (made[index], path.get(index, 0))
        if made and not {o.name for o in origins} & trace.rigid:
            names = {name for step in made.values() for name in step.sources if isinstance(name, str)}
            kept = {o.name for o in origins}
            spent = frozenset(name for name in names - kept if steps.readers[name] <= done)
            found[layer] = Fold(skipped, spent)
    return found


def _read_inside(steps: Steps, name: Source, inside: set[int]) -> bool:
    """Whether only some readers read a parameter and what is made of it."""
    waiting = [name]
    while waiting:
        for reader in steps.readers.get(waiting.pop(), ()):
            if reader not in inside:
                return False
            if reader < 0:
                waiting += [(-1 - reader, place) for place in range(len(steps.steps[-1 - reader].shapes))]
    return True
