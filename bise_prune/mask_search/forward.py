"""The forward pass of a search: the bottleneck is caught on its way, and frozen batch norms keep no activations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from ..config import SearchConfig
from ..errors import ConfigError
from ..gates import CapturedInputs, GatedModel
from ..tracing import FunctionMode, logits_of, run
from .closed import sparing


class MaskedForward:
    """The network of a search under given gates, run as the settings want it.

    Args:
        gated: the network.
        head_layer: name of its head.
        config: ``precision``, ``compile`` and ``cuda_graphs``.

    Attributes:
        compiled: whether torch compiles it, so that nothing else can stand in its way.

    Raises:
        ConfigError: CUDA graphs without CUDA.
    """

    def __init__(self, gated: GatedModel, head_layer: str, config: SearchConfig) -> None:
        self.gated, self.head_layer, self.config = gated, head_layer, config
        parameter = next(gated.model.parameters())
        self.dtype, device = parameter.dtype, parameter.device.type
        self.compiled = config.compile or config.cuda_graphs
        # A GPU would wait to be told what is zero; autocast knows nothing of the layers that spare it.
        self.sparing = device == "cpu" and not self.compiled and config.precision == "float32"
        if config.cuda_graphs and device != "cuda":
            raise ConfigError(f"cuda_graphs needs a CUDA device, the network is on {device}; use compile instead")
        mode = "reduce-overhead" if config.cuda_graphs else None
        self._call = torch.compile(self.plain, dynamic=False, mode=mode) if self.compiled else self.plain

    def __call__(self, gates: Sequence[Tensor], inputs: Any, resume: FunctionMode | None) -> tuple[Tensor, Tensor]:
        """Logits (N, C) and bottleneck features (N, d), in the masks' precision.

        Args:
            gates: one tensor per site, as :meth:`bise_prune.gates.GatedModel.gating` takes them.
            inputs: of the network.
            resume: the mode under which it is to run, if any.
        """
        if not self.config.cuda_graphs:
            return self._call(gates, inputs, resume)
        torch.compiler.cudagraph_mark_step_begin()
        logits, features = self._call(gates, inputs, resume)
        return logits.clone(), features.clone()  # the next replay writes over them

    def plain(self, gates: Sequence[Tensor], inputs: Any, resume: FunctionMode | None) -> tuple[Tensor, Tensor]:
        """The pass itself, not compiled."""
        bottleneck = SearchForward(self.gated.model, self.head_layer, self.sparing)
        gating = self.gated.gating(gates)
        gating.behind = resume or bottleneck
        if resume is not None:
            resume.behind = bottleneck
        with self.precision(), gating:
            output = run(self.gated.model, inputs)
        return logits_of(output).to(self.dtype), bottleneck.inputs.pop().flatten(1).to(self.dtype)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """The network's precision; that of masks, heads and losses stays."""
        if self.config.precision == "float32":
            yield
        elif self.config.precision == "bfloat16":
            with torch.autocast(next(self.gated.model.parameters()).device.type, torch.bfloat16):
                yield
        else:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(before)


class SearchForward(CapturedInputs):
    """While active, collects the bottleneck, and runs batch norms with fixed statistics as the affine maps they are.

    Torch's own batch norm keeps its input for the backward pass even where neither its weight nor its statistics get a
    gradient; x * scale + shift keeps the scale alone. Modes that count the network's calls must be entered after this
    one, or this one stand behind them, so that they see the batch norm and not what it is made of.

    Args:
        model: the network.
        layer: name of its head.
        sparing: whether convolutions and linear layers are to spare the work on closed channels.
    """

    def __init__(self, model: nn.Module, layer: str, sparing: bool) -> None:
        super().__init__(model, layer)
        self.sparing = sparing

    def passed_on(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call returns."""
        found = None
        if func is batch_norm:
            found = _affine(*args, **kwargs)
        elif self.sparing:
            found = sparing(func, args, kwargs)
        return super().passed_on(func, args, kwargs) if found is None else found


def _affine(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    """The batch norm of these arguments as an affine map; None if it learns or estimates anything."""
    if training or running_mean is None or running_var is None:
        return None
    if any(tensor is not None and tensor.requires_grad for tensor in (weight, bias)):
        return None
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    shift = shift if bias is None else shift + bias
    shape = (1, -1) + (1,) * (input.ndim - 2)
    return torch.addcmul(shift.view(shape), input, scale.view(shape))
