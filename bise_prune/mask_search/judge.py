"""What a gradual search judges masks by: the network as it is, or with a last layer that is refitted to the masks.

If the last layer may be refitted after the removal, the loss of the network as it is says little: much of what closing
a channel does to it is undone by the refit. Then a refitted head is judged, one fitted to half of the balanced sample
on the other half. Copies of a sample, as rare ones have, are in the same half, so that a head is not judged on samples
that it was fitted to, and each half has its part of every subgroup.
"""

# Shape suffixes: N samples, D features, C classes, M channels.

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from ..distributed import gathered, summed
from ..errors import ConfigError
from .assembly import Search
from .refitted import Sample, refitted_head

_PENALTY = 3e-2  # of a head that is fitted to half of the sample


class Judge:
    """Losses and accuracies of masks on a balanced sample.

    Args:
        search: parts of the search.
        sample: the sample; of several processes, each has a part.

    Raises:
        ConfigError: the last layer is to be refitted and has no additive bias.
    """

    def __init__(self, search: Search, sample: Sample) -> None:
        self.search, self.sample = search, sample
        self.refits = search.config.refit == "head"
        readout = search.network.readout
        if self.refits and not readout.is_plain:
            raise ConfigError("refit 'head' changes the last layer, and this network does not end in a linear one")
        layer = search.network.model.get_submodule(readout.layers[0])
        self.layer = layer if isinstance(layer, nn.Linear) else None
        if self.refits and layer.bias is None:
            raise ConfigError("refit 'head' changes the last layer's additive bias, which this network's does not have")

    @torch.no_grad()
    def loss(self, gates: Tensor) -> float:
        """Mean cross-entropy on the sample.

        Args:
            gates: gates of 0 and 1, shape (M,).
        """
        if self.refits:
            return self._refitted_loss(gates)
        sums = torch.zeros(2, dtype=torch.float64, device=gates.device)
        for part, inputs in self.search.passes.inputs(self.sample.batches):
            target = self.search.labels.of(part).target
            losses = cross_entropy(self.search.passes.forward(gates, inputs)[0].double(), target, reduction="none")
            sums += torch.stack([losses.sum(), torch.full_like(sums[0], len(target))])
        total, count = summed(sums)
        return float(total / count)

    def _refitted_loss(self, gates: Tensor) -> float:
        """The loss on each half of the sample of a head that is fitted to the other half."""
        features, target = self._seen(gates)
        is_odd = self._halves
        total = 0.0
        for side in (is_odd, ~is_odd):
            head = refitted_head(features[~side], target[~side], self.search.network.num_classes, penalty=_PENALTY)
            logits = linear(features[side], head[:, :-1], head[:, -1]).double()
            total += float(cross_entropy(logits, target[side], reduction="sum"))
        return total / len(target)

    @torch.no_grad()
    def head(self, gates: Tensor) -> Tensor | None:
        """Weights of a head that is fitted to the sample, shape (C, D + 1); None where none is refitted."""
        if not self.refits:
            return None
        features, target = self._seen(gates)
        return refitted_head(features, target, self.search.network.num_classes)

    def _seen(self, gates: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, D) and classes (N,) of the samples of all processes."""
        features, targets = [], []
        for part, inputs in self.search.passes.inputs(self.sample.batches):
            features.append(self.search.passes.forward(gates, inputs)[1])
            targets.append(self.search.labels.of(part).target)
        return gathered(torch.cat(features)), gathered(torch.cat(targets))

    @cached_property
    def _halves(self) -> Tensor:
        """Which samples of all processes are in the second half, bool of shape (N,): every other one of a subgroup."""
        labels = [self.search.labels.of(part) for part in self.sample.parts]
        subgroup = torch.cat([2 * each.target + each.conflicting.any(1) for each in labels])
        numbers = torch.cat(self.sample.numbers).to(subgroup.device)
        distinct, place = gathered(numbers).unique(return_inverse=True)
        of_distinct = torch.empty_like(distinct).scatter_(0, place, gathered(subgroup))
        rank = of_distinct.argsort(stable=True).argsort()
        return (rank % 2 == 1)[place]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the network has the head that masks are judged by, fitted to the present masks."""
        head = self.head(self.search.network.gates.values.detach())
        if head is None:
            yield
            return
        assert self.layer is not None
        weight, bias = self.layer.weight.detach(), self.layer.bias.detach()  # they share their memory with the layer's
        own = weight.clone(), bias.clone()
        weight.copy_(head[:, :-1])
        bias.copy_(head[:, -1])
        try:
            yield
        finally:
            weight.copy_(own[0])
            bias.copy_(own[1])
