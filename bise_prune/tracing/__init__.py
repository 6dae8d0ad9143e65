"""Trace a model: run one forward pass and record it as a graph of function calls and their channels.

The model runs unchanged (no rewriting, no symbolic values) under a :class:`TorchFunctionMode`, which sees every torch
function called from Python, in modules and in plain code alike. The trace is a graph of :class:`Call` and
:class:`Value` objects. The channels of a value lie along the dimensions in which its entries have different origins.
Functions that only move data are run a second time on the numbers of the channels, so that one rule covers reshape,
shuffle, concatenation and similar functions. A function without a rule is *opaque*: it is assumed to read all channels
of its operands, and nothing is known about the channels of its result.
"""

from .attention import SIZE_FREE
from .functions import (
    COMPARISONS,
    LOGICAL,
    NONLINEARITIES,
    CallCounter,
    FunctionMode,
    Slot,
    function_name,
    replace_tensors,
    tensors_in,
)
from .norms import WITHOUT_MEAN, parameters_of
from .origins import Fold, Origin, Weights
from .places import COUNT_PLACES, KEEP_CONSTANTS
from .reasons import Reason, Why
from .record import Attention, Call, Nonlinearity, Side, Trace, Value
from .running import UNREPEATABLE, ByPosition, Inputs, evaluating, logits_of, output_tensors, run
from .stepwise import SPENT
from .tracer import trace
from .union_find import UnionFind

__all__ = [
    "COMPARISONS",
    "COUNT_PLACES",
    "KEEP_CONSTANTS",
    "LOGICAL",
    "NONLINEARITIES",
    "SIZE_FREE",
    "SPENT",
    "UNREPEATABLE",
    "WITHOUT_MEAN",
    "Attention",
    "ByPosition",
    "Call",
    "CallCounter",
    "Fold",
    "FunctionMode",
    "Inputs",
    "Nonlinearity",
    "Origin",
    "Reason",
    "Side",
    "Slot",
    "Trace",
    "UnionFind",
    "Value",
    "Weights",
    "Why",
    "evaluating",
    "function_name",
    "logits_of",
    "output_tensors",
    "parameters_of",
    "replace_tensors",
    "run",
    "tensors_in",
    "trace",
]  # fmt: skip
