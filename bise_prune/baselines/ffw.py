"""FFW (Nahon et al., 2023), the predecessor of BISE: a gate on every weight, learned on the frozen network."""

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

_PATIENCE, _STALL = 5, 0.05  # epochs without the information falling by this share, before the temperature is cut


@dataclass(frozen=True)
class FFWResult:
    """What FFW found.

    Attributes:
        model: a copy with the pruned weights at zero; its shapes stay, so that nothing becomes faster.
        sparsity: share of the network's parameters that are zeroed.
        information: mutual information of each epoch, mean over its batches.
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
    """Learn gates min(2 sigma(g / T), 1) on the weights of the encoder; those with g < 0 are pruned at the end.

    The objective is the plain cross-entropy plus ``mi_weight`` times the mutual information over *all* samples of a
    batch; it was made for unbiased training sets. T starts at 1 and is cut when the information stalls.

    Args:
        model: the vanilla network, ending in a linear layer, which is not gated; never changed.
        train_loader: batches with one bias.
        mi_weight: gamma.
        lr: of Adam, for the gates; the head's is SGD as in BISE.
        weight_decay: of Adam.
        anneal_factor: of a temperature cut.
        min_temperature: the search stops below it.
        max_epochs: at the latest.
        seed: of the head.
        on_epoch: called with the epoch, the temperature and the information.

    Raises:
        ConfigError: not one bias.
        DataError: the loader is empty.
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
            features = bottleneck.inputs.pop().flatten(1)
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
    """The gate min(2 sigma(g / T), 1): 1 for g >= 0, and in (0, 1) below, the steeper the lower T."""
    open_gate = 2 * torch.sigmoid(logits / temperature)
    return torch.minimum(open_gate, torch.ones_like(open_gate))  # at g = 0 both pass a half of the gradient on
