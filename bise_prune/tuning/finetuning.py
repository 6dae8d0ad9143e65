"""Finetuning of an extracted subnetwork with the search's sample weights (BISE, Sec. 3.5)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..config import FinetuneConfig
from ..data.batch import Loader, as_batch
from ..data.loader import BatchLoader
from ..distributed import copied_from_first, summed, world
from ..errors import BiseError, DataError
from ..mask_search.selection import LAST, RULES, resolve
from ..mask_search.weights import sample_weights
from ..metrics.accuracy import Evaluation, evaluate
from ..metrics.subgroups import aligned_values
from ..tracing import logits_of, run


@dataclass(frozen=True)
class FinetuneEpoch:
    """One epoch: its mean loss L_r, and accuracies at its end where there are validation data."""

    epoch: int
    loss: float
    validation: Evaluation | None


@dataclass(frozen=True)
class FinetuneResult:
    """What finetuning made of a network.

    Attributes:
        model: of the selected epoch, in eval mode; epoch 0 is the network as it came.
        epoch: the selected one.
        rule: how it was selected.
        history: one record per epoch, from 0 with validation data.
    """

    model: nn.Module
    epoch: int
    rule: str
    history: tuple[FinetuneEpoch, ...]


def finetune(
    model: nn.Module,
    train_loader: Loader,
    config: FinetuneConfig | None = None,
    val_loader: Loader | None = None,
    *,
    aligned: Tensor | None = None,
    on_epoch: Callable[[FinetuneEpoch, int], None] | None = None,
) -> FinetuneResult:
    """Minimise the reweighted cross-entropy L_r (Eq. 4) over the weights of a copy of ``model``; its structure stays.

    Processes of ``torch.distributed`` divide a :class:`bise_prune.data.BatchLoader` among them, as in
    :func:`bise_prune.search`.

    Args:
        model: a network, slim or dense; never changed.
        train_loader: the biased training set.
        config: epochs, optimiser and selection.
        val_loader: to select an epoch on.
        aligned: see :func:`bise_prune.search`.
        on_epoch: called with each epoch's record and the number of epochs.

    Raises:
        ConfigError: a selection rule that the data do not support.
        DataError: no training data, or none with bias labels.
        BiseError: the loss is not finite.
    """
    config = config or FinetuneConfig()
    rank, processes = world()
    loader = train_loader
    if isinstance(loader, BatchLoader) and processes > 1:
        loader = dataclasses.replace(loader, shard=(rank, processes))
    model = copy.deepcopy(model)
    device = next(model.parameters()).device
    target, bias = _labels(train_loader)
    num_classes = int(target.max()) + 1
    aligned = aligned_values(target, bias, num_classes) if aligned is None else aligned.cpu()
    weighting = "none" if not bias.shape[1] else config.weighting
    weights = sample_weights(target, bias, num_classes, aligned, weighting, config.rho).to(device, torch.float32)
    first = None if val_loader is None else next(iter(val_loader), None)
    if val_loader is not None and first is None:
        raise DataError("the validation loader is empty")
    has_bias = first is not None and as_batch(first).bias.shape[1] > 0
    rule = resolve(config.select, val_loader is not None, has_bias)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = _optimizer(config, parameters)
    scheduler = None
    if config.schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    history: list[FinetuneEpoch] = []
    best: tuple[float, int, dict[str, Tensor]] | None = None

    def note(epoch: int, loss: float) -> None:
        nonlocal best
        validation = None if val_loader is None else evaluate(model.eval(), val_loader, aligned)
        history.append(FinetuneEpoch(epoch, loss, validation))
        score = RULES[rule](validation) if validation is not None and rule != LAST else 0.0
        if best is None or score >= best[0]:
            best = (score, epoch, {name: tensor.detach().clone() for name, tensor in model.state_dict().items()})
        if on_epoch is not None and epoch:
            on_epoch(history[-1], config.epochs)

    if val_loader is not None:
        note(0, float("nan"))
    for epoch in range(1, config.epochs + 1):
        model.train()
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        set_epoch = getattr(loader, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch - 1)
        for raw in loader:
            batch = as_batch(raw).to(device)
            losses = cross_entropy(logits_of(run(model, batch.input)), batch.target, reduction="none")
            losses = losses * weights(batch.target, batch.bias)
            count = summed(torch.tensor(len(losses), device=device))
            optimizer.zero_grad()
            (losses.sum() / count).backward()
            for parameter in parameters if processes > 1 else ():
                if parameter.grad is not None:
                    parameter.grad = summed(parameter.grad)
            optimizer.step()
            sums += torch.stack([losses.detach().double().sum(), torch.tensor(float(len(losses))).to(sums)])
        total, count = summed(sums).tolist()
        if not count:
            raise DataError("the training loader yields nothing on a later pass: give a loader, not an iterator")
        if not total / max(count, 1) < float("inf"):
            raise BiseError(f"the loss is {total / max(count, 1)} in epoch {epoch} of finetuning: lower its lr")
        copied_from_first(model.buffers())
        if scheduler is not None:
            scheduler.step()
        note(epoch, total / count)
    assert best is not None
    model.load_state_dict(best[2])
    return FinetuneResult(model.eval(), best[1], rule, tuple(history))


def _labels(loader: Loader) -> tuple[Tensor, Tensor]:
    """Class and bias labels of the whole training set, on the CPU."""
    if isinstance(loader, BatchLoader):
        return loader.data.target.cpu(), loader.data.bias.cpu()
    batches = [as_batch(raw) for raw in loader]
    if not batches:
        raise DataError("the training loader is empty")
    return torch.cat([batch.target for batch in batches]).cpu(), torch.cat([batch.bias for batch in batches]).cpu()


def _optimizer(config: FinetuneConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kinds: Mapping[str, type[torch.optim.Adam | torch.optim.AdamW]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    return kinds[config.optimizer](parameters, lr=config.lr, weight_decay=config.weight_decay)
