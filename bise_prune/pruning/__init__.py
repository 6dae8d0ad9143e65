"""From masks to a smaller network: plan, removal on a copy, batch-norm fusion."""

from .exact import PruningResult, prune
from .fusion import fuse_batchnorm

__all__ = ["PruningResult", "fuse_batchnorm", "prune"]
