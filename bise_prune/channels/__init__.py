"""Per channel of every tensor: is it zero, constant or live, does anybody read it, and must it be there physically?"""

from .analysis import Analysis, analyse
from .layout import Edit, Joins, Layout, Regather, lay_out

__all__ = ["Analysis", "Edit", "Joins", "Layout", "Regather", "analyse", "lay_out"]
