"""Batch-norm statistics that are estimated again, for the activations that the slim network has."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..data.batch import Loader, as_batch
from ..tracing import run

Norm = nn.modules.batchnorm._BatchNorm


def batch_norms(model: nn.Module) -> list[Norm]:
    """The batch norms of a network that have running statistics."""
    return [module for module in model.modules() if isinstance(module, Norm) and module.running_mean is not None]


def reestimated(model: nn.Module, loader: Loader) -> nn.Module:
    """A copy of a network whose batch norms have the statistics of other data: the mean over the batches.

    No weight is changed. Everything but the batch norms stays in eval mode.

    Args:
        model: the network; never changed.
        loader: samples, balanced over the subgroups; batches of one sample are left out.
    """
    copied = copy.deepcopy(model).eval()
    device = next(copied.parameters()).device
    norms = batch_norms(copied)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    with torch.no_grad():
        for raw in loader:
            batch = as_batch(raw).to(device)
            if len(batch.target) > 1:
                run(copied, batch.input)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return copied
