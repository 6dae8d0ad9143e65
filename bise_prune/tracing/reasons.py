"""Reasons why a channel stays or a function is not followed: an enumeration, from which the messages are made."""

from __future__ import annotations

from enum import Enum
from typing import Any


class Why(Enum):
    """The kinds of reasons; each value is the message, with the fields of :class:`Reason` in braces."""

    # Why a function is not followed.
    NO_RULE = "{function} is not understood"
    NORMALISES_ALL = "{function} computes with all its channels at once"
    LEAVES_TORCH = "{function} hands it to Python"
    INTEGERS = "{function} works on integers"
    READS_UNKNOWN = "{function} reads a tensor of unknown channels"
    MOVES_UNKNOWN = "{function} moves a tensor of unknown channels"
    READS_FOREIGN = "{function} reads a tensor made on the spot"
    DIMENSIONS_DIFFER = "{function} joins tensors whose channels lie along different dimensions"
    RUNS_OVER_CHANNELS = "{function} runs over the channels"
    UNBATCHED = "it runs on an unbatched input"
    FOREIGN_WEIGHTS = "the weights of {function} are no module's own parameters"
    FOREIGN_NORM = "the parameters of a batch norm are no module's own"
    NORM_DIMENSION = "it normalises another dimension than the channels'"
    FOREIGN_SLOPES = "the slopes of prelu are no module's own parameters"
    SLOPES_DIMENSION = "prelu's slopes lie along another dimension than the channels"
    PADS_A_VALUE = "pad surrounds the channels with a value other than zero"
    PADS_CHANNELS = "pad adds channels in a way that is not understood"
    # Why a module stays unchanged.
    IDLE = "'{layer}' does not run in eval mode: it stays as it was"
    # Why a closed channel stays.
    READ_ELSEWHERE = "another layer reads this channel while its gate is open"
    SIZE_ASKED = "its size is asked for"
    SCALES_ALL = "it scales all channels"
    FULL_WIDTH = "{function} needs the full width"
    JOINED = "a tensor that {function} joins has it open"
    LAST_OPERAND = "{function} would have no operand left"
    LAST_INPUT = "'{layer}' would have no input left"
    OTHER_ORDER = "'{layer}' reads it in another order"
    SHARED_LAYER = "'{layer}' runs more than once"
    SHARED_CONSTANTS = "'{layer}' runs more than once, each time on other constants"
    GROUPED_PADDING = "'{layer}' is grouped and pads, so that this constant cannot be folded into it"
    CARRIES_CONSTANT = "it carries a constant into '{layer}', whose padding forbids a bias"
    GROUPED = "'{layer}' is grouped"
    EQUAL_GROUPS = "'{layer}' needs groups of equal size"
    EQUAL_HEADS = "all heads need as many channels"
    ROUNDED_UP = "widths are rounded up"
    COUPLED = "coupled outputs read these channels while they are open"
    # Read from a plan file that holds only the text.
    RECORDED = "{text}"

    @property
    def is_consequence(self) -> bool:
        """Whether the plan leaves this reason out: it follows from another one, or concerns integers only."""
        return self in (Why.INTEGERS, Why.READS_UNKNOWN, Why.MOVES_UNKNOWN)


class Reason(str):
    """Why a channel stays or a function is not followed: a string for people, with fields on which the code decides.

    Args:
        why: kind of the reason.
        function: canonical name of the function, if the kind mentions one.
        layer: name of the layer or module, if the kind mentions one.
        module: name of the module in which the function runs; the text begins with it.
        text: the whole text of a reason of which nothing else is known (``Why.RECORDED``).

    >>> Reason(Why.NO_RULE, function="cumsum", module="mix")
    "in 'mix', cumsum is not understood"
    """

    why: Why
    function: str
    layer: str
    module: str

    def __new__(
        cls, why: Why, *, function: str = "", layer: str | None = "", module: str = "", text: str = ""
    ) -> Reason:
        """Create the string and set its fields."""
        words = why.value.format(function=function, layer=layer, text=text)
        reason = super().__new__(cls, f"in '{module}', {words}" if module else words)
        reason.why, reason.function, reason.layer, reason.module = why, function, layer or "", module
        return reason

    @classmethod
    def recorded(cls, text: str) -> Reason:
        """Return a reason of which only the text is known."""
        return cls(Why.RECORDED, text=text)

    def inside(self, module: str) -> Reason:
        """Return the same reason with ``module`` as the module in which the function runs."""
        return Reason(self.why, function=self.function, layer=self.layer, module=module)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields of the reason as JSON values."""
        text = str(self) if self.why is Why.RECORDED else ""
        fields = {"function": self.function, "layer": self.layer, "module": self.module, "text": text}
        return {"why": self.why.name.lower(), **{name: value for name, value in fields.items() if value}}

    @classmethod
    def from_dict(cls, about: dict[str, Any]) -> Reason:
        """Return the reason that :meth:`as_dict` described.

        Raises:
            KeyError: the kind is missing or unknown.
            TypeError: there are unknown fields.
        """
        return cls(Why[about["why"].upper()], **{name: str(value) for name, value in about.items() if name != "why"})
