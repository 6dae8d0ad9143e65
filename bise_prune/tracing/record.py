"""The record of a forward pass: a graph of calls and values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from .functions import SCALES
from .reasons import Reason

# What a call does with channels: "mixing" computes each output channel from all input channels of its group
# (convolution, linear layer), "channelwise" and "elementwise" from the same channel of each operand, the latter entry
# by entry; "movement" copies entries; "opaque" is not understood.
Kind = Literal["mixing", "channelwise", "elementwise", "movement", "opaque"]


class Slot(NamedTuple):
    """Stands for the ``position``-th tensor among a call's arguments."""

    position: int


@dataclass
class Value:
    """A tensor of the forward pass.

    Attributes:
        index: position in :attr:`Trace.values`.
        shape: its shape.
        compact: its shape with 1 where all entries along a dimension belong to one channel; None = unknown.
        layer: the layer that produces these channels, if it is one; for a parameter the module that owns it.
        parameter: full name, if this is a parameter or buffer read by a function other than its layer's own.
        full: whether its extent beside the channels is the data's own; False behind a global pooling.
        measured: whether Python asked for its size.
        call: index of the call that returns it; None for inputs and parameters.
        readers: indices of the calls that read it, in order, with repetition.
    """

    index: int
    shape: tuple[int, ...]
    compact: tuple[int, ...] | None = None
    layer: str | None = None
    parameter: str | None = None
    full: bool = True
    measured: bool = False
    call: int | None = None
    readers: list[int] = field(default_factory=list)

    @property
    def num_channels(self) -> int:
        """Channels that can be told apart; 1 where nothing is known."""
        return math.prod(self.compact) if self.compact is not None else 1

    @property
    def dim(self) -> int | None:
        """The channel dimension, if there is exactly one."""
        if self.compact is None:
            return None
        dims = [dim for dim, size in enumerate(self.compact) if size > 1]
        return dims[0] if len(dims) == 1 else None


@dataclass
class Call:
    """A torch function that returned a tensor.

    Attributes:
        index: position in :attr:`Trace.calls`.
        function: canonical name, e.g. "add" for ``+=``.
        count: how many calls of that name came before.
        kind: what it does with channels.
        run: the function itself, with ``args`` and ``kwargs``, in which :class:`Slot` stands for tensors.
        operands: indices of the values read, in the order of the tensors among the arguments; None = a weight.
        outputs: indices of the values returned.
        maps: (operand position, output position) -> for each output channel the operand channel it is made of; -1 none.
        layer: the module that owns the weights, if the call has any and that module alone owns them.
        groups: of a mixing call; transposed convolutions have ``transposed``.
        whole: whether a mixing call reads a tensor whose channels are not its inputs, so that it needs all of them.
        padded: whether the borders of a constant input would differ from its inside.
        module: the innermost module that was running.
        macs: multiply-accumulates of a convolution or linear layer, for the whole example batch.
        why: for an opaque call, what is not understood.
    """

    index: int
    function: str
    count: int
    kind: Kind
    run: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operands: tuple[int | None, ...]
    outputs: tuple[int, ...] = ()
    maps: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    layer: str | None = None
    groups: int = 1
    transposed: bool = False
    padded: bool = False
    whole: bool = False
    module: str = ""
    macs: int = 0
    why: Reason | None = None
    _identities: dict[tuple[int, int], bool] = field(default_factory=dict)

    def keeps(self, operand: int, output: int = 0) -> bool:
        """Whether an output has the channels of an operand, one to one and in order."""
        key = (operand, output)
        if key not in self._identities:
            mapping = self.maps.get(key)
            same = mapping is not None and torch.equal(mapping, torch.arange(len(mapping)))
            self._identities[key] = same
        return self._identities[key]

    @property
    def key(self) -> tuple[str, int]:
        """By which a running forward pass finds the call."""
        return self.function, self.count

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


@dataclass(frozen=True)
class Nonlinearity:
    """A nonlinearity of the forward pass, the ``index``-th; ``layer`` produces its channels, if one layer does."""

    index: int
    function: str
    dim: int
    num_channels: int
    layer: str | None
    call: int


@dataclass
class Trace:
    """The record of one forward pass.

    Attributes:
        calls: in order of execution.
        values: every tensor, in order of appearance.
        nonlinearities: in order of execution.
        inputs: values that the model is given.
        outputs: values that the model returns.
        logits: the value of the logits; None where they are not made by a function (a model that returns its input).
        unused: modules with weights of which none was read (auxiliary heads); not those within another such module.
        totals: function name -> counted calls, those on constants included.
        rigid: names of parameters whose shape must stay, since a function reads them that is not their layer's own.
    """

    calls: list[Call] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    nonlinearities: list[Nonlinearity] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    logits: int | None = None
    totals: dict[str, int] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    rigid: set[str] = field(default_factory=set)

    @property
    def scales(self) -> set[int]:
        """Indices of sigmoids that only scale another tensor (squeeze-and-excite)."""
        found = set()
        for n in self.nonlinearities:
            (output,) = self.calls[n.call].outputs
            readers = [self.calls[reader] for reader in self.values[output].readers]
            if n.function in SCALES and readers and all(_multiplies(reader) for reader in readers):
                found.add(n.index)
        return found

    @property
    def frozen(self) -> set[str]:
        """Layers whose weights must stay as they are, since a function reads them that is not the layer's own."""
        return {name.rpartition(".")[0] for name in self.rigid}

    @property
    def first_fork(self) -> int | None:
        """The call that first read the first value which two calls read; None in a plain chain."""
        forks = [value.readers[0] for value in self.values if not value.parameter and len(value.readers) > 1]
        return min(forks, default=None)

    @cached_property
    def call_of(self) -> dict[tuple[str, int], Call]:
        """Key -> the counted call that has it; once the pass is over."""
        # A call that is not counted has the key of the next one that is, which takes its place here.
        return {call.key: call for call in self.calls}

    def calls_of(self, layer: str) -> list[Call]:
        """The calls that use a module's own weights, in order."""
        return self.calls_by_layer.get(layer, [])

    @cached_property
    def calls_by_layer(self) -> dict[str, list[Call]]:
        """Module name -> the calls that use its own weights, in order; once the pass is over."""
        table: dict[str, list[Call]] = {}
        for call in self.calls:
            if call.layer is not None:
                table.setdefault(call.layer, []).append(call)
        return table

    @property
    def head(self) -> Call | None:
        """The mixing call whose channels are the logits, if there is one: the classifier."""
        value = self.logits
        while value is not None and (index := self.values[value].call) is not None:
            call = self.calls[index]
            if call.kind == "mixing":
                return call
            tensors = [operand for operand in call.operands if operand is not None]
            same = call.kind != "opaque" and len(tensors) == 1
            if not (same and call.keeps(0) and self.values[tensors[0]].num_channels == len(call.maps[0, 0])):
                return None
            value = tensors[0]
        return None


def _multiplies(call: Call) -> bool:
    return call.function == "mul" and call.kind == "elementwise" and len(set(call.operands)) == 2
