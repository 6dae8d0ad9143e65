"""Shortcuts of the mask search: they save time and change no mask; :class:`Speedups` switches each of them off."""

from .fast_passes import FastPasses
from .switches import Speedups

__all__ = ["FastPasses", "Speedups"]
