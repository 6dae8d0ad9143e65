"""The auxiliary heads C_aux: linear classifiers that try to read the biases off the bottleneck (BISE, Sec. 3.4)."""

# Shape suffixes: N samples, D features, K biases, B classes of a bias, S classes of all biases.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..distributed import copied_from_first, summed


class HeadsState(NamedTuple):
    """What training changes.

    Attributes:
        matrix: weights of all heads one below the other, their additive biases in the last column, shape (S, D + 1).
        velocity: SGD's momentum, of the same shape.
    """

    matrix: Tensor
    velocity: Tensor


class BiasHeads:
    """One linear head per bias on the same bottleneck features, trained by SGD.

    A head is one linear layer under a cross-entropy, whose gradient is written down instead of derived: (softmax -
    onehot)^T z / N; all heads are one matrix, so that a step is one product each way. Samples come last in between, so
    that the softmax adds up whole rows.

    Args:
        num_features: width of the bottleneck.
        num_bias_classes: |B_k| per bias.
        generator: source of the initial weights (uniform in +-1/sqrt(features), as nn.Linear's).
        dtype: precision.
        device: where they are.
        lr: of SGD.
        momentum: of SGD.
        weight_decay: of SGD.

    Attributes:
        state: the weights, and the momentum; a step replaces it and leaves the former one as it was.
    """

    def __init__(
        self,
        num_features: int,
        num_bias_classes: Sequence[int],
        generator: torch.Generator,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
    ) -> None:
        self.sizes = list(num_bias_classes)
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        bound = num_features**-0.5
        parts = [
            torch.empty(shape, dtype=dtype).uniform_(-bound, bound, generator=generator)
            for size in self.sizes
            for shape in ((size, num_features), (size,))
        ]
        matrix = torch.cat([torch.cat(parts[::2]), torch.cat(parts[1::2])[:, None]], 1).to(device)
        self.state = HeadsState(matrix, torch.zeros_like(matrix))
        starts = torch.tensor([0, *self.sizes[:-1]]).cumsum(0)
        self.starts = starts.to(device)

    def __call__(self, features_ND: Tensor) -> list[Tensor]:
        """Logits per bias, each of shape (N, B), with gradients that reach the features but not the heads."""
        matrix = self.state.matrix
        return list(linear(features_ND, matrix[:, :-1], matrix[:, -1]).split(self.sizes, 1))

    def read(self, matrices_GSD: Tensor, features_GND: Tensor) -> list[Tensor]:
        """What heads of other times (``state.matrix`` of each, in one tensor) give: per bias, shape (G, N, B)."""
        logits_GNS = torch.baddbmm(matrices_GSD[:, None, :, -1], features_GND, matrices_GSD[:, :, :-1].mT)
        return list(logits_GNS.split(self.sizes, 2))

    def step(self, features_ND: Tensor, bias_NK: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """One step of SGD down L_CE(b_hat, b), summed over the biases.

        Args:
            features_ND: bottleneck features of a batch.
            bias_NK: its bias labels, int64.
            num_samples: samples of the whole batch where every process has a part of it.

        Returns:
            The loss, a scalar: of a part, the part's share.
        """
        inputs, onehot_SN = _with_one(features_ND.detach()), self._onehot(bias_NK)
        log_p_SN = self._softmax(inputs, Tensor.log_softmax)
        loss = (log_p_SN * onehot_SN).sum().neg().div(len(inputs) if num_samples is None else num_samples)
        self._descend(log_p_SN.exp_().sub_(onehot_SN), inputs, num_samples)
        return loss

    def train(
        self, features_ND: Tensor, bias_NK: Tensor, *, epochs: int, batch_size: int, generator: torch.Generator
    ) -> None:
        """Train on fixed features (Algorithm 1, lines 4 and 13: the network and its masks stand still meanwhile).

        Args:
            features_ND: bottleneck features of the whole training set.
            bias_NK: its bias labels, int64.
            epochs: E.
            batch_size: samples per step.
            generator: CPU generator that shuffles the samples.
        """
        inputs, onehot_NS = _with_one(features_ND), self._onehot(bias_NK).T.contiguous()
        for _ in range(epochs):
            order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
            shuffled = (tensor.index_select(0, order).split(batch_size) for tensor in (inputs, onehot_NS))
            for batch, truth_NS in zip(*shuffled, strict=True):
                self._descend(self._softmax(batch, Tensor.softmax).sub_(truth_NS.T), batch)
        copied_from_first(self.state)

    def _onehot(self, bias_NK: Tensor) -> Tensor:
        matrix = self.state.matrix
        return torch.zeros_like(matrix[:, 0])[:, None].repeat(1, len(bias_NK)).scatter_(0, (bias_NK + self.starts).T, 1)

    def _softmax(self, inputs: Tensor, kind: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Softmax, or its logarithm, over each head's classes: shape (S, N)."""
        logits_SN = self.state.matrix @ inputs.T
        if len(set(self.sizes)) == 1:
            return kind(logits_SN.view(len(self.sizes), self.sizes[0], -1), 1).flatten(0, 1)
        return torch.cat([kind(part, 0) for part in logits_SN.split(self.sizes)])

    def _descend(self, error_SN: Tensor, inputs: Tensor, num_samples: Tensor | None = None) -> None:
        """A step of SGD; ``error_SN`` is softmax - onehot."""
        matrix, velocity = self.state
        if num_samples is None:
            velocity = torch.addmm(velocity, error_SN, inputs, beta=self.momentum, alpha=1 / len(inputs))
        else:
            velocity = velocity * self.momentum + summed(error_SN @ inputs) / num_samples
        velocity.add_(matrix, alpha=self.weight_decay)
        self.state = HeadsState(torch.add(matrix, velocity, alpha=-self.lr), velocity)


def _with_one(features: Tensor) -> Tensor:
    return torch.cat([features, features.new_ones(len(features), 1)], 1)
