"""What changes in a forward pass beyond the widths of its layers: edits of single function calls, as plain data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Regather:
    """Put a tensor's channels in another layout: from those present to those wanted, constants for what is missing.

    Attributes:
        dim: the channel dimension.
        index: per wanted channel its position among the present ones; those beyond are entries of ``constants``.
        constants: values of missing channels.
        present: how many channels the tensor has.
    """

    dim: int
    index: tuple[int, ...]
    constants: tuple[float, ...]
    present: int


@dataclass(frozen=True)
class Edit:
    """What becomes of one function call in the slim network.

    Attributes:
        function: canonical name of the function.
        count: how many calls of that name come before.
        action: "run" it; "skip" it (its result is its operand number ``operand``, rearranged where ``results`` say so);
            "copy" that operand, since the result may be written to; or "drop" operands from its list and run it.
        operand: see above.
        operands: operand position -> how it is rearranged before the call.
        fixed: operand position -> constants that take its place, with their shape.
        results: for a skipped call, how each result is made from the operand.
        mask: kept channels (True) of the result where closed ones must be multiplied by zero, and their dimension.
        dropped: operand positions to drop.
        statistics: of a layer norm, the channels (True) that it normalises over; the others pass.
    """

    function: str
    count: int
    action: Literal["run", "skip", "copy", "drop"] = "run"
    operand: int = 0
    operands: Mapping[int, Regather] = field(default_factory=dict)
    fixed: Mapping[int, tuple[tuple[int, ...], tuple[float, ...]]] = field(default_factory=dict)
    results: tuple[Regather | None, ...] = ()
    mask: tuple[int, tuple[bool, ...]] | None = None
    dropped: tuple[int, ...] = ()
    statistics: tuple[bool, ...] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The edit as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, about: Mapping[str, Any]) -> Edit:
        """The edit that :meth:`as_dict` described, also after a way through JSON."""

        def whole(value: Any, least: int = 0, most: int = 2**31) -> int:
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value < most:
                raise ValueError(f"{value!r} is no integer from {least}")
            return value

        def regather(change: Mapping[str, Any]) -> Regather:
            constants = tuple(float(number) for number in change["constants"])
            present = whole(change["present"])
            index = tuple(whole(place, 0, present + len(constants)) for place in change["index"])
            return Regather(whole(change["dim"], 0, 16), index, constants, present)

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
            results=tuple(None if change is None else regather(change) for change in about["results"]),
            mask=None if mask is None else (whole(mask[0], 0, 16), tuple(bool(kept) for kept in mask[1])),
            dropped=tuple(whole(k) for k in about["dropped"]),
            statistics=None if (open_ := about.get("statistics")) is None else tuple(bool(kept) for kept in open_),
        )
