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
from bise_prune.subgroups import is_aligned

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


WAYS = {
    "product": Way("product over the biases, Eq. (B.9)", lambda aligned: _inverse(aligned).prod(1)),
    "normalised": Way(
        "the same, the loss over the sum of a batch's weights", lambda aligned: _inverse(aligned).prod(1),
        normalised=True,
    ),
    "slow": Way("the same, Adam 1e-4", lambda aligned: _inverse(aligned).prod(1), lr=1e-4),
    "no-decay": Way(
        "the same, no weight decay", lambda aligned: _inverse(aligned).prod(1), weight_decay=0.0
    ),
    "hundredth": Way(
        "a hundredth of these weights, so more weight decay", lambda aligned: _inverse(aligned).prod(1) / 100
    ),
    "root": Way("square roots of these weights", lambda aligned: _inverse(aligned).prod(1).sqrt()),
    "any": Way(
        "two groups, aligned with both or not, by their shares",
        lambda aligned: torch.where(aligned.all(1), 1 / _SHARE.prod(), 1 / (1 - _SHARE.prod())),
    ),
    "sum": Way("sum of the factors of Eq. (B.9)", lambda aligned: _inverse(aligned).sum(1)),
    "sum-slow": Way("the same, Adam 1e-4", lambda aligned: _inverse(aligned).sum(1), lr=1e-4),
    "sum-eq4": Way("sum of Eq. (4) over the biases", lambda aligned: _eq4(aligned).sum(1)),
    "left": Way("the left bias's factor alone", lambda aligned: _inverse(aligned)[:, 0]),
    "right": Way("the right bias's factor alone", lambda aligned: _inverse(aligned)[:, 1]),
    "equal": Way("no weights", lambda aligned: torch.ones(len(aligned))),
}  # fmt: skip


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
