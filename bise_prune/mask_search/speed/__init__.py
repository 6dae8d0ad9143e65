"""Shortcuts of the mask search. None of them changes a mask; each can be switched off by :class:`Speedups`."""

from .fast_passes import FastPasses
from .switches import Speedups

__all__ = ["FastPasses", "Speedups"]
