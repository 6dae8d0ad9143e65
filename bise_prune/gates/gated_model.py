"""Masked networks: every gated output is multiplied by its mask (Eq. 2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..channels.norms import normalise_open
from ..digests import state_tensors
from ..errors import ModelError
from ..tracing import CallCounter, FunctionMode, Inputs
from .masks import GateCall, GateSite, MaskSet
from .sites import sites_of
from .step import ConstantGates


def apply_masks(model: nn.Module, masks: MaskSet, example_inputs: Inputs) -> GatedModel:
    """Return a copy of ``model``, in eval mode, in which closed channels are multiplied by zero (the masked network).

    Args:
        model: the dense network; never changed.
        masks: masks of this network, with the parameters and buffers that the search changed.
        example_inputs: its input(s), batch first.

    Raises:
        ModelError: the masks belong to another network.
    """
    sites = sites_of(masks, model, example_inputs)
    return constant_gates(with_learned_state(copy.deepcopy(model), masks).eval(), sites, masks.keep)


def with_learned_state(model: nn.Module, masks: MaskSet) -> nn.Module:
    """Return a copy of ``model`` with the tensors that the search changed; ``model`` itself if there are none.

    Args:
        model: the dense network; never changed.
        masks: masks of this network.

    Raises:
        ModelError: the network has no tensors of these names and shapes.
    """
    if not masks.state:
        return model
    model = copy.deepcopy(model)
    own = state_tensors(model)
    for name, tensor in masks.state.items():
        if name not in own or own[name].shape != tensor.shape:
            raise ModelError(f"the masks come with '{name}' {tuple(tensor.shape)}, which this network does not have")
    model.load_state_dict(dict(masks.state), strict=False)
    return model


def constant_gates(model: nn.Module, sites: Sequence[GateSite], keep: Mapping[str, Tensor]) -> GatedModel:
    """Return a network that runs ``model`` itself, not a copy, with fixed masks.

    Args:
        model: the network.
        sites: its gate sites.
        keep: site name -> mask, bool of shape (channels,), True = keep.
    """
    parameter = next(model.parameters())
    return GatedModel(model, sites, ConstantGates([keep[site.name].to(parameter) for site in sites]))


class GatedModel(nn.Module):
    """A network in which the outputs of nonlinearities are multiplied by gates: h_i * gate_i (Eq. 2).

    The network itself is not changed: outputs are intercepted by function name and count in the forward pass, so that a
    module that is called several times (one ReLU for a whole residual block) has one gate per call.

    Args:
        model: the network.
        sites: its gate sites.
        gates: module that returns the values of the gates, one tensor of shape (channels,) per site.
    """

    def __init__(self, model: nn.Module, sites: Sequence[GateSite], gates: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.gates = gates
        self.sites = tuple(sites)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network's own forward pass with the gates.

        Raises:
            ModelError: the pass ends without a call that has a gate.
        """
        with self.gating(self.gates()):
            return self.model(*args, **kwargs)

    def gating(self, values: Sequence[Tensor]) -> FunctionMode:
        """Return a mode under which the network runs with the given values of its gates.

        Args:
            values: one tensor per site, of shape (channels,), or (N, channels) for different values per sample.
        """
        table: dict[tuple[str, int], list[tuple[Tensor, GateCall]]] = {}
        for site, value in zip(self.sites, values, strict=True):
            for call in site.calls:
                table.setdefault(call.key, []).append((value, call))
        return _Gating(table, any(site.as_exported for site in self.sites))


class _Gating(CallCounter):
    """Mode that multiplies each gated output by the value of its gate."""

    def __init__(self, gates: Mapping[tuple[str, int], Sequence[tuple[Tensor, GateCall]]], as_exported: bool) -> None:
        super().__init__(as_exported)
        self.gates = gates
        self.missing = set(gates)  # gates that no call was behind

    def __exit__(self, kind: type[BaseException] | None = None, *error: Any) -> None:
        super().__exit__(kind, *error)
        if kind is None and not self.tells and self.missing and not torch.compiler.is_compiling():
            function, count = min(self.missing)
            raise ModelError(
                f"the forward pass took another path than the traced one: '{function}' number {count + 1}, which has a "
                "gate, was not called"
            )

    def called(
        self,
        key: tuple[str, int],
        counted: bool,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if not counted or key not in self.gates:
            return self.passed_on(func, args, kwargs)
        self.missing.discard(key)
        gates = self.gates[key]
        if gates[0][1].is_layer_norm:
            entries, place = gates[0]
            return normalise_open(place.spread(entries, 1.0), *args, **kwargs)
        output = self.passed_on(func, args, kwargs)
        for entries, place in gates:
            gate = place.spread(entries, 1.0)
            shape = [1] * output.ndim
            shape[place.dim] = -1
            if gate.ndim == 2:
                shape[0] = len(gate)
            output = output * gate.reshape(shape)
        return output
