"""The tracer: a mode that watches a forward pass and records its calls and tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from .activations import compose_activations
from .attention import attentions_in
from .functions import NONLINEARITIES, CallCounter, Slot, replace_tensors, tensors_in
from .layers import along
from .products import PRODUCTS, counted_product
from .record import Call, Trace, Value
from .rules import ChannelRules
from .running import Inputs, evaluating, logits_of, output_tensors, run
from .weights import Steps, folds

# Functions that read the metadata of a tensor, but not its entries.
_METADATA = {
    "size", "dim", "ndimension", "numel", "nelement", "len", "stride", "storage_offset", "element_size", "data_ptr",
    "is_floating_point", "is_complex", "is_signed", "is_contiguous", "is_same_size", "is_shared", "is_pinned",
    "get_device", "type", "dense_dim", "sparse_dim", "requires_grad", "register_hook", "is_inference", "is_conj",
    "is_neg", "has_names", "reduce_ex", "deepcopy", "hash", "result_type", "can_cast",
}  # fmt: skip
_FRESH = {"new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"}  # these read its dtype and device alone
_PROPERTIES = {
    value.__get__
    for value in vars(torch._C.TensorBase).values()
    if hasattr(value, "__get__") and hasattr(value, "__set__")
}
_SHAPE: Any = vars(torch._C.TensorBase)["shape"]


def trace(model: nn.Module, example_inputs: Inputs) -> Trace:
    """Record one forward pass of ``model`` in eval mode, without gradients; the model is not changed.

    Language models take other paths for inputs without padding and for single tokens, but not while they are exported.
    So a network that reads integers runs as exporters see it, if it does.

    Args:
        model: any network that runs in Python.
        example_inputs: its input(s), batch first.

    Returns:
        The trace: a graph of calls and values.

    Raises:
        ModelError: part of the network is TorchScript, which runs outside of Python.
    """
    scripted = [name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripted:
        raise ModelError(
            f"'{scripted[0] or type(model).__name__}' is a TorchScript module, in which no function call can be seen: "
            "use the Python module that it was made of"
        )
    if any(not tensor.is_floating_point() for tensor in tensors_in([example_inputs])):
        with suppress(Exception):  # its own code may raise anything while it is exported
            return _recorded(model, example_inputs, as_exported=True)
    return _recorded(model, example_inputs, as_exported=False)


def _recorded(model: nn.Module, example_inputs: Inputs, as_exported: bool) -> Trace:
    """Record one forward pass, as exporters see it or as it is."""
    tracer = _Tracer(model, as_exported)
    with evaluating(model), torch.no_grad():
        inputs = tracer.enter(example_inputs)
        with tracer, _noting_modules(model, tracer.modules):
            output = run(model, inputs)
    tracer.leave(output)
    tracer.trace.unused = _unused(model, [name for name in tracer.steps.readers if isinstance(name, str)])
    return tracer.trace


def _unused(model: nn.Module, used: Iterable[str]) -> list[str]:
    """Return the outermost modules with parameters of which none was read."""
    busy = {name[:i] for name in used for i, letter in enumerate(name) if letter == "."}
    idle: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{other}.") for other in idle)
        if name and name not in busy and not inside and next(module.parameters(), None) is not None:
            idle.append(name)
    return idle


@contextmanager
def _noting_modules(model: nn.Module, path: list[str]) -> Iterator[None]:
    """While active, keep the names of the running modules in ``path``, the innermost last."""
    handles = []
    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: path.append(name)))
            handles.append(module.register_forward_hook(lambda *_: _drop_last(path), always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _drop_last(path: list[str]) -> None:
    """Remove the innermost module name."""
    path.pop()


class _Tracer(CallCounter):
    """Mode that records calls and values in ``trace`` and applies the channel rules to each call."""

    def __init__(self, model: nn.Module, as_exported: bool) -> None:
        super().__init__(as_exported)
        self.trace = Trace(as_exported=as_exported)
        self.token = object()  # tensors that the model keeps may still be marked by an earlier trace
        self.modules: list[str] = []
        self.owner: dict[int, tuple[str, str] | None] = {}
        for name, module in model.named_modules():
            for leaf, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                # A tensor that several modules share has no owner, and calls that use it are not followed.
                self.owner[id(tensor)] = None if id(tensor) in self.owner else (name, leaf)
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self.steps = Steps(self.owner, shapes)
        self.rules = ChannelRules(self.trace, self.owner, self.steps, model)

    def enter(self, inputs: Inputs) -> Any:
        """Return copies of the model's inputs that are marked as values of the trace."""

        def enter_one(tensor: Tensor) -> Tensor:
            fresh = tensor.detach().clone()
            value = self._value(fresh)
            self.trace.inputs.append(value.index)
            if fresh.is_floating_point() and fresh.ndim >= 2:  # never pruned, so any dimension is safe
                value.compact = along(value.shape, 2 if fresh.ndim == 3 else 1)
            return fresh

        return replace_tensors(dict(inputs) if isinstance(inputs, Mapping) else inputs, enter_one)

    def leave(self, output: Any) -> None:
        """Complete the trace with the model's output and the parameters whose shape must stay."""
        marks = [self._mark(tensor) for tensor in output_tensors(output)]
        self.trace.outputs = [value for value in dict.fromkeys(marks) if value is not None]
        self.trace.logits = self._mark(logits_of(output))
        self.trace.totals = dict(self.counts)
        self._find_rigid()
        frozen = self.trace.frozen
        for call in self.trace.calls:
            call.whole |= call.kind == "mixing" and call.layer in frozen
        compose_activations(self.trace)
        self.trace.attentions = attentions_in(self.trace)

    def _find_rigid(self) -> None:
        """Complete the trace with the parameters whose shape must stay, and with folds of weights."""
        own: dict[int, set[str]] = {}
        for call in self.trace.calls:
            if call.layer is not None:
                own[call.index] = {call.layer}
            if call.weights is not None:
                own[call.index] |= {origin.name for origin in call.weights.origins}
        for constant in self.trace.values:
            if constant.parameter is not None:
                own.setdefault(constant.readers[0], set()).add(constant.parameter)
        self.trace.folds = folds(self.trace, self.steps)
        for call in self.trace.calls:
            for origin in () if call.weights is None else call.weights.origins:
                for index in origin.behind:
                    own.setdefault(-1 - index, set()).add(origin.name)
        for layer, fold in self.trace.folds.items():
            weights = {origin.name for origin in self.trace.origins_of(layer)}
            for index in fold.skipped:
                own.setdefault(-1 - index, set()).update(weights | fold.spent)
        for name, readers in self.steps.readers.items():
            if not isinstance(name, str):
                continue
            for index in readers:
                if not {name, name.rpartition(".")[0]} & own.get(index, set()):
                    self.trace.rigid.add(name)
        for layer, calls in self.trace.calls_by_layer.items():
            if len({call.function == "embedding" for call in calls}) > 1:  # words that are also compared with results
                self.trace.rigid.update(origin.name for origin in self.trace.origins_of(layer))
        frozen = self.trace.frozen
        self.trace.folds = {layer: fold for layer, fold in self.trace.folds.items() if layer not in frozen}

    def called(
        self,
        key: tuple[str, int],
        counted: bool,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        name, count = key
        self.rules.nonlinearities += name in NONLINEARITIES  # also counted on constants, e.g. position tables
        tensors = list(tensors_in([*args, *kwargs.values()]))
        operands = tuple(self._operand(tensor) for tensor in tensors)
        shapes = [tuple(tensor.shape) for tensor in tensors]
        sources = tuple(self.steps.source(tensor) for tensor in tensors)
        index = len(self.trace.calls)
        output, macs = counted_product(func, args, kwargs) if name in PRODUCTS else (func(*args, **kwargs), 0)
        results = list(tensors_in([output]))
        if name == "setitem" and tensors:  # it changes its first argument in place and returns nothing
            results = tensors[:1]
        traced = any(operand is not None for operand in operands)
        if not results and (name in _METADATA or func in _PROPERTIES):
            if name == "size" or func == _SHAPE.__get__:
                for operand in operands:
                    if operand is not None:
                        self.trace.values[operand].measured = True
            return output
        if not traced or name in _FRESH:
            self.steps.note(key, counted, func, (args, kwargs), sources, results, self.depth > 0)
            return output
        self.steps.read((tensor for tensor, operand in zip(tensors, operands, strict=True) if operand is None), index)
        positions = iter(range(len(tensors)))
        slots = replace_tensors((args, kwargs), lambda _: Slot(next(positions)))
        call = Call(index, name, count, "opaque", func, slots[0], slots[1], operands, tuple(shapes), macs=macs)
        self.trace.calls.append(call)
        for operand in operands:
            if operand is not None:
                self.trace.values[operand].readers.append(call.index)
        values = [self._value(result, call) for result in results]
        call.outputs = tuple(value.index for value in values)
        call.module = self.modules[-1] if self.modules else ""
        call.counted = counted
        self.rules.apply(call, tensors, shapes, values)
        if call.why is not None and call.module:
            call.why = call.why.inside(call.module)
        return output

    # -- values ------------------------------------------------------------------------------------

    def _value(self, tensor: Tensor, call: Call | None = None) -> Value:
        """Add a value for a tensor and mark the tensor with it."""
        value = Value(len(self.trace.values), tuple(tensor.shape), call=call.index if call else None)
        self.trace.values.append(value)
        tensor._bise_value = (self.token, value.index)  # type: ignore[attr-defined]
        return value

    def _operand(self, tensor: Tensor) -> int | None:
        """Return the value of a tensor; None for weights and for tensors that do not depend on the inputs."""
        return None if id(tensor) in self.owner else self._mark(tensor)

    def _mark(self, tensor: Tensor) -> int | None:
        """Return the index of the value that this tracer marked a tensor with, if there is one."""
        token, index = getattr(tensor, "_bise_value", (None, None))
        return index if token is self.token else None
