"""From masks to a slim network: plan, removal on a copy, verification and batch-norm fusion."""

from .exact import PruningResult, prune
from .fusion import fuse_batchnorm

__all__ = ["PruningResult", "fuse_batchnorm", "prune"]
