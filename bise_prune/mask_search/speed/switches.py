"""Which shortcuts a search takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Speedups:
    """Switches of the search's shortcuts; none of them changes a mask.

    Attributes:
        affine_norms: batch norms with fixed statistics are run as affine maps (:mod:`.affine_norms`).
        skipped_channels: layers spare the work on closed channels (:mod:`.skipped_channels`).
        cached_prefix: activations in front of the first gate are computed once (:mod:`.cached_prefix`).
        kept_results: bottleneck features and validation accuracies are kept until a mask flips.
        batched_steps: while no mask flips, per-sample gradients are kept, and the steps of several batches come from
            one pass (:mod:`.batched_steps`).
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
