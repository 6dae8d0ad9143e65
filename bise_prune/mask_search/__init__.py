"""The mask search of BISE: its objective, its schedule and Algorithm 1."""

from .algorithm import SearchInterrupted, search
from .result import EpochRecord, SearchResult

__all__ = ["EpochRecord", "SearchInterrupted", "SearchResult", "search"]
