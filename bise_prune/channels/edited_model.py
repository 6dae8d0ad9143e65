"""A network of the user's class in which single function calls are edited: what narrower layers alone cannot express.

Where tensors of different widths meet, channels are put back, left out or multiplied by zero. The network's own forward
pass runs; calls are found by function name and count, as in the trace.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.spectral_norm import SpectralNorm

from ..errors import ModelError
from ..tracing import CallCounter, replace_tensors, tensors_in
from .edits import Edit, Merge, Regather, Split
from .norms import normalise_open, normalise_part, normalise_with_zeros

# Class names of modules that call other functions in training: in torchvision, timm and transformers, and in torch.
_EVALUATED = ("StochasticDepth", "DropPath", "_SpectralNorm")


class RewiredModel(nn.Module):
    """A network that runs with edited function calls.

    Args:
        model: the network.
        edits: the edits, at most one per call. Their constants are float64 until the model is cast.
        totals: name of an edited function -> number of its counted calls in a whole forward pass.
        as_exported: whether the network runs as exporters see it; see :attr:`bise_prune.tracing.Trace.as_exported`.

    Attributes:
        last_call: function name and count of the last call of the last forward pass, which it failed at if it failed.
    """

    def __init__(
        self, model: nn.Module, edits: Sequence[Edit], totals: Mapping[str, int], as_exported: bool = False
    ) -> None:
        super().__init__()
        self.model = model
        self.edits = tuple(edits)
        self.totals = dict(totals)
        self.as_exported = as_exported
        self.last_call = ("", 0)
        self.rewirings = nn.ModuleList(_Rewiring(edit) for edit in edits)
        self.rewirings.to(next((p.device for p in model.parameters()), torch.device("cpu")))
        self.train(model.training)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network's own forward pass with the edits.

        Raises:
            ModelError: the pass calls an edited function more or less often than the traced one, or with another width,
                or parts of it under ``torch.utils.checkpoint``, which would compute gradients without the edits.
        """
        table = {(edit.function, edit.count): module for edit, module in zip(self.edits, self.rewirings, strict=True)}
        rewire = _Rewire(table, self.as_exported)
        try:
            with rewire:
                output = self.model(*args, **kwargs)
        finally:
            self.last_call = rewire.last
        for function, total in self.totals.items():
            if rewire.counts[function] != total:
                raise ModelError(
                    f"the forward pass took another path than the traced one: it called '{function}' "
                    f"{rewire.counts[function]} times instead of {total}, so that its edits cannot be placed"
                )
        return output

    def train(self, mode: bool = True) -> RewiredModel:
        """Set training mode, except for stochastic depth and spectral norms, which would call other functions."""
        super().train(mode)
        for module in self.modules():
            about = [module, *module._forward_pre_hooks.values()]  # spectral norms may be hooks
            if any(type(part).__name__ in _EVALUATED or isinstance(part, SpectralNorm) for part in about):
                module.training = False
        return self


class _Rewire(CallCounter):
    """Mode that replaces each edited call by its edit."""

    def __init__(self, table: Mapping[tuple[str, int], nn.Module], as_exported: bool) -> None:
        super().__init__(as_exported)
        self.table = table
        self.last = ("", 0)
        self.learns = torch.is_grad_enabled()

    def called(
        self,
        key: tuple[str, int],
        counted: bool,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        self.last = key
        rewiring = self.table.get(key) if counted else None
        if rewiring is None:
            return func(*args, **kwargs)
        if self.learns and not torch.compiler.is_dynamo_compiling() and _runs_again():
            raise ModelError(
                "parts of this slim network run under torch.utils.checkpoint, which would run them again without the "
                "edits of their function calls: switch gradient checkpointing off, or put it around the whole network"
            )
        return rewiring(func, args, kwargs)


def _runs_again() -> bool:
    """Whether the running part of a network is one that torch runs again for its gradients (a checkpoint)."""
    frame = sys._getframe().f_back
    while frame is not None and frame.f_code is not RewiredModel.forward.__code__:
        if frame.f_globals.get("__name__") == "torch.utils.checkpoint":
            return True
        frame = frame.f_back
    return False


class _Rewiring(nn.Module):
    """Applies one edit; its index and constant tensors are buffers, so that they move with the model."""

    mask: Tensor
    statistics: Tensor

    def __init__(self, edit: Edit) -> None:
        super().__init__()
        self.edit = edit
        self.operands = nn.ModuleDict({str(k): _Regathering(change) for k, change in edit.operands.items()})
        self.results = nn.ModuleList(nn.Identity() if change is None else _module_of(change) for change in edit.results)
        for k, (shape, numbers) in edit.fixed.items():
            self.register_buffer(f"fixed{k}", torch.tensor(numbers, dtype=torch.float64).view(shape), persistent=False)
        if edit.statistics is not None:
            self.register_buffer("statistics", torch.tensor(edit.statistics).double(), persistent=False)
        if edit.mask is not None:
            self.register_buffer("mask", torch.tensor(edit.mask[1]).double(), persistent=False)

    def forward(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the result of the edited call."""
        edit = self.edit
        tensors = list(tensors_in([*args, *kwargs.values()]))
        if edit.action == "copy":
            result = self.results[0](tensors[edit.operand])
            return result.clone() if result is tensors[edit.operand] else result
        if edit.action == "skip":
            operand = tensors[edit.operand]
            if isinstance(operand, nn.Parameter):  # which becomes the module's own where it is set as an attribute
                operand = operand.view_as(operand)
            results = tuple(change(operand) for change in self.results)
            return results if len(results) > 1 else self._masked(results[0])
        for key, change in self.operands.items():
            tensors[int(key)] = change(tensors[int(key)])
        for k in edit.fixed:
            tensors[k] = getattr(self, f"fixed{k}").to(tensors[1 - k if len(tensors) == 2 else k].dtype)
            if k == 0 and len(tensors) > 1:  # functions that write into their first operand need it in full shape
                tensors[0] = tensors[0] + torch.zeros_like(tensors[1])
        if edit.action == "drop":
            tensors = [tensor for k, tensor in enumerate(tensors) if k not in edit.dropped]
            dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
            return torch.cat(tensors, dim)
        given = iter(tensors)
        args, kwargs = replace_tensors((args, kwargs), lambda _: next(given))
        if edit.scale is not None:
            kwargs = {**kwargs, "scale": edit.scale}
        return self._masked(self._run(func, args, kwargs))

    def _run(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function whose arguments are there; norms and means may need to know which channels are gone."""
        edit = self.edit
        if edit.statistics is not None:
            return normalise_open(self.statistics, *args, **kwargs)
        if edit.zeros is not None:
            return normalise_with_zeros(edit.zeros, *args, **kwargs)
        if edit.number is not None:
            args = tuple(edit.number if isinstance(value, (int, float)) else value for value in args)
        if edit.groups is not None:
            if len(args) > 1:
                args = (args[0], edit.groups, *args[2:])
            else:
                kwargs = {**kwargs, "num_groups": edit.groups}
        if edit.share is not None and edit.function == "rms_norm":
            return normalise_part(edit.share, *args, **kwargs)
        output = func(*args, **kwargs)
        return output if edit.share is None else output * edit.share

    def _masked(self, output: Any) -> Any:
        """Multiply the channels of a result by zero that the edit says."""
        if self.edit.mask is None:
            return output
        shape = [1] * output.ndim
        shape[self.edit.mask[0]] = -1
        return output * self.mask.view(shape).to(output.dtype)


def _module_of(change: Regather | Split | Merge) -> nn.Module:
    """Return the module that carries a rearrangement out."""
    return _Regathering(change) if isinstance(change, Regather) else _Heads(change)


class _Heads(nn.Module):
    """Splits channels into heads, or puts heads side by side."""

    index: Tensor | None

    def __init__(self, change: Split | Merge) -> None:
        super().__init__()
        self.change = change
        index = None if change.index is None else torch.tensor(change.index, dtype=torch.int64)
        self.is_slice = index is not None and torch.equal(index, index[0] + torch.arange(len(index)))
        self.register_buffer("index", index, persistent=False)
        self.back = sorted(range(len(change.order)), key=change.order.__getitem__)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with its heads apart, or together."""
        if isinstance(self.change, Split):
            x = self._chosen(x.movedim(self.change.dim, -1))
            apart: Tensor = x.unflatten(-1, (self.change.heads, -1))
            return apart.permute(self.change.order)
        return self._chosen(x.permute(self.back).flatten(-2)).movedim(-1, self.change.dim)

    def _chosen(self, x: Tensor) -> Tensor:
        """The channels that are read, of the last dimension; without a copy if they lie side by side."""
        if self.index is None or self.change.index is None:
            return x
        return x.narrow(-1, self.change.index[0], len(self.index)) if self.is_slice else x.index_select(-1, self.index)


class _Regathering(nn.Module):
    """Rearranges channels and fills in constants for missing ones; in ONNX this is Pad or Concat, then Gather."""

    index: Tensor
    constants: Tensor

    def __init__(self, change: Regather) -> None:
        super().__init__()
        self.change = change
        self.register_buffer("index", torch.tensor(change.index, dtype=torch.int64), persistent=False)
        self.register_buffer("constants", torch.tensor(change.constants, dtype=torch.float64), persistent=False)
        self.in_order = list(change.index) == list(range(len(change.index)))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` with its channels rearranged; the result has ``len(index)`` channels."""
        dim, present = self.change.dim, self.change.present
        if x.shape[dim] != present:
            raise ModelError(
                f"the forward pass took another path than the traced one: expected {present} channels along dimension "
                f"{dim}, got shape {tuple(x.shape)}"
            )
        if self.change.constants:
            shape = list(x.shape)
            shape[dim] = len(self.change.constants)
            if any(self.change.constants):
                view = [1] * x.ndim
                view[dim] = -1
                extra = self.constants.view(view).to(x.dtype).expand(shape)
                x = torch.cat([x, extra], dim)
            else:
                x = nn.functional.pad(x, [0, 0] * (x.ndim - 1 - dim) + [0, shape[dim]])
        return x if self.in_order and len(self.change.index) == x.shape[dim] else x.index_select(dim, self.index)
