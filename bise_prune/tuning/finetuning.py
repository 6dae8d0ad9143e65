"""Finetune the slim network with the sample weights of the search (BISE, Sec. 3.5)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from ..config import FinetuneConfig
from ..data.batch import Batch, Loader, as_batch, input_map
from ..data.drawn import DrawnBatches
from ..data.loader import BatchLoader, BiasedDataset, sharded
from ..distributed import copied_from_first, summed, world
from ..errors import BiseError, ConfigError, DataError
from ..mask_search.selection import LAST, RULES, resolve
from ..mask_search.weights import SampleWeights, sample_weights
from ..metrics.accuracy import Evaluation, evaluate
from ..metrics.subgroups import aligned_values, is_aligned
from ..tracing import logits_of, run
from .augmentation import Augmentation, augmentation


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
    more: BiasedDataset | None = None,
    teacher: nn.Module | None = None,
    augment: Augmentation | None = None,
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
        more: further samples to train on with balanced sampling, such as held-out ones; None if there are none.
        teacher: network whose predictions are learned for the share ``config.distill`` of the loss; never changed.
        augment: function from images (N, channels, H, W) to images that replaces ``config.augment``.
        on_epoch: function that is called with each epoch's figures and the number of epochs.

    Returns:
        The finetuned network and the figures of each epoch.

    Raises:
        ConfigError: the data do not support the selection rule, the sampling or the augmentation, or there is no
            teacher to distill from.
        DataError: a loader is empty, or yields nothing on a later pass.
        BiseError: the loss is not finite.
    """
    config = config or FinetuneConfig()
    model = copy.deepcopy(model)
    device = next(model.parameters()).device
    target, bias = _labels(train_loader)
    num_classes = int(target.max()) + 1
    aligned = aligned_values(target, bias, num_classes) if aligned is None else aligned.cpu()
    weighting = "none" if not bias.shape[1] else config.weighting
    weights = sample_weights(target, bias, num_classes, aligned, weighting, config.rho)
    loader = sharded(train_loader)
    if config.sampling == "balanced":
        loader = _drawn(train_loader, weights, aligned, more)
        weights = sample_weights(target, bias, num_classes, aligned, "none", None)
    if config.distill and teacher is None:
        raise ConfigError("distillation needs a teacher")
    change = augment
    if change is None and config.augment != "none":
        change = augmentation(config.augment, _inputs(train_loader))
    losses_of = _Losses(weights.to(device, torch.float32), change, teacher, config.distill)
    first = None if val_loader is None else next(iter(val_loader), None)
    if val_loader is not None and first is None:
        raise DataError("the validation loader is empty")
    has_bias = first is not None and as_batch(first).bias.shape[1] > 0
    rule = resolve(config.select, val_loader is not None, has_bias)
    optimizer = _optimizer(config, [parameter for parameter in model.parameters() if parameter.requires_grad])
    scheduler = None
    if config.schedule == "cosine":
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs)
    history: list[FinetuneEpoch] = []
    best: tuple[float, int, dict[str, Any]] | None = None

    def note(epoch: int, loss: float) -> None:
        nonlocal best
        validation = None if val_loader is None else evaluate(model.eval(), val_loader, aligned)
        history.append(FinetuneEpoch(epoch, loss, validation))
        score = RULES[rule](validation) if validation is not None and rule != LAST else 0.0
        if best is None or score >= best[0]:
            best = (score, epoch, copy.deepcopy(model.state_dict()))
        if on_epoch is not None and epoch:
            on_epoch(history[-1], config.epochs)

    if val_loader is not None:
        note(0, float("nan"))
    for epoch in range(1, config.epochs + 1):
        set_epoch = getattr(loader, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch - 1)
        with torch.random.fork_rng():  # augmentation and dropout
            torch.manual_seed(epoch)
            loss = _pass(model.train(), loader, losses_of, optimizer, config.clip_norm)
        if not loss < float("inf"):
            raise BiseError(f"the loss is {loss} in epoch {epoch} of finetuning: lower its lr")
        copied_from_first(model.buffers())
        if scheduler is not None:
            scheduler.step()
        note(epoch, loss)
    assert best is not None
    model.load_state_dict(best[2])
    return FinetuneResult(model.eval(), best[1], rule, tuple(history))


class _Losses:
    """The loss of each sample of a batch, shape (N,).

    Args:
        weights: sample weights.
        change: random change of images; None for none.
        teacher: network whose predictions are learned.
        distill: share of the loss that is the divergence from the teacher's predictions.
    """

    def __init__(
        self, weights: SampleWeights, change: Augmentation | None, teacher: nn.Module | None, distill: float
    ) -> None:
        self.weights, self.change, self.teacher, self.distill = weights, change, teacher, distill

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs = batch.input if self.change is None else input_map(batch.input, self.change)
        logits = logits_of(run(model, inputs))
        losses = cross_entropy(logits, batch.target, reduction="none") * self.weights(batch.target, batch.bias)
        if not self.distill or self.teacher is None:
            return losses
        with torch.no_grad():
            taught = logits_of(run(self.teacher, inputs)).log_softmax(1)
        divergence = kl_div(logits.log_softmax(1), taught, reduction="none", log_target=True).sum(1)
        return (1 - self.distill) * losses + self.distill * divergence


def _pass(
    model: nn.Module, loader: Iterable[Any], losses_of: _Losses, optimizer: torch.optim.Optimizer,
    clip_norm: float | None,
) -> float:  # fmt: skip
    """Take a step on each batch of a loader, in all processes, and return the mean loss.

    Raises:
        DataError: the loader yields nothing.
    """
    parameters, processes = optimizer.param_groups[0]["params"], world()[1]
    device = parameters[0].device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for raw in loader:
        losses = losses_of(model, as_batch(raw).to(device))
        count = summed(torch.tensor(len(losses), device=device))
        optimizer.zero_grad()
        (losses.sum() / count).backward()
        for parameter in parameters if processes > 1 else ():
            if parameter.grad is not None:
                parameter.grad = summed(parameter.grad)
        if clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, clip_norm)
        optimizer.step()
        sums += torch.stack([losses.detach().double().sum(), torch.tensor(float(len(losses))).to(sums)])
    total, count = summed(sums).tolist()
    if not count:
        raise DataError("the training loader yields nothing on a later pass: give a loader, not an iterator")
    return float(total / count)


def _drawn(loader: Loader, weights: SampleWeights, aligned: Tensor, more: BiasedDataset | None) -> DrawnBatches:
    """Batches of samples that are drawn by their weight, from the training set and from further samples.

    The two share the batches in proportion to their bias-conflicting samples, so that no such sample is drawn much more
    often than another.

    Raises:
        ConfigError: the samples of the loader are not accessible by number.
    """
    if not isinstance(loader, BatchLoader):
        raise ConfigError("balanced sampling needs a BatchLoader, whose samples are accessible by number")
    sets, drawn, shares = [loader.data, *([] if more is None else [more])], [], []
    for data in sets:
        target, bias = data.target.cpu(), data.bias.cpu()
        own = weights if data is loader.data else sample_weights(target, bias, len(aligned), aligned, "auto", None)
        drawn.append(own(target, bias).expand(len(target)))
        shares.append(max(1, int((~is_aligned(target, bias, aligned)).any(1).sum()) if bias.shape[1] else 0))
    return DrawnBatches(sets, drawn, shares, loader.batch_size, loader.seed)


def _inputs(loader: Loader) -> object:
    """Inputs of some samples of a loader."""
    return loader.data.inputs if isinstance(loader, BatchLoader) else as_batch(next(iter(loader))).input


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
