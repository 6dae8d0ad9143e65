"""Edits of single function calls: changes of a forward pass beyond the widths of its layers, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Regather:
    """How the channels of a tensor are rearranged: present ones are selected, missing ones are filled with constants.

    Attributes:
        dim: the channel dimension.
        index: for each channel of the result its position among the present channels; position ``present + i`` stands
            for ``constants[i]``.
        constants: values of channels that the tensor does not have.
        present: number of channels that the tensor has.
    """

    dim: int
    index: tuple[int, ...]
    constants: tuple[float, ...]
    present: int


@dataclass(frozen=True)
class Split:
    """How the channels of a tensor are split into the heads of attention.

    Attributes:
        dim: the channel dimension.
        index: positions of the channels, head by head, among the present ones; None = all, as they are.
        heads: number of heads.
        order: the dimensions of the result, as positions among the other dimensions, then the heads, then the channels
            of a head.
    """

    dim: int
    index: tuple[int, ...] | None
    heads: int
    order: tuple[int, ...]


@dataclass(frozen=True)
class Merge:
    """How the heads of attention are put side by side again: the reverse of :class:`Split`.

    Attributes:
        dim: the channel dimension of the result.
        index: for each channel of the result its position among the channels, head by head; None = as they are.
        order: see :class:`Split`.
    """

    dim: int
    index: tuple[int, ...] | None
    order: tuple[int, ...]


@dataclass(frozen=True)
class Edit:
    """How one function call changes in the slim network.

    Attributes:
        function: canonical name of the function.
        count: number of counted calls of that name before this call.
        action: "run" calls the function; "skip" does not: its results are made from the operand at position
            ``operand``; "copy" does the same and never returns the operand itself, since the result may be changed in
            place; "drop" concatenates without the operands in ``dropped``.
        operand: position of the operand that "skip" and "copy" make the results from.
        operands: operand position -> how its channels are rearranged before the call.
        fixed: operand position -> shape and entries of the constants that replace it.
        results: for "skip" and "copy", how each result is rearranged from the operand; None = passed on unchanged.
        scale: for fused attention, the factor of its scores, which otherwise follows from the width of a head.
        mask: channel dimension of the result, and for each channel whether it is kept (True) or multiplied by zero;
            None = all are kept.
        dropped: positions of the operands that "drop" leaves out.
        statistics: for a layer norm, for each channel whether it enters mean and variance (True) or passes unchanged.
        number: for a product or quotient with a number, the number of the dense network.
        groups: for a group norm, the number of its groups, if that has changed.
        share: for a mean or a root mean square over channels, the share of the channels that are still there, since the
            others were zero.
        zeros: for a layer norm, how many channels of zeros it computes with besides those that are there.
    """

    function: str
    count: int
    action: Literal["run", "skip", "copy", "drop"] = "run"
    operand: int = 0
    operands: Mapping[int, Regather] = field(default_factory=dict)
    fixed: Mapping[int, tuple[tuple[int, ...], tuple[float, ...]]] = field(default_factory=dict)
    results: tuple[Regather | Split | Merge | None, ...] = ()
    mask: tuple[int, tuple[bool, ...]] | None = None
    dropped: tuple[int, ...] = ()
    statistics: tuple[bool, ...] | None = None
    scale: float | None = None
    number: float | None = None
    groups: int | None = None
    share: float | None = None
    zeros: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the edit as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, about: Mapping[str, Any]) -> Edit:
        """Return the edit that :meth:`as_dict` described, also after it was written to JSON and read again.

        Raises:
            KeyError: a field is missing.
            ValueError: a field is out of range.
        """

        def whole(value: Any, least: int = 0, most: int = 2**31) -> int:
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < most:
                raise ValueError(f"{value!r} is no integer from {least}")
            return value

        def regather(change: Mapping[str, Any]) -> Regather:
            constants = tuple(float(number) for number in change["constants"])
            present = whole(change["present"])
            index = tuple(whole(place, 0, present + len(constants)) for place in change["index"])
            return Regather(whole(change["dim"], 0, 16), index, constants, present)

        def result(change: Mapping[str, Any]) -> Regather | Split | Merge:
            if "order" not in change:
                return regather(change)
            order = tuple(whole(place, 0, 16) for place in change["order"])
            if sorted(order) != list(range(len(order))):
                raise ValueError(f"{order} is no order of dimensions")
            index = None if change["index"] is None else tuple(whole(place) for place in change["index"])
            dim = whole(change["dim"], 0, 16)
            return (
                Split(dim, index, whole(change["heads"], 1), order) if "heads" in change else Merge(dim, index, order)
            )

        if about["action"] not in ("run", "skip", "copy", "drop"):
            raise ValueError(f"unknown action {about['action']!r}")
        fixed = {
            int(k): (tuple(whole(n) for n in shape), tuple(float(number) for number in numbers))
            for k, (shape, numbers) in about["fixed"].items()
        }
        if any(math.prod(shape) != len(numbers) for shape, numbers in fixed.values()):
            raise ValueError("constants do not fit their shape")
        mask = about["mask"]
        return cls(
            function=str(about["function"]),
            count=whole(about["count"]),
            action=about["action"],
            operand=whole(about["operand"]),
            operands={int(k): regather(change) for k, change in about["operands"].items()},
            fixed=fixed,
            results=tuple(None if change is None else result(change) for change in about["results"]),
            mask=None if mask is None else (whole(mask[0], 0, 16), tuple(bool(kept) for kept in mask[1])),
            dropped=tuple(whole(k) for k in about["dropped"]),
            scale=None if about.get("scale") is None else float(about["scale"]),
            number=None if about.get("number") is None else float(about["number"]),
            groups=None if about.get("groups") is None else whole(about["groups"], 1),
            share=None if about.get("share") is None else float(about["share"]),
            zeros=None if about.get("zeros") is None else whole(about["zeros"], 1),
            statistics=None if (open_ := about.get("statistics")) is None else tuple(bool(kept) for kept in open_),
        )
