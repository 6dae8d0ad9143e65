"""Disjoint sets that can be merged (union-find)."""

from __future__ import annotations


class UnionFind:
    """Disjoint sets of the numbers 0 to ``size`` - 1; each set is identified by its smallest member.

    >>> sets = UnionFind(4)
    >>> sets.join(3, 1)
    >>> [sets.first(i) for i in range(4)]
    [0, 1, 2, 1]
    """

    def __init__(self, size: int) -> None:
        self._parent = list(range(size))

    def first(self, member: int) -> int:
        """Return the smallest member of the set that contains ``member``."""
        while self._parent[member] != member:
            member = self._parent[member]
        return member

    def join(self, one: int, other: int) -> None:
        """Merge the sets that contain ``one`` and ``other``."""
        low, high = sorted((self.first(one), self.first(other)))
        self._parent[high] = low
