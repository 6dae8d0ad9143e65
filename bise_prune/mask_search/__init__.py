"""The mask search: it decides which channels of a trained network are kept (BISE, Algorithm 1).

:func:`search` runs it. The parts of the algorithm are in modules of their own; :mod:`.algorithm` says which is where.
"""

from .algorithm import SearchInterrupted, search
from .result import EpochRecord, SearchResult

__all__ = ["EpochRecord", "SearchInterrupted", "SearchResult", "search"]
