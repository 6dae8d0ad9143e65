"""FFW (Nahon et al., 2023), the predecessor of BISE: a gate on every weight, learned while the network is frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from ..data.batch import Loader, as_batch
from ..errors import ConfigError, DataError
from ..gates.bottleneck import CapturedInputs, head_name
from ..mask_search.heads import BiasHeads
from ..mask_search.mutual_information import bias_information
from ..tracing import logits_of, trace

_PATIENCE, _STALL = 5, 0.05  # epochs in a row without a fall of the information by this share cut the temperature


@dataclass(frozen=True)
class FFWResult:
    """Result of :func:`ffw`.

    Attributes:
        model: copy of the network with the pruned weights set to zero; shapes stay, so that nothing becomes faster.
        sparsity: share of the network's parameters that were set to zero, in [0, 1].
        information: mutual information in each epoch, averaged over its batches.
    """

    model: nn.Module
    sparsity: float
    information: tuple[float, ...]


def ffw(
    model: nn.Module,
    train_loader: Loader,
    *,
    mi_weight: float = 10.0,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    anneal_factor: float = 0.1,
    min_temperature: float = 1e-8,
    max_epochs: int = 200,
    seed: int = 0,
    on_epoch: Callable[[int, float, float], None] | None = None,
) -> FFWResult:
    """Prune single weights by FFW: learn a gate min(2 sigma(g / T), 1) per weight and remove weights with g < 0.

    All convolutions and linear layers but the classifier head are gated. The objective is the cross-entropy plus
    ``mi_weight`` times the mutual information over *all* samples of a batch; FFW was made for unbiased training sets.
    The temperature T starts at 1 and is cut when the mutual information stops falling.

    Args:
        model: vanilla network that ends in a linear layer; never changed.
        train_loader: loader of batches with one bias.
        mi_weight: weight of the mutual information (gamma).
        lr: learning rate of the gates (Adam); the auxiliary head is trained by SGD as in BISE.
        weight_decay: weight decay of the gates (Adam).
        anneal_factor: factor by which a cut multiplies the temperature.
        min_temperature: temperature below which the search ends.
        max_epochs: largest number of epochs.
        seed: random seed of the auxiliary head's initialisation.
        on_epoch: function that is called with the number of each epoch, the temperature and the mutual information.

    Raises:
        ConfigError: the data do not have exactly one bias.
        DataError: the loader is empty.
        ModelError: the network does not end in a linear layer that is called once.
    """
    frozen = copy.deepcopy(model).eval().requires_grad_(False)
    device, dtype = next(frozen.parameters()).device, next(frozen.parameters()).dtype
    first = next(iter(train_loader), None)
    if first is None:
        raise DataError("the training loader is empty")
    example = as_batch(first).to(device)
    if example.bias.shape[1] != 1:
        raise ConfigError(f"FFW takes one bias, the data have {example.bias.shape[1]}")
    classifier = head_name(frozen, trace(frozen, example.input))
    weights = {
        f"{name}.weight": module.weight
        for name, module in frozen.named_modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and name != classifier
    }
    gates = {name: nn.Parameter(torch.zeros_like(weight)) for name, weight in weights.items()}
    classes = max(int(as_batch(raw).bias.max()) for raw in train_loader) + 1
    width = int(frozen.get_submodule(classifier).in_features)  # type: ignore[arg-type]
    heads = BiasHeads(width, [max(2, classes)], torch.Generator().manual_seed(seed), dtype, device)
    gate_optimizer = torch.optim.Adam(gates.values(), lr=lr, weight_decay=weight_decay)
    history: list[float] = []
    temperature, lowest, stalled = 1.0, float("inf"), 0
    while temperature >= min_temperature and len(history) < max_epochs:
        total, batches = torch.zeros((), dtype=torch.float64, device=device), 0
        for raw in train_loader:
            batch = as_batch(raw).to(device)
            gated = {name: weights[name] * weight_gate(gate, temperature) for name, gate in gates.items()}
            inputs = (batch.input,) if isinstance(batch.input, Tensor) else ()
            keywords = {} if isinstance(batch.input, Tensor) else batch.input
            with CapturedInputs(frozen, classifier) as bottleneck:
                logits = logits_of(functional_call(frozen, gated, inputs, keywords))
            features = bottleneck.taken()
            information = bias_information(torch.softmax(heads(features)[0], 1), batch.bias[:, 0])
            loss = cross_entropy(logits, batch.target) + mi_weight * information
            gate_optimizer.zero_grad()
            loss.backward()
            gate_optimizer.step()
            heads.step(features, batch.bias)
            total += information.detach()
            batches += 1
        history.append(float(total) / batches)
        if on_epoch is not None:
            on_epoch(len(history), temperature, history[-1])
        stalled = 0 if history[-1] < (1 - _STALL) * lowest else stalled + 1
        lowest = min(lowest, history[-1])
        if stalled >= _PATIENCE:
            temperature, lowest, stalled = temperature * anneal_factor, float("inf"), 0
    pruned = copy.deepcopy(model)
    gone = 0
    with torch.no_grad():
        for name, gate in gates.items():
            pruned.get_parameter(name).mul_(gate >= 0)
            gone += int((gate < 0).sum())
    return FFWResult(pruned.eval(), gone / sum(p.numel() for p in pruned.parameters()), tuple(history))


def weight_gate(logits: Tensor, temperature: float) -> Tensor:
    """Compute the gates min(2 sigma(g / T), 1): 1 for g >= 0, below that in (0, 1), steeper for a lower temperature T.

    Args:
        logits: g, any shape.
        temperature: T, > 0.
    """
    open_gate = 2 * torch.sigmoid(logits / temperature)
    return torch.minimum(open_gate, torch.ones_like(open_gate))  # at g = 0 each side gets half of the gradient
