"""Forward passes of the search with all shortcuts, a subclass of :class:`bise_prune.mask_search.passes.Passes`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import batch_norm

from ...data.batch import Input
from ...distributed import world
from ...errors import ConfigError
from ...gates.bottleneck import CapturedInputs
from ...metrics.accuracy import Evaluation
from ...tracing import FunctionMode
from ..network import MaskedNetwork
from ..passes import Bottleneck, Passes
from ..step import MaskStep
from ..training_data import Part, Position, TrainingData
from .affine_norms import affine_norm
from .batched_steps import SampleMemory, steps_while_still
from .cached_prefix import cached_prefix
from .skipped_channels import without_closed_channels
from .switches import Speedups


class _Inputs(NamedTuple):
    """Arguments of a forward pass: the network's input, and the function mode that replays the cached prefix."""

    input: Input
    resume: FunctionMode | None


class FastPasses(Passes):
    """Forward passes with shortcuts; see :class:`Passes` for the methods.

    Args:
        network: the masked network; its settings say what is compiled and how much memory the shortcuts may take.
        data: the training set.
        speedups: shortcuts to use.

    Raises:
        ConfigError: CUDA graphs were asked for without a CUDA device.
    """

    def __init__(self, network: MaskedNetwork, data: TrainingData, speedups: Speedups) -> None:
        super().__init__(network, data)
        self.speedups, config, device = speedups, network.config, network.device.type
        if config.cuda_graphs and device != "cuda":
            raise ConfigError(f"cuda_graphs needs a CUDA device, the network is on {device}; use compile instead")
        self.compiled = config.compile or config.cuda_graphs
        self.stands_still = config.batchnorm == "frozen"  # constant while no mask changes
        # Looking for zeros makes a GPU wait for the CPU; autocast does not apply to the layers that skip channels.
        plain_cpu = device == "cpu" and not self.compiled and config.precision == "float32"
        self.skips_channels = speedups.skipped_channels and plain_cpu
        mode = "reduce-overhead" if config.cuda_graphs else None
        self._run = torch.compile(self._eager, dynamic=False, mode=mode) if self.compiled else self._eager
        self.prefix = None
        caches = speedups.cached_prefix and config.cache_bytes and self.stands_still and not self.compiled
        if caches and data.in_memory is not None:
            with network.precision():
                self.prefix = cached_prefix(
                    network.model, network.trace, network.sites, data.in_memory, network.device, config.cache_bytes
                )
        self._kept: tuple[Tensor, Bottleneck] | None = None  # closed channels, and their features
        self._memory: SampleMemory | None = None
        self._num_features = 0

    def inputs(self, parts: Iterable[Part]) -> Iterator[tuple[Part, _Inputs]]:
        """Batches, each with the input that :meth:`forward` takes."""
        if self.prefix is None:
            for part, inputs in super().inputs(parts):
                yield part, _Inputs(inputs, None)
        else:
            for part in parts:
                yield part, self.inputs_of(cast(Tensor, part))

    def inputs_of(self, rows: Tensor) -> _Inputs:
        """The input that :meth:`forward` takes, for samples of the data set given by number."""
        if self.prefix is not None:
            return _Inputs(self.prefix.placeholder(len(rows)), self.prefix.replaying(rows))
        return _Inputs(self.network.placed(self.data.batch(rows)), None)

    def forward(self, gates: Tensor, inputs: _Inputs) -> tuple[Tensor, Tensor]:
        """Class logits (N, C) and bottleneck features (N, d) of a batch."""
        parts = gates.split(self.network.gates.sizes, -1)
        if not self.network.config.cuda_graphs:
            return self._run(parts, *inputs)
        torch.compiler.cudagraph_mark_step_begin()
        logits, features = self._run(parts, *inputs)
        return logits.clone(), features.clone()  # the next replay overwrites them

    def _eager(self, gates: tuple[Tensor, ...], inputs: Input, resume: FunctionMode | None) -> tuple[Tensor, Tensor]:
        """One forward pass with the shortcuts for single functions, before any compilation."""
        bottleneck = _FrugalFunctions(self.network, self.speedups.affine_norms, self.skips_channels)
        return self.network.forward(gates, inputs, bottleneck, resume)

    def bottleneck(self, position: Position) -> Bottleneck:
        """Bottleneck features of the whole training set, computed once for as long as no mask changes."""
        closed = self.network.gates.closed.cpu()
        if self._kept is not None and self.stands_still and torch.equal(self._kept[0], closed):
            return self._kept[1]
        found = super().bottleneck(position)
        self._num_features = found.features.shape[1]
        size = found.features.numel() * found.features.element_size()
        if self.speedups.kept_results and size <= self.network.config.cache_bytes:
            self._kept = (closed, found)
        return found

    def take_steps(self, step: MaskStep, parts: Iterator[Part], after_step: Callable[[], None]) -> None:
        """Take one step per batch: several batches at a time until a mask changes, one by one from then on."""
        history, flipped = step.state.history, step.state.tally.flipped
        still = self.can_remember and bool(history) and not history[-1].mask_flips
        self._memory = (self._memory or self._new_memory()) if still else None
        if self._memory is not None and not flipped.any():
            rows = cast(list[Tensor], list(parts))
            parts = steps_while_still(self, step, self._memory, rows, after_step)
        super().take_steps(step, parts, after_step)

    @property
    def can_remember(self) -> bool:
        """Whether per-sample results can be kept until a mask changes.

        This needs the shortcut switched on, a ``BatchLoader``, a single process, frozen batch norms, no compilation,
        samples as the first dimension of every gated tensor, and enough memory.
        """
        network, loader = self.network, self.data.in_memory
        if not self.speedups.batched_steps or loader is None or not self.stands_still or self.compiled:
            return False
        values, call_of = network.trace.values, network.trace.call_of
        num_samples = values[network.trace.inputs[0]].shape[0]
        batch_first = all(
            not call.is_layer_norm and values[call_of[call.key].outputs[0]].shape[0] == num_samples
            for site in network.sites
            for call in site.calls
        )
        logits = network.gates.logits
        needed = len(loader.data) * (self._num_features + len(logits)) * logits.element_size()
        return world()[1] == 1 and batch_first and needed <= network.config.cache_bytes

    def _new_memory(self) -> SampleMemory:
        """A memory without any results."""
        loader, logits = self.data.in_memory, self.network.gates.logits.detach()
        assert loader is not None
        return SampleMemory(len(loader.data), self._num_features, len(logits), logits)

    def validated(self, evaluate: Callable[[], Evaluation], last: Evaluation | None, unchanged: bool) -> Evaluation:
        """The validation accuracies of an epoch; those of the epoch before if the network has not changed."""
        return last if last is not None and unchanged and self.speedups.kept_results else evaluate()

    def saved_memory(self) -> dict[str, Any] | None:
        """The per-sample results: if computed again in other batches, their last bits could differ."""
        return None if self._memory is None else self._memory.state_dict()

    def restore_memory(self, memory: dict[str, Any] | None) -> None:
        """Restore the per-sample results that were saved."""
        if memory is not None:
            self._memory = self._new_memory()
            self._memory.load_state_dict(memory)


class _FrugalFunctions(CapturedInputs):
    """While active, captures the bottleneck features and computes some functions with less work and memory.

    Modes that count the network's calls must be entered after this one, or have this one behind them, so that they see
    the batch norm and not the functions that replace it.
    """

    def __init__(self, network: MaskedNetwork, affine_norms: bool, skips_channels: bool) -> None:
        super().__init__(network.model, *network.readout.layers)
        self.affine_norms, self.skips_channels = affine_norms, skips_channels

    def passed_on(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = None
        if func is batch_norm:
            found = affine_norm(*args, **kwargs) if self.affine_norms else None
        elif self.skips_channels:
            found = without_closed_channels(func, args, kwargs)
        return super().passed_on(func, args, kwargs) if found is None else found
