"""Switches for the shortcuts of the search."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Speedups:
    """Which shortcuts a search uses; none of them changes a mask.

    Attributes:
        affine_norms: whether batch norms with fixed statistics run as affine maps (:mod:`.affine_norms`).
        skipped_channels: whether layers skip the work on closed channels (:mod:`.skipped_channels`).
        cached_prefix: whether activations before the first gate are computed only once (:mod:`.cached_prefix`).
        kept_results: whether bottleneck features and validation accuracies are kept until a mask changes.
        batched_steps: whether, while no mask changes, per-sample gradients are kept and the steps of several batches
            come from one forward pass (:mod:`.batched_steps`).
    """

    affine_norms: bool = True
    skipped_channels: bool = True
    cached_prefix: bool = True
    kept_results: bool = True
    batched_steps: bool = True

    @classmethod
    def none(cls) -> Speedups:
        """No shortcut at all: Algorithm 1 as it is written."""
        return cls(**{field.name: False for field in dataclasses.fields(cls)})
