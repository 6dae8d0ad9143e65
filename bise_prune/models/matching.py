"""Match the names of weights in a file with those of a network: prefixes, counters, and what does not belong to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import CheckpointError

_COUNTER = "num_batches_tracked"  # of batch norms; files of old versions of torch lack it
_AVERAGED = ("ema", "averaged", "shadow", "teacher", "swa")  # words in prefixes of weights that are second choice
_SHOWN = 3  # names that a message lists


@dataclass(frozen=True)
class Difference:
    """How the weights of a file differ from those of a network.

    Attributes:
        missing: names that the file lacks.
        unexpected: names that the network lacks, of its own parts.
        misshaped: names whose shapes differ, with both shapes.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshaped: tuple[str, ...]

    @property
    def count(self) -> int:
        """Number of names that differ."""
        return len(self.missing) + len(self.unexpected) + len(self.misshaped)

    def __str__(self) -> str:
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "misshaped": self.misshaped}
        return "; ".join(
            f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
            for what, names in kinds.items()
            if names
        )


def matched(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], where: object = "") -> dict[str, Tensor]:
    """The tensors of a file by the network's names.

    A prefix that makes all names of the network fit is removed or put back, and tensors outside of it are left out, as
    are those beside the network, whose first name is none of the network's. If nothing fits, the file's own names stay.

    Args:
        expected: the network's state dict.
        state: the tensors of the file.
        where: the file, for messages.

    Raises:
        CheckpointError: several prefixes fit, with different tensors.
    """
    needed = [name for name in expected if not name.endswith(_COUNTER)]
    fitting = [prefix for prefix in _prefixes(needed, state) if all(prefix + name in state for name in needed)]
    if len(fitting) > 1 and "" not in fitting:
        fitting = _chosen(fitting, needed, state, where)
    if fitting:
        prefix = "" if "" in fitting else fitting[0]
        under = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
        return {name: tensor for name, tensor in under.items() if name in expected or _is_part(name, expected)}
    first = next(iter(state), "")
    for name in needed:
        prefix = name.removesuffix(first)
        if first and name.endswith("." + first) and all(prefix + key in expected for key in state):
            return {prefix + key: tensor for key, tensor in state.items()}
    return dict(state)


def difference(expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> Difference:
    """How the tensors of a file, by the network's names, differ from the network's state dict."""
    return Difference(
        tuple(name for name in expected if name not in state and not name.endswith(_COUNTER)),
        tuple(name for name in state if name not in expected),
        tuple(
            f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in expected
            if name in state and expected[name].shape != state[name].shape
        ),
    )


def left_out(state: Mapping[str, Tensor], used: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors of a file that are not used."""
    kept = {id(tensor) for tensor in used.values()}
    return [name for name, tensor in state.items() if id(tensor) not in kept]


def _prefixes(needed: Collection[str], state: Mapping[str, Tensor]) -> list[str]:
    """Prefixes that make the first name of the network one of the file's, the shortest first."""
    first = next(iter(needed), "")
    ends = [key for key in state if key == first or key.endswith("." + first)]
    return sorted({key.removesuffix(first) for key in ends}, key=len)


def _is_part(name: str, expected: Mapping[str, Tensor]) -> bool:
    """Whether a name is of one of the parts of the network, so that it should be known."""
    part = name.partition(".")[0]
    return any(other.partition(".")[0] == part for other in expected)


def _chosen(
    prefixes: list[str], needed: Collection[str], state: Mapping[str, Tensor], where: object
) -> list[str]:  # fmt: skip
    """One of several prefixes that fit: the only one that is not of averaged weights, or any if all tensors agree."""
    plain = [prefix for prefix in prefixes if not any(word in prefix.lower() for word in _AVERAGED)]
    if len(plain) == 1:
        return plain
    one = (plain or prefixes)[0]
    if all(torch.equal(state[one + name], state[other + name]) for other in plain or prefixes for name in needed):
        return [one]
    raise CheckpointError(
        f"{where} holds several networks that fit, {', '.join(map(repr, prefixes[:_SHOWN]))}: save the one that is "
        "meant alone"
    )
