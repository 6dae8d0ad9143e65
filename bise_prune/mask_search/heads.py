"""The auxiliary heads C_aux: linear classifiers that try to read the biases off the bottleneck (BISE, Sec. 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear, one_hot


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

    def judge(self, features: Tensor) -> list[Tensor]:
        """:meth:`forward` with gradients that reach the features but not the heads."""
        parameters = (head.parameters() for head in self.heads)
        return [linear(features, weight.detach(), bias.detach()) for weight, bias in parameters]


def head_loss(logits: Sequence[Tensor], bias: Tensor) -> Tensor:
    """L_CE(b_hat, b), summed over the biases; ``bias`` of shape (N, K)."""
    return torch.stack([cross_entropy(values, bias[:, k]) for k, values in enumerate(logits)]).sum()


def train_heads(
    heads: BiasHeads,
    optimizer: torch.optim.SGD,
    features: Tensor,
    bias: Tensor,
    *,
    epochs: int,
    batch_size: int,
    generator: torch.Generator,
) -> None:
    """Train the heads on fixed features (Algorithm 1, lines 4 and 13: the network and its masks stand still meanwhile).

    A head is one linear layer under a cross-entropy, whose gradient is written down instead of derived: (softmax -
    onehot)^T x / N. Steps are SGD's with the optimiser's settings and momentum.

    Args:
        heads: changed in place.
        optimizer: SGD, theirs among others; its momentum is taken up and left as a step of it would.
        features: bottleneck features of the whole training set, shape (N, d).
        bias: bias labels, shape (N, K).
        epochs: E.
        batch_size: samples per step.
        generator: CPU generator that shuffles the samples.
    """
    solvers = [_LinearSGD(head, optimizer, bias[:, k]) for k, head in enumerate(heads.heads)]
    inputs = torch.cat([features, features.new_ones(len(features), 1)], 1)
    with torch.no_grad():
        for _ in range(epochs):
            order = torch.randperm(len(features), generator=generator).to(features.device)
            shuffled = inputs[order].split(batch_size)
            for solver in solvers:
                for x, onehot in zip(shuffled, solver.onehot[order].split(batch_size), strict=True):
                    solver.step(x, onehot)
        for solver in solvers:
            solver.write_back()


class _LinearSGD:
    """SGD with momentum on one head, weight and additive bias in one matrix."""

    def __init__(self, head: nn.Module, optimizer: torch.optim.SGD, bias: Tensor) -> None:
        self.parameters, self.optimizer = list(head.parameters()), optimizer
        group = next(g for g in optimizer.param_groups if any(p is self.parameters[0] for p in g["params"]))
        self.lr, self.momentum, self.weight_decay = group["lr"], group["momentum"], group["weight_decay"]
        weight, additive = (parameter.detach() for parameter in self.parameters)
        self.matrix = torch.cat([weight, additive[:, None]], 1)
        buffers = [optimizer.state.get(p, {}).get("momentum_buffer") for p in self.parameters]
        parts = [torch.zeros_like(p) if b is None else b for p, b in zip(self.parameters, buffers, strict=True)]
        self.velocity = torch.cat([parts[0], parts[1][:, None]], 1)
        self.onehot = one_hot(bias, len(weight)).to(weight)

    def step(self, x: Tensor, onehot: Tensor) -> None:
        error = torch.softmax(x @ self.matrix.T, 1).sub_(onehot)
        gradient = torch.addmm(self.matrix, error.T, x, beta=self.weight_decay, alpha=1 / len(x))
        self.velocity.mul_(self.momentum).add_(gradient)
        self.matrix.sub_(self.velocity, alpha=self.lr)

    def write_back(self) -> None:
        for parameter, matrix in zip(self.parameters, (self.matrix[:, :-1], self.matrix[:, -1]), strict=True):
            parameter.copy_(matrix)
        if self.momentum:
            for parameter, velocity in zip(self.parameters, (self.velocity[:, :-1], self.velocity[:, -1]), strict=True):
                self.optimizer.state[parameter]["momentum_buffer"] = velocity.clone()
