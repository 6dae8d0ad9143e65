"""The mask search: it decides which channels of a trained network are kept (BISE, Algorithm 1).

:func:`search` runs it. The parts of the algorithm are in modules of their own; :mod:`.algorithm` says which is where.
"""

from .result import EpochRecord, SearchResult
from .searching import search
from .state_file import SearchInterrupted

__all__ = ["EpochRecord", "SearchInterrupted", "SearchResult", "search"]
