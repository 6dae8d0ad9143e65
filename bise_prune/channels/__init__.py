"""Channel analysis: which channels are zero, constant or live, which are read, and which the slim network contains."""

from .analysis import Analysis, analyse
from .edits import Edit, Merge, Regather, Split
from .growth import Joins
from .layout import Layout, lay_out
from .lowering import Lowering, lower

__all__ = [
    "Analysis",
    "Edit",
    "Joins",
    "Layout",
    "Lowering",
    "Merge",
    "Regather",
    "Split",
    "analyse",
    "lay_out",
    "lower",
]
