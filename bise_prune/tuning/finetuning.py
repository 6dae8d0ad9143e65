"""Finetune the slim network with the sample weights of the search (BISE, Sec. 3.5)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..config import FinetuneConfig
from ..data.batch import Loader, as_batch
from ..data.loader import BatchLoader, sharded
from ..distributed import copied_from_first, summed, world
from ..errors import BiseError, DataError
from ..mask_search.selection import LAST, RULES, resolve
from ..mask_search.weights import sample_weights
from ..metrics.accuracy import Evaluation, evaluate
from ..metrics.subgroups import aligned_values
from ..tracing import logits_of, run


@dataclass(frozen=True)
class FinetuneEpoch:
    """Figures of one epoch of finetuning.

    Attributes:
        epoch: number of the epoch, from 1; 0 is the network before finetuning.
        loss: mean reweighted cross-entropy L_r over the epoch; NaN for epoch 0.
        validation: accuracies at the end of the epoch; None without validation data.
    """

    epoch: int
    loss: float
    validation: Evaluation | None


@dataclass(frozen=True)
class FinetuneResult:
    """Result of finetuning a network.

    Attributes:
        model: finetuned network with the weights of the selected epoch, in eval mode.
        epoch: the selected epoch; 0 is the network before finetuning.
        rule: selection rule that was used, such as "best" or "last".
        history: figures of each epoch, from 1; with validation data, from 0.
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
        model: slim or dense network; never changed.
        train_loader: loader of the biased training set.
        config: epochs, optimiser and selection rule; the defaults of :class:`bise_prune.FinetuneConfig` if None.
        val_loader: loader of the validation data on which an epoch is selected; None if there are none.
        aligned: the bias value that each class is aligned with, shape (classes, K), int64; None = the one most
            associated with the class in the training set.
        on_epoch: function that is called with each epoch's figures and the number of epochs.

    Returns:
        The finetuned network and the figures of each epoch.

    Raises:
        ConfigError: the data do not support the selection rule.
        DataError: a loader is empty, or yields nothing on a later pass.
        BiseError: the loss is not finite.
    """
    config = config or FinetuneConfig()
    loader, processes = sharded(train_loader), world()[1]
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
    """Class labels (N,) and bias labels (N, K) of the whole training set, on the CPU."""
    if isinstance(loader, BatchLoader):
        return loader.data.target.cpu(), loader.data.bias.cpu()
    batches = [as_batch(raw) for raw in loader]
    if not batches:
        raise DataError("the training loader is empty")
    return torch.cat([batch.target for batch in batches]).cpu(), torch.cat([batch.bias for batch in batches]).cpu()


def _optimizer(config: FinetuneConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser that the settings ask for."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    kinds: Mapping[str, type[torch.optim.Adam | torch.optim.AdamW]] = {
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }
    return kinds[config.optimizer](parameters, lr=config.lr, weight_decay=config.weight_decay)
