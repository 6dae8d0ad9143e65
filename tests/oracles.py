"""Slow, obvious versions of what the package does fast; they share no code with it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def bias_information(probs: Tensor, bias: Tensor) -> float:
    """Mutual information by its definition, entry by entry."""
    n, classes = probs.shape
    joint = [[0.0] * classes for _ in range(classes)]
    for s in range(n):
        for j in range(classes):
            joint[int(bias[s])][j] += float(probs[s, j]) / n
    p = [sum(row) for row in joint]
    q = [sum(row[j] for row in joint) for j in range(classes)]
    total = 0.0
    for i in range(classes):
        for j in range(classes):
            if joint[i][j] > 0:
                total += joint[i][j] * math.log(joint[i][j] / (p[i] * q[j]))
    return total / math.log(classes)


def masked_by_hooks(model: nn.Module, masks: Mapping[str, Tensor]) -> nn.Module:
    """Multiply the outputs of activation modules, by module name, in a plain chain."""
    model = copy.deepcopy(model)
    for name, mask in masks.items():

        def multiply(module: nn.Module, args: object, output: Tensor, mask: Tensor = mask) -> Tensor:
            return output * mask.to(output).view(1, -1, *[1] * (output.ndim - 2))

        model.get_submodule(name).register_forward_hook(multiply)
    return model


class _Gate(torch.autograd.Function):
    """Step forwards, slope of the sigmoid backwards."""

    @staticmethod
    def forward(ctx, m, tau):
        ctx.save_for_backward(m)
        ctx.tau = tau
        return (torch.sigmoid(m.double() / tau) >= 0.5).to(m)

    @staticmethod
    def backward(ctx, grad):
        (m,) = ctx.saved_tensors
        s = torch.sigmoid(m / ctx.tau)
        return grad * s * (1 - s) / ctx.tau, None


def literal_algorithm_1(
    mlp: nn.Module,
    batches: list[dict[str, Tensor]],
    *,
    head_epochs: int,
    kappa: float,
    upsilon: int,
    tau_min: float,
    gamma: float,
    weights: Mapping[tuple[int, int], float],
    seed: int,
) -> dict[int, Tensor]:
    """Algorithm 1 line by line on an MLP (``mlp.body`` and ``mlp.head``), heads trained by full forward passes.

    Returns the mask logits per hidden layer. Aligned means b = y. Batches come in the same order in each epoch; head
    epochs shuffle all samples with a generator seeded like the package's.
    """
    linears = [layer for layer in mlp.body if isinstance(layer, nn.Linear)]
    dtype = linears[0].weight.dtype
    m = [torch.zeros(layer.out_features, dtype=dtype, requires_grad=True) for layer in linears]  # line 1
    tau, epoch = 1.0, 0
    generator = torch.Generator().manual_seed(seed)
    x_all = torch.cat([batch["input"] for batch in batches])
    b_all = torch.cat([batch["bias"] for batch in batches])
    classes = int(b_all.max()) + 1

    def encode(x: Tensor) -> Tensor:  # line 2
        h = x.flatten(1)
        for layer, mi in zip(linears, m, strict=True):
            h = F.relu(F.linear(h, layer.weight.detach(), layer.bias.detach())) * _Gate.apply(mi, tau)
        return h

    head = nn.Linear(linears[-1].out_features, classes, dtype=dtype)  # line 3
    bound = linears[-1].out_features ** -0.5
    with torch.no_grad():
        for parameter in (head.weight, head.bias):
            parameter.uniform_(-bound, bound, generator=generator)
    head_optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    mask_optimizer = torch.optim.SGD(m, lr=1e-2, momentum=0.9, weight_decay=1e-4)

    def train_head() -> None:
        for _ in range(head_epochs):
            for rows in torch.randperm(len(x_all), generator=generator).split(len(batches[0]["input"])):
                loss = F.cross_entropy(head(encode(x_all[rows]).detach()), b_all[rows])
                head_optimizer.zero_grad()
                loss.backward()
                head_optimizer.step()

    train_head()  # line 4
    while True:  # line 5
        epoch += 1  # line 6
        for batch in batches:  # line 7
            x, y, b = batch["input"], batch["target"], batch["bias"]
            z = encode(x)
            y_hat = F.linear(z, mlp.head.weight.detach(), mlp.head.bias.detach())
            r = torch.tensor([weights[int(i), int(j)] for i, j in zip(y, b, strict=True)], dtype=dtype)
            loss = sum(F.cross_entropy(y_hat[s : s + 1], y[s : s + 1]) * r[s] for s in range(len(y))) / len(y)  # Eq. 4
            conflicting = [s for s in range(len(y)) if y[s] != b[s]]
            if len(conflicting) > 1:
                probs = torch.softmax(head(z)[conflicting], 1)
                joint = torch.zeros(classes, classes, dtype=dtype)
                for row, s in enumerate(conflicting):
                    one_hot = torch.zeros(classes, 1, dtype=dtype)
                    one_hot[b[s]] = 1
                    joint = joint + one_hot @ probs[row : row + 1] / len(conflicting)
                joint = joint.clamp(min=1e-15 / len(conflicting))
                outer = joint.sum(1, keepdim=True) @ joint.sum(0, keepdim=True)
                loss = loss + gamma * (joint * torch.log(joint / outer)).sum() / math.log(classes)  # Eq. 5
            mask_gradients = torch.autograd.grad(loss, m)
            head_loss = F.cross_entropy(head(z.detach()), b)
            head_gradients = torch.autograd.grad(head_loss, list(head.parameters()))
            for parameter, gradient in zip(m, mask_gradients, strict=True):  # line 9
                parameter.grad = gradient
            mask_optimizer.step()
            for parameter, gradient in zip(head.parameters(), head_gradients, strict=True):  # line 10
                parameter.grad = gradient
            head_optimizer.step()
        if epoch % upsilon == 0:  # lines 11 to 14
            tau = tau * kappa
            train_head()
        if tau < tau_min:  # line 15
            return dict(enumerate(mi.detach() for mi in m))  # line 16


def largest_error(first, second, inputs):
    """Independent of the package's own verification."""
    first, second = (copy.deepcopy(model).double() for model in (first, second))
    x = torch.cat([inputs, torch.randn_like(inputs)]).double()
    with torch.no_grad():
        return float((first(x) - second(x)).abs().max())
