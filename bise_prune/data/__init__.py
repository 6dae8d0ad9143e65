"""Data sets with bias labels: built-in ones by name, and the user's own folders, tables and texts."""

from .batch import Batch, Loader, as_batch
from .loader import BatchLoader, BiasedDataset, DataSplits
from .registry import load_data

__all__ = ["Batch", "BatchLoader", "BiasedDataset", "DataSplits", "Loader", "as_batch", "load_data"]
