"""Data sets with bias labels, by name or from a folder."""

from .batch import Batch, Loader, as_batch
from .loader import BatchLoader, BiasedDataset, DataSplits
from .registry import load_data

__all__ = ["Batch", "BatchLoader", "BiasedDataset", "DataSplits", "Loader", "as_batch", "load_data"]
