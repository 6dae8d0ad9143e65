"""Other ways to finetune the network of Table 7, tried to find which one has the paper's balance of the groups.

They explain a difference and choose nothing: the tables keep Eq. (B.9), whatever comes of these on test images.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bise_prune.data.multi_color_mnist import TRAIN_RHO
from bise_prune.metrics.subgroups import is_aligned

from .cases import Case, Figures

EPOCHS, LOOK_EVERY = 50, 10
_SHARE = torch.tensor(TRAIN_RHO)
_CLASSES = 10


@dataclass(frozen=True)
class Way:
    """One way to finetune.

    Attributes:
        label: in words.
        weights: of samples, shape (N,), from which of the two biases they are aligned with, bool of shape (N, 2).
        lr: of Adam.
        weight_decay: of Adam.
        normalised: whether the loss is divided by the sum of a batch's weights instead of its size.
    """

    label: str
    weights: Callable[[Tensor], Tensor]
    lr: float = 1e-3
    weight_decay: float = 1e-4
    normalised: bool = False


def _inverse(aligned: Tensor) -> Tensor:
    """1 / rho or 1 / (1 - rho), per bias: the factors of Eq. (B.9)."""
    return 1 / torch.where(aligned, _SHARE, 1 - _SHARE)


def _eq4(aligned: Tensor) -> Tensor:
    """Eq. (4), per bias."""
    return torch.where(aligned, 1 / (_CLASSES * _SHARE), (_CLASSES - 1) / (_CLASSES * (1 - _SHARE)))


def product(aligned: Tensor) -> Tensor:
    """Eq. (B.9)."""
    return _inverse(aligned).prod(1)


def total(aligned: Tensor) -> Tensor:
    """The sum of its factors."""
    return _inverse(aligned).sum(1)


def two_groups(aligned: Tensor) -> Tensor:
    """Inverse shares of the samples that are aligned with both biases, and of all others."""
    both = _SHARE.prod()
    return torch.where(aligned.all(1), 1 / both, 1 / (1 - both))


WAYS = {
    "any": Way("two groups, aligned with both biases or not", two_groups),
    "root": Way("square roots of Eq. (B.9)", lambda aligned: product(aligned).sqrt()),
    "sum": Way("sum of the factors of Eq. (B.9)", total),
    "sum-eq4": Way("sum of Eq. (4) over the biases", lambda aligned: _eq4(aligned).sum(1)),
    "left": Way("the left bias's factor alone", lambda aligned: _inverse(aligned)[:, 0]),
    "right": Way("the right bias's factor alone", lambda aligned: _inverse(aligned)[:, 1]),
    "equal": Way("no weights", lambda aligned: torch.ones(len(aligned))),
    "normalised": Way("Eq. (B.9), the loss over the sum of a batch's weights", product, normalised=True),
    "hundredth": Way("Eq. (B.9) / 100, so that weight decay weighs more", lambda aligned: product(aligned) / 100),
    "no-decay": Way("Eq. (B.9), no weight decay", product, weight_decay=0.0),
    "slow": Way("Eq. (B.9), Adam 1e-4", product, lr=1e-4),
    "sum-slow": Way("sum of the factors, Adam 1e-4", total, lr=1e-4),
}


def finetuned(way: Way) -> Callable[[Case], Mapping[str, Figures]]:
    """The extracted network finetuned in another way; a row each few epochs."""

    def run(case: Case) -> Mapping[str, Figures]:
        rows = dict[str, Figures]()
        for epoch, network in enumerate(networks(case, way), start=1):
            if epoch % LOOK_EVERY == 0:
                found = case.evaluation(network)
                groups = {f"group {group.name}": group.accuracy for group in found.subgroups}
                rows[f"{epoch} epochs"] = {"unbiased": found.unbiased_accuracy, **groups}
        return rows

    return run


def networks(case: Case, way: Way) -> Iterator[nn.Module]:
    """The same network after each epoch, in eval mode."""
    network = copy.deepcopy(case.pruned().model)
    optimizer = torch.optim.Adam(network.parameters(), lr=way.lr, weight_decay=way.weight_decay)
    loader = case.loader()
    for epoch in range(EPOCHS):
        network.train()
        loader.set_epoch(epoch)
        for batch in loader:
            moved = batch.to(case.device)
            weights = way.weights(is_aligned(batch.target, batch.bias, case.aligned)).to(case.device)
            losses = cross_entropy(network(moved.input), moved.target, reduction="none") * weights
            loss = losses.sum() / (weights.sum() if way.normalised else len(losses))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        yield network.eval()
