"""The auxiliary heads C_aux: linear classifiers that try to read the biases off the bottleneck (BISE, Sec. 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


class BiasHeads(nn.Module):
    """One linear head per bias on the same bottleneck features.

    Args:
        num_features: width of the bottleneck.
        num_bias_classes: |B_k| per bias.
        generator: source of the initial weights (uniform in +-1/sqrt(features), as nn.Linear's).
        dtype: precision.
    """

    def __init__(
        self, num_features: int, num_bias_classes: Sequence[int], generator: torch.Generator, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(num_features, classes, dtype=dtype) for classes in num_bias_classes)
        bound = num_features**-0.5
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-bound, bound, generator=generator)

    def forward(self, features: Tensor) -> list[Tensor]:
        """Logits per bias, each of shape (N, |B_k|), from features of shape (N, d)."""
        return [head(features) for head in self.heads]


def head_loss(logits: Sequence[Tensor], bias: Tensor) -> Tensor:
    """L_CE(b_hat, b), summed over the biases; ``bias`` of shape (N, K)."""
    return torch.stack([cross_entropy(values, bias[:, k]) for k, values in enumerate(logits)]).sum()


def train_heads(
    heads: BiasHeads,
    optimizer: torch.optim.Optimizer,
    features: Tensor,
    bias: Tensor,
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """Train the heads on fixed features (Algorithm 1, lines 4 and 13: the network and its masks stand still meanwhile).

    Args:
        heads: changed in place.
        optimizer: theirs; its state is kept between calls.
        features: bottleneck features of the whole training set, shape (N, d).
        bias: bias labels, shape (N, K).
        epochs: E.
        batch_size: samples per step.
        generator: CPU generator that shuffles the samples.
    """
    for _ in range(epochs):
        order = torch.randperm(len(features), generator=generator).to(features.device)
        for rows in order.split(batch_size):
            optimizer.zero_grad()
            head_loss(heads(features[rows]), bias[rows]).backward()
            optimizer.step()
