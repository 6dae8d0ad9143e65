"""Channel analysis: which channels are zero, constant or live, which are read, and which the slim network contains."""

from .analysis import Analysis, analyse
from .edits import Edit, Merge, Regather, Split
from .growth import Demands, Joins
from .layout import NO_DEMANDS, Layout, lay_out
from .lowering import Lowering, lower

__all__ = [
    "NO_DEMANDS",
    "Analysis",
    "Demands",
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
