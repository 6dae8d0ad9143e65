"""The mask search of BISE: its objective, its schedule and Algorithm 1."""

from .algorithm import EpochRecord, SearchResult, search

__all__ = ["EpochRecord", "SearchResult", "search"]
