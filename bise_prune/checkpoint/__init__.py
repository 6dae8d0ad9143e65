"""Read and write checkpoints: weight files of any usual kind, read without running the code in them."""

from .files import FORMAT, Checkpoint, load_checkpoint, save_checkpoint
from .folders import TRANSFORMER
from .unwrapping import PREFIXES

__all__ = ["FORMAT", "PREFIXES", "TRANSFORMER", "Checkpoint", "load_checkpoint", "save_checkpoint"]
