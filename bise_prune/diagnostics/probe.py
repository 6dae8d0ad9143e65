"""Measure how accurately a linear classifier predicts the bias label from a network's bottleneck (BISE, App. M)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.batch import Loader, as_batch
from ..errors import DataError
from ..gates.bottleneck import CapturedInputs, Readout, readout_of
from ..mask_search.heads import BiasHeads
from ..tracing import run, trace


@dataclass(frozen=True)
class BiasProbe:
    """Accuracy of linear classifiers that predict the bias labels from frozen features, in [0, 1], one entry per bias.

    Attributes:
        accuracy: accuracy on the test data.
        majority: accuracy of always predicting the most frequent bias value of the test data.
        n: number of test samples.
    """

    accuracy: tuple[float, ...]
    majority: tuple[float, ...]
    n: int


def probe_bias(
    model: nn.Module,
    train_loader: Loader,
    test_loader: Loader,
    *,
    epochs: int = 100,
    batch_size: int = 100,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    seed: int = 0,
) -> BiasProbe:
    """Train one linear probe per bias on the input of the classifier head, and test it; the network is not trained.

    Args:
        model: masked, slim or dense network that ends in a linear layer.
        train_loader: loader of *unbiased* data, so that the probes cannot infer the bias from the class (the paper's
            rho = 0.1).
        test_loader: loader of unbiased test data.
        epochs: training epochs of the probes.
        batch_size: samples per batch in the training of the probes.
        lr: learning rate of the optimiser (SGD).
        momentum: momentum of the optimiser (SGD).
        weight_decay: weight decay of the optimiser (SGD).
        seed: random seed of the initial weights and of the batches.

    Raises:
        DataError: a loader is empty, or has no bias labels.
        ModelError: the network does not end in a linear layer.
    """
    features, bias = _features(model, train_loader)
    test_features, test_bias = _features(model, test_loader)
    generator = torch.Generator().manual_seed(seed)
    sizes = [max(2, int(torch.cat([a, b]).max()) + 1) for a, b in zip(bias.unbind(1), test_bias.unbind(1), strict=True)]
    heads = BiasHeads(
        features.shape[1], sizes, generator, features.dtype, features.device,
        lr=lr, momentum=momentum, weight_decay=weight_decay,
    )  # fmt: skip
    heads.train(features, bias, epochs=epochs, batch_size=batch_size, generator=generator)
    with torch.no_grad():
        hits = [
            float((logits.argmax(1) == test_bias[:, k]).double().mean())
            for k, logits in enumerate(heads(test_features))
        ]
    majority = [float(column.bincount().max()) / len(column) for column in test_bias.unbind(1)]
    return BiasProbe(tuple(hits), tuple(majority), len(test_bias))


def _features(model: nn.Module, loader: Loader) -> tuple[Tensor, Tensor]:
    """Bottleneck features (N, d) and bias labels (N, K), on the model's device."""
    device = next(model.parameters()).device
    features, biases = [], []
    readout: Readout | None = None
    for raw in loader:
        batch = as_batch(raw).to(device)
        readout = readout or readout_of(model, trace(model, batch.input))
        with torch.no_grad(), CapturedInputs(model, *readout.layers) as bottleneck:
            run(model, batch.input)
        features.append(bottleneck.taken())
        biases.append(batch.bias)
    if not features or not biases[0].shape[1]:
        raise DataError("a probe needs samples with bias labels, for training and for testing")
    return torch.cat(features), torch.cat(biases)
