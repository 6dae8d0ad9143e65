"""Train a classifier with the usual cross-entropy: the vanilla network that debiasing starts from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ..data.batch import Loader, as_batch, input_map
from ..tracing import logits_of, run


def train_vanilla(
    model: nn.Module,
    loader: Loader,
    optimizer: torch.optim.Optimizer,
    *,
    epochs: int,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    augment: Callable[[torch.Tensor], torch.Tensor] | None = None,
    on_epoch: Callable[[int, float], None] | None = None,
) -> None:
    """Minimise the cross-entropy (empirical risk) of ``model`` in place; it is left in eval mode.

    Args:
        model: the network; changed in place.
        loader: loader of batches with named fields; bias labels are not used.
        optimizer: optimiser of the network's parameters.
        epochs: passes over the loader.
        scheduler: learning rate scheduler, stepped once per epoch; None for a constant learning rate.
        augment: function that is applied to the input tensors of each batch; None for no augmentation.
        on_epoch: function that is called with the number of each epoch, from 1, and its mean loss.
    """
    device = next(model.parameters()).device
    model.train()
    for epoch in range(1, epochs + 1):
        total, count = 0.0, 0
        for raw in loader:
            batch = as_batch(raw).to(device)
            inputs = batch.input if augment is None else input_map(batch.input, augment)
            loss = cross_entropy(logits_of(run(model, inputs)), batch.target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch.target)
            count += len(batch.target)
        if scheduler is not None:
            scheduler.step()
        if on_epoch is not None:
            on_epoch(epoch, total / count)
    model.eval()
