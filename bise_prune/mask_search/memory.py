"""What a network computes while no mask flips: it is a constant then, so that once per sample is enough."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class StillNetwork:
    """Per sample: the reweighted cross-entropy, its gradient with respect to the gates, and the bottleneck.

    All of it belongs to one state of the masks. The information is not kept: it changes with the heads and from batch
    to batch.

    Args:
        num_samples: N.
        num_features: width of the bottleneck.
        num_gates: of all sites.
        like: a tensor of the device and precision to use.
    """

    def __init__(self, num_samples: int, num_features: int, num_gates: int, like: Tensor) -> None:
        self.known = torch.zeros(num_samples, dtype=torch.bool)
        self.losses = like.new_zeros(num_samples)
        self.slopes = like.new_zeros(num_samples, num_gates)
        self.features = like.new_zeros(num_samples, num_features)

    def missing(self, rows: Tensor) -> Tensor:
        """Those of ``rows`` of which nothing is known yet."""
        return rows[~self.known[rows]]

    def note(self, rows: Tensor, losses: Tensor, slopes: Tensor, features: Tensor) -> None:
        """Keep what has been computed for ``rows``."""
        self.losses[rows], self.slopes[rows], self.features[rows] = losses, slopes, features.detach()
        self.known[rows] = True

    def state_dict(self) -> dict[str, Any]:
        """All of it."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it up."""
        for name, tensor in state.items():
            setattr(self, name, tensor if name == "known" else tensor.to(self.losses.device))
