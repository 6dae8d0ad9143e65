"""The auxiliary heads C_aux: linear classifiers that predict the bias labels from the bottleneck (BISE, Sec. 3.4)."""

# Shape suffixes: N samples, D features, K biases, B classes of a bias, S classes of all biases.

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..distributed import copied_from_first, summed


class HeadsState(NamedTuple):
    """The tensors of the auxiliary heads that training changes.

    Attributes:
        matrix: weights of all heads, one below the other, with their additive biases in the last column, shape (S, D +
            1).
        velocity: momentum of SGD, of the same shape.
    """

    matrix: Tensor
    velocity: Tensor


class BiasHeads:
    """The auxiliary heads: one linear head per bias on the same bottleneck features, trained by SGD.

    The gradient of the cross-entropy of a linear layer, (softmax - onehot)^T z / N, is computed directly, without
    autograd. All heads are kept in one matrix, so that a step takes one matrix product in each direction. Within a step
    samples are the last dimension, so that the softmax sums over whole rows.

    Args:
        num_features: width D of the bottleneck.
        num_bias_classes: number of bias classes |B_k| of each bias.
        generator: source of the initial weights, uniform in +-1/sqrt(D) as in ``nn.Linear``.
        dtype: precision of the weights.
        device: device of the weights.
        lr: learning rate of SGD.
        momentum: momentum of SGD.
        weight_decay: weight decay of SGD.

    Attributes:
        state: weights and momentum; a step replaces this tuple and leaves the tensors of the former one unchanged.
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
        """Logits of the bias labels, one tensor (N, B) per bias; gradients reach the features, not the heads."""
        matrix = self.state.matrix
        return list(linear(features_ND, matrix[:, :-1], matrix[:, -1]).split(self.sizes, 1))

    def read(self, matrices_GSD: Tensor, features_GND: Tensor) -> list[Tensor]:
        """Logits that given weights of the heads produce, one tensor (G, N, B) per bias.

        Args:
            matrices_GSD: ``state.matrix`` of G moments.
            features_GND: bottleneck features for each of them.
        """
        logits_GNS = torch.baddbmm(matrices_GSD[:, None, :, -1], features_GND, matrices_GSD[:, :, :-1].mT)
        return list(logits_GNS.split(self.sizes, 2))

    def step(self, features_ND: Tensor, bias_NK: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """Take one step of SGD down the cross-entropy L_CE(b_hat, b), summed over the biases.

        Args:
            features_ND: bottleneck features of the batch.
            bias_NK: bias labels of the batch, int64.
            num_samples: number of samples of the whole batch, if each process holds a part of it; None if it is one
                part.

        Returns:
            The loss before the step, a scalar; with several processes, this process's share of it.
        """
        inputs, onehot_SN = _with_one(features_ND.detach()), self._onehot(bias_NK)
        log_p_SN = self._softmax(inputs, Tensor.log_softmax)
        loss = (log_p_SN * onehot_SN).sum().neg().div(len(inputs) if num_samples is None else num_samples)
        self._descend(log_p_SN.exp_().sub_(onehot_SN), inputs, num_samples)
        return loss

    def train(
        self, features_ND: Tensor, bias_NK: Tensor, *, epochs: int, batch_size: int, generator: torch.Generator
    ) -> None:
        """Train the heads on fixed features while the network does not change (Algorithm 1, lines 4 and 13).

        Args:
            features_ND: bottleneck features of the whole training set.
            bias_NK: bias labels of the whole training set, int64.
            epochs: number of epochs, the paper's E.
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
        """Bias labels as 0 and 1 per class of each bias, shape (S, N)."""
        matrix = self.state.matrix
        return torch.zeros_like(matrix[:, 0])[:, None].repeat(1, len(bias_NK)).scatter_(0, (bias_NK + self.starts).T, 1)

    def _softmax(self, inputs: Tensor, kind: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Softmax, or its logarithm, over the classes of each head, shape (S, N)."""
        logits_SN = self.state.matrix @ inputs.T
        if len(set(self.sizes)) == 1:
            return kind(logits_SN.view(len(self.sizes), self.sizes[0], -1), 1).flatten(0, 1)
        return torch.cat([kind(part, 0) for part in logits_SN.split(self.sizes)])

    def _descend(self, error_SN: Tensor, inputs: Tensor, num_samples: Tensor | None = None) -> None:
        """Take one step of SGD; ``error_SN`` is softmax - onehot."""
        matrix, velocity = self.state
        if num_samples is None:
            velocity = torch.addmm(velocity, error_SN, inputs, beta=self.momentum, alpha=1 / len(inputs))
        else:
            velocity = velocity * self.momentum + summed(error_SN @ inputs) / num_samples
        velocity.add_(matrix, alpha=self.weight_decay)
        self.state = HeadsState(torch.add(matrix, velocity, alpha=-self.lr), velocity)


def _with_one(features: Tensor) -> Tensor:
    """The features with a column of ones appended, which multiplies the additive bias."""
    return torch.cat([features, features.new_ones(len(features), 1)], 1)
