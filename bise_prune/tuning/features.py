"""The features that the last layer of a network reads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..data import BatchLoader, BiasedDataset
from ..gates.bottleneck import CapturedInputs
from ..tracing import run

_BATCH = 200


def bottleneck_features(model: nn.Module, layer: str, data: BiasedDataset) -> Tensor:
    """The input of a network's last layer for each sample, shape (N, d), on the network's device.

    Args:
        model: network in eval mode.
        layer: name of its last layer; see :func:`bise_prune.gates.bottleneck.head_name`.
        data: samples.
    """
    device, parts = next(model.parameters()).device, []
    with torch.no_grad():
        for batch in BatchLoader(data, _BATCH):
            with CapturedInputs(model, layer) as bottleneck:
                run(model, batch.to(device).input)
            parts.append(bottleneck.inputs.pop().flatten(1))
    return torch.cat(parts)
