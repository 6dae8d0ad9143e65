"""From masks to a smaller network: plan, removal on a copy, batch-norm fusion."""

from .fusion import fuse_batchnorm
from .surgery import PruningResult, prune

__all__ = ["PruningResult", "fuse_batchnorm", "prune"]
