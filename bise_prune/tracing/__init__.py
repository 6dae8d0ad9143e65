"""One forward pass, watched: which functions run, and which channels each of their results is made of.

The pass runs the model as it is (no rewriting, no symbolic values) under a :class:`TorchFunctionMode`, which sees every
torch function called from Python, from modules and from plain code alike. The record is a graph of :class:`Call` and
:class:`Value`. A value's channels are the entries along the dimensions in which its entries differ in origin; functions
that only move data are run a second time on the channels' numbers, so that one rule serves reshape, shuffle, concat and
the like. A function without a rule is *opaque*: it reads everything, and nothing is known of what it returns.
"""

from .functions import NONLINEARITIES, CallCounter, FunctionMode, function_name, replace_tensors, tensors_in
from .reasons import Reason, Why
from .record import Call, Nonlinearity, Slot, Trace, Value
from .running import ByPosition, Inputs, evaluating, logits_of, output_tensors, run
from .tracer import trace
from .union_find import UnionFind

__all__ = [
    "NONLINEARITIES", "ByPosition", "Call", "CallCounter", "FunctionMode", "Inputs", "Nonlinearity", "Reason",
    "Slot", "Trace", "UnionFind", "Value", "Why", "evaluating", "function_name", "logits_of", "output_tensors",
    "replace_tensors", "run", "tensors_in", "trace",
]  # fmt: skip
