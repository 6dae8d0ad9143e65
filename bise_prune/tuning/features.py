"""The features that the classifier head of a network reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..data import BatchLoader, BiasedDataset
from ..gates.bottleneck import CapturedInputs
from ..tracing import run

_BATCH = 200


def bottleneck_features(model: nn.Module, layers: Sequence[str], data: BiasedDataset) -> Tensor:
    """The input of a network's classifier head for each sample, shape (N, d), on the network's device.

    Args:
        model: network in eval mode.
        layers: names of the head's layers; see :func:`bise_prune.gates.bottleneck.readout_of`.
        data: samples.
    """
    device, parts = next(model.parameters()).device, []
    with torch.no_grad():
        for batch in BatchLoader(data, _BATCH):
            with CapturedInputs(model, *layers) as bottleneck:
                run(model, batch.to(device).input)
            parts.append(bottleneck.taken())
    return torch.cat(parts)
