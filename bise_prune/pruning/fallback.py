"""What is tried where a forward pass does not run with fewer channels: widths that code knows stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import TypeVar

import torch

from ..channels import Demands
from ..channels.edited_model import RewiredModel
from ..errors import BiseError, ConfigError, ModelError, PruningError, VerificationError
from ..tracing import Trace, evaluating, replace_tensors, run
from .planner import Planner
from .verification import InDouble

Result = TypeVar("Result")

# What a forward pass may raise that meets other widths, and what is raised if it computes something else.
_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
    ModelError, VerificationError,
)  # fmt: skip
_MOST_FIXED = 8  # calls with a fixed number of channels that are looked for one by one


def with_fallback(record: Trace, make_planner: Callable[..., Planner], attempt: Callable[[Planner], Result]) -> Result:
    """Run an attempt to prune, and again with what the forward pass may demand, if that fails.

    Args:
        record: trace of the network.
        make_planner: function from ``record`` and ``demands`` to a planner.
        attempt: function that plans, cuts and verifies; it cuts with :meth:`Planner.cut`.

    Raises:
        BiseError: nothing helped; the last failure, explained.
    """
    wide = {call.index for call in record.calls if call.kind == "movement" and call.function != "cat"}
    wide |= {value.readers[0] for value in record.values if value.foreign}  # made to a width that a layer declares
    tries = [(record, Demands())]
    if record.attentions and any(value.measured for value in record.values):
        tries.append((record, Demands(numbers=True)))
    if record.attentions:  # whether queries are as wide as values may decide how attention is computed
        tries.append((record, Demands(square_heads=True)))
        tries.append((record, Demands(square_heads=True, all_heads=True)))
    if wide:  # several of them may contain a fixed number of channels
        tries.append((record, Demands(frozenset(wide))))
    if any(value.measured and value.num_channels > 1 for value in record.values):
        tries.append((record, Demands(frozenset(wide), sizes=True)))
    if record.folds:  # code may look at the shape of a weight while it makes it
        tries.append((_with_whole_weights(record), Demands()))
    found: frozenset[int] = frozenset()
    while tries:
        watched, demands = tries[0]
        planner = make_planner(record=watched, demands=replace(demands, full_width=demands.full_width | found))
        try:
            return attempt(planner)
        except (ConfigError, PruningError):
            raise
        except _FAILURES as error:
            failure = error
        culprit = _fixed_width(planner, wide - planner.demands.full_width) if len(found) < _MOST_FIXED else None
        if culprit is None:
            tries.pop(0)
        else:
            found |= {culprit}
    raise _explained(failure) from failure


def _with_whole_weights(record: Trace) -> Trace:
    """Return a trace in which layers keep their weights whole if the forward pass makes these of parameters."""
    made = {origin.name for layer in record.folds for origin in record.origins_of(layer)}
    calls = [replace(call, whole=call.whole or call.layer in record.folds) for call in record.calls]
    return replace(record, calls=calls, rigid=record.rigid | made, folds={})


def _fixed_width(planner: Planner, suspects: AbstractSet[int]) -> int | None:
    """Return the one of some calls that the forward pass of a network that was cut fails at, or behind."""
    record = planner.trace
    waiting: list[int] = []
    device = next((parameter.device for parameter in planner.model.parameters()), torch.device("cpu"))
    inputs = replace_tensors(planner.example_inputs, lambda tensor: tensor.to(device))
    for slim in planner.cuts:
        watched = slim if isinstance(slim, RewiredModel) else RewiredModel(slim, [], {}, record.as_exported)
        try:
            with evaluating(watched), torch.no_grad(), InDouble():
                run(watched, inputs)
        except Exception:  # it is explained if no try succeeds
            failed = record.call_of.get(watched.last_call)
            waiting = [] if failed is None else [failed.index]
            break
    seen = set(record.attention_of)  # which has demands of its own
    while waiting:
        index = waiting.pop(0)
        if index not in seen and index in suspects:
            return index
        if index not in seen:
            sources = {record.values[operand].call for operand in record.calls[index].operands if operand is not None}
            waiting += sorted((source for source in sources if source is not None), reverse=True)
        seen.add(index)
    return None


def _explained(error: Exception) -> BiseError:
    """Return the error as one of this package's errors."""
    if isinstance(error, BiseError):
        return error
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return PruningError(f"the forward pass does not run with fewer channels ({type(error).__name__}: {reason})")
