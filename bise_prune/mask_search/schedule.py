"""The temperature tau over the epochs (BISE, Algorithm 1, lines 1 and 11 to 15)."""

from __future__ import annotations


def temperatures(anneal_every: int, anneal_factor: float, min_temperature: float) -> list[float]:
    """Temperature tau of each epoch: 1, times ``anneal_factor`` every ``anneal_every`` epochs, until below the minimum.

    >>> temperatures(2, 0.5, 0.2)
    [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    >>> len(temperatures(10, 0.5, 1e-3))
    100
    """
    values: list[float] = []
    temperature = 1.0
    while temperature >= min_temperature:
        values += [temperature] * anneal_every
        temperature *= anneal_factor
    return values
