"""The network that a search runs: a frozen copy with gates, which also returns its bottleneck features."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..config import SearchConfig
from ..data.batch import Batch, Input, input_map
from ..errors import ConfigError, ModelError
from ..gates.bottleneck import CapturedInputs, readout_of
from ..gates.gated_model import GatedModel, with_learned_state
from ..gates.masks import MaskSet
from ..gates.sites import sites_in
from ..gates.step import LearnedGates
from ..tracing import FunctionMode, logits_of, run, trace


class MaskedNetwork:
    """The network f = C o E of the paper with a gate at each site and frozen weights (Algorithm 1, lines 1 and 2).

    Args:
        model: the vanilla-trained classifier; it is copied.
        example: input of two samples, on the model's device.
        config: settings of the search, of which ``placement``, ``initial_logit``, ``batchnorm``, ``precision`` and
            ``channels_last`` are used here.
        start: masks to start from, with the tensors that they were learned with; without mask logits, or None, to
            start from ``initial_logit``.

    Attributes:
        trace: trace of one forward pass.
        sites: gate sites of the network.
        start: masks that it starts from; without any mask logits, metadata and state if there are none.
        gates: mask logits m and temperature tau.
        gated: the network under ``gates``.
        readout: the classifier head C.
        norms: batch-norm modules of the network.
        device: device of the network.
        dtype: precision of the weights, of the mask logits, and of the tensors that :meth:`forward` returns.

    Raises:
        ConfigError: the settings train or update batch norms, and the network has none.
        ModelError: the network has nothing to gate, or ``start`` belongs to another network or placement.
    """

    def __init__(self, model: nn.Module, example: Input, config: SearchConfig, start: MaskSet | None) -> None:
        parameter = next(model.parameters())
        self.device, self.dtype, self.config = parameter.device, parameter.dtype, config
        self.start = start or MaskSet({})
        frozen = copy.deepcopy(with_learned_state(model, self.start))
        frozen = frozen.eval().requires_grad_(False)
        if config.channels_last:
            frozen = frozen.to(memory_format=torch.channels_last)
        self.trace = trace(frozen, example)
        self.readout = readout_of(frozen, self.trace)
        self.sites = sites_in(self.trace, frozen, config.placement)
        self.gates = LearnedGates([site.num_channels for site in self.sites], config.initial_logit, self.dtype)
        if self.start.logits:
            parts = [self.start.logits.get(site.name, torch.zeros(0)) for site in self.sites]
            if [len(part) for part in parts] != self.gates.sizes:
                raise ModelError("the masks to start from belong to another network or placement")
            with torch.no_grad():
                self.gates.logits.copy_(torch.cat(parts))
        self.gated = GatedModel(frozen, self.sites, self.gates).to(self.device)
        self.norms = [module for module in frozen.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        if config.batchnorm != "frozen" and not self.norms:
            raise ConfigError(f"batchnorm '{config.batchnorm}': the network has no batch norm")

    @property
    def model(self) -> nn.Module:
        """The network without its gates."""
        return self.gated.model

    @property
    def num_classes(self) -> int:
        """Number of outputs of the classifier head."""
        return len(self.model.get_submodule(self.readout.layers[0]).weight)  # type: ignore[arg-type]

    def placed(self, batch: Batch) -> Input:
        """The input of a batch, moved to the network's device and memory format."""
        return input_map(batch.to(self.device).input, self._formatted)

    def _formatted(self, tensor: Tensor) -> Tensor:
        """The tensor, with its channels last if the settings ask for that and it holds images."""
        images = self.config.channels_last and tensor.ndim == 4
        return tensor.to(memory_format=torch.channels_last) if images else tensor

    def forward(
        self,
        gates: Sequence[Tensor],
        inputs: Any,
        bottleneck: CapturedInputs | None = None,
        resume: FunctionMode | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Class logits (N, C) and bottleneck features (N, d), in the precision of the mask logits.

        Args:
            gates: values of the gates, one tensor per site, as :meth:`bise_prune.gates.GatedModel.gating` takes them.
            inputs: input of the network.
            bottleneck: function mode that captures the bottleneck features and may compute functions in another way; by
                default it captures them and does nothing else.
            resume: function mode between the gates and ``bottleneck`` that may replace calls by stored results.
        """
        bottleneck = bottleneck or CapturedInputs(self.model, *self.readout.layers)
        gating = self.gated.gating(gates)
        gating.behind = resume or bottleneck
        if resume is not None:
            resume.behind = bottleneck
        with self.precision(), gating:
            output = run(self.model, inputs)
        return self.readout.logits(logits_of(output).to(self.dtype)), bottleneck.taken().to(self.dtype)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """A context that sets the arithmetic of the network; mask logits, heads and losses keep theirs."""
        if self.config.precision == "float32":
            yield
        elif self.config.precision == "bfloat16":
            with torch.autocast(self.device.type, torch.bfloat16):
                yield
        else:
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("high")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(before)

    def let_norms_follow(self, follow: bool) -> None:
        """Choose whether batch norms use and update the statistics of each batch; all else stays in eval mode."""
        self.gated.eval()
        for norm in self.norms:
            norm.train(follow)
