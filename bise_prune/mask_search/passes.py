"""Forward passes of the search's network over its training data, without shortcuts.

:class:`bise_prune.mask_search.speed.FastPasses` gives the same results in less time, with the same methods.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..data.batch import as_batch
from ..distributed import gathered, world
from ..errors import DataError
from ..metrics.accuracy import Evaluation
from .network import MaskedNetwork
from .step import MaskStep
from .training_data import EXHAUSTED, Part, Position, TrainingData


class Bottleneck(NamedTuple):
    """Bottleneck features of the whole training set, with its labels.

    Samples are in the data set's order if it is known, otherwise in the loader's.

    Attributes:
        features: bottleneck features, shape (N, d), on the network's device.
        target: class labels, shape (N,), on the CPU.
        bias: bias labels, shape (N, K), on the CPU.
    """

    features: Tensor
    target: Tensor
    bias: Tensor


class Passes:
    """Forward passes of a masked network over training data.

    Args:
        network: the masked network.
        data: the training set.
    """

    def __init__(self, network: MaskedNetwork, data: TrainingData) -> None:
        self.network, self.data = network, data

    def inputs(self, parts: Iterable[Part]) -> Iterator[tuple[Part, Any]]:
        """Batches, each with the input that :meth:`forward` takes; a ``BatchLoader`` prepares them ahead of time."""
        if self.data.in_memory is not None:
            for rows, batch in self.data.in_memory.prepared(parts):  # type: ignore[arg-type]
                yield rows, self.network.placed(batch)
        else:
            for part in parts:
                yield part, self.network.placed(self.data.batch(part))

    def forward(self, gates: Tensor, inputs: Any) -> tuple[Tensor, Tensor]:
        """Class logits (N, C) and bottleneck features (N, d) of a batch.

        Args:
            gates: values of all gates, shape (M,), or (N, M) to give each sample its own.
            inputs: input from :meth:`inputs`.
        """
        return self.network.forward(gates.split(self.network.gates.sizes, -1), inputs)

    def bottleneck(self, position: Position) -> Bottleneck:
        """Bottleneck features of the whole training set under the present masks.

        Args:
            position: position of the search in its data; a loader that is not in memory is passed once, which counts
                here.

        Raises:
            DataError: the loader yields nothing.
        """
        gates, features, targets, biases = self.network.gates.values, [], [], []
        with torch.no_grad():
            if (loader := self.data.in_memory) is not None:
                rank, processes = world()
                numbers = torch.arange(len(loader.data))[rank::processes].split(loader.batch_size)
                features = [self.forward(gates, inputs)[1] for _, inputs in self.inputs(numbers)]
                rows = gathered(torch.cat(numbers).to(self.network.device))
                every = gathered(torch.cat(features))
                return Bottleneck(every[rows.argsort()], loader.data.target.cpu(), loader.data.bias.cpu())
            for part, inputs in self.inputs(map(as_batch, self.data.next_pass(position))):
                features.append(self.forward(gates, inputs)[1])
                targets.append(self.data.batch(part).target.to(self.network.device))
                biases.append(self.data.batch(part).bias.to(self.network.device))
            if not features:
                raise DataError(EXHAUSTED)
            whole = [gathered(torch.cat(parts)) for parts in (features, targets, biases)]
            return Bottleneck(whole[0], whole[1].cpu(), whole[2].cpu())

    def take_steps(self, step: MaskStep, parts: Iterator[Part], after_step: Callable[[], None]) -> None:
        """Take one step per batch (Algorithm 1, lines 8 to 10).

        Args:
            step: update of the search's state from one batch.
            parts: batches of the epoch.
            after_step: function called after each step, or after several that are computed together.
        """
        for part, inputs in self.inputs(parts):
            logits, features = self.forward(gates := step.open_gates(), inputs)
            step(gates, logits, features, part)
            after_step()

    def validated(self, evaluate: Callable[[], Evaluation], last: Evaluation | None, unchanged: bool) -> Evaluation:
        """The validation accuracies of an epoch.

        Args:
            evaluate: function that measures them.
            last: accuracies of the epoch before; None in the first epoch.
            unchanged: whether the network is the same as in the epoch before.
        """
        return evaluate()

    def saved_memory(self) -> dict[str, Any] | None:
        """Results to save with the state, so that a resumed search takes the same steps; None if there are none."""
        return None

    def restore_memory(self, memory: dict[str, Any] | None) -> None:
        """Restore the results that :meth:`saved_memory` returned when the state was saved."""
