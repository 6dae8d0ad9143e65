"""What may change in norm layers: batch-norm statistics, estimated again, and the norms' own weights, trained.

A norm layer multiplies each channel by a weight and adds a bias to it. These are few numbers, a hundredth of those of a
network or less, but they turn each of its channels up or down: with some hundred balanced samples, a network unlearns
much of its bias.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..data import BiasedDataset
from ..data.batch import Loader, as_batch
from ..tracing import logits_of, run

Norm = nn.modules.batchnorm._BatchNorm
_KINDS = (Norm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_STEPS, _BATCH, _LR = 60, 100, 0.03  # of the training: Adam, with a learning rate that falls to 0 along a cosine
TRAINED_ON = _STEPS * _BATCH  # samples that it takes, each as often as it is drawn
_AT_ONCE = 25  # samples of a batch whose gradients are computed together, so that large networks fit


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
    before = [(norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over the batches
        norm.train()
    with torch.no_grad():
        for raw in loader:
            batch = as_batch(raw).to(device)
            if len(batch.target) > 1:
                run(copied, batch.input)
    for norm, (momentum, state) in zip(norms, before, strict=True):
        norm.momentum = momentum
        norm.eval()
        if norm.num_batches_tracked == 0:  # it does not run
            norm.load_state_dict(state)
    return copied


def norm_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The weights and additive biases of torch's norm layers in a network, each once."""
    norms = [module for module in model.modules() if isinstance(module, _KINDS)]
    found = (getattr(norm, name, None) for norm in norms for name in ("weight", "bias"))
    return list(dict.fromkeys(parameter for parameter in found if isinstance(parameter, nn.Parameter)))


@torch.inference_mode(False)
@torch.enable_grad()
def trained(model: nn.Module, data: BiasedDataset, weight_N: Tensor) -> nn.Module | None:
    """A copy of a network whose norm layers' weights and additive biases are trained on other data.

    Nothing else is changed, and all of the network stays in eval mode: statistics of batch norms are as they are.

    Args:
        model: the network; never changed.
        data: samples with their class labels.
        weight_N: weights by which samples are drawn, shape (N,), on the CPU.

    Returns:
        The copy; None if it cannot be trained: if no output depends on a norm layer in a way that can be
        differentiated, or a weight does not stay finite.
    """
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    parameters, device = norm_parameters(copied), next(model.parameters()).device
    if not parameters:
        return None
    optimizer = torch.optim.Adam([parameter.requires_grad_(True) for parameter in parameters], lr=_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    rows = torch.multinomial(weight_N, TRAINED_ON, replacement=True, generator=torch.Generator().manual_seed(0))
    for part in rows.split(_BATCH):
        optimizer.zero_grad()
        for few in part.split(_AT_ONCE):
            batch = data.batch(few).to(device)
            loss = cross_entropy(logits_of(run(copied, batch.input)), batch.target, reduction="sum") / len(part)
            if not loss.requires_grad or not _is_differentiated(loss):
                return None
        optimizer.step()
        schedule.step()
    optimizer.zero_grad()
    for ours, theirs in zip(copied.parameters(), model.parameters(), strict=True):
        ours.requires_grad_(theirs.requires_grad)
    return copied if all(bool(parameter.isfinite().all()) for parameter in parameters) else None


def _is_differentiated(loss: Tensor) -> bool:
    """Add the gradients of a loss, if the network's own code lets it be differentiated."""
    try:
        loss.backward()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # such as an activation that is changed in place
        return False
    return True
