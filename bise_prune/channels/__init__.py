"""Per channel of every tensor: is it zero, constant or live, does anybody read it, and must it be there physically?"""

from .analysis import Analysis, analyse
from .edits import Edit, Regather
from .growth import Joins
from .layout import Layout, lay_out
from .lowering import Lowering, lower

__all__ = ["Analysis", "Edit", "Joins", "Layout", "Lowering", "Regather", "analyse", "lay_out", "lower"]
