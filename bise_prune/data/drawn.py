"""Batches of samples that are drawn instead of being passed through."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..distributed import world
from .batch import Batch
from .loader import BiasedDataset


class DrawnBatches:
    """Batches of samples that are drawn by their weight, each batch from one of several data sets.

    A pass has as many batches as one over all sets. Each process of ``torch.distributed`` gets its part of a batch.

    Args:
        sets: data sets with the same kind of inputs.
        weights: weights of the samples of each set, shape (N,) each.
        shares: numbers that the sets share the batches by, not all 0.
        batch_size: samples per batch, in all processes together.
        seed: random seed; pass n has the same draws for equal seeds.
    """

    def __init__(
        self,
        sets: Sequence[BiasedDataset],
        weights: Sequence[Tensor],
        shares: Sequence[float],
        batch_size: int,
        seed: int = 0,
    ) -> None:
        self.sets, self.weights, self.shares = sets, weights, torch.tensor(shares, dtype=torch.double)
        self.size, self.seed, self.number = batch_size, seed, 0

    def set_epoch(self, number: int) -> None:
        """Set the number of the next pass, which determines its draws."""
        self.number = number

    def __len__(self) -> int:
        return -(-sum(len(data) for data in self.sets) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.number)
        self.number += 1
        rank, processes = world()
        for which in torch.multinomial(self.shares, len(self), replacement=True, generator=generator).tolist():
            rows = torch.multinomial(self.weights[which], self.size, replacement=True, generator=generator)
            yield self.sets[which].batch(rows[rank::processes])
