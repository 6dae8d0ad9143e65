"""Activations that are written out: x * sigmoid(1.7 * x), GELU by erf or tanh, maximum(x, 0), gated linear units.

Several functions compute one activation. A gate on one of them, such as on the tanh inside of a GELU, would not close
the activation, so the last of them is taken as the nonlinearity, in place of those inside.
"""

from __future__ import annotations

from .functions import COMPARISONS, NONLINEARITIES, SCALES
from .record import Call, Nonlinearity, Trace

# What an activation ends in that reads its input several times.
_JOINS = {"mul", "div", "maximum", "minimum", "max", "min", "where"}
_CURVED = (NONLINEARITIES | COMPARISONS | _JOINS | {"erf", "pow", "square", "exp", "expm1", "abs", "sin", "cos"}) - {
    "mul", "div",
}  # fmt: skip
_LONGEST = 16  # calls in one activation


def compose_activations(trace: Trace) -> None:
    """Replace the nonlinearities inside written-out activations by the calls that return the activations."""
    for value in range(len(trace.values)):
        if len(set(trace.values[value].readers)) > 1 and value not in trace.outputs:
            inside = _activation_of(value, trace)
            if inside:
                _replace(inside, value, trace)
    for n in list(trace.nonlinearities):
        product = _gated_unit(n, trace)
        if product is not None:
            _replace([trace.calls[n.call], product], trace.calls[n.call].operands[0], trace)


def _activation_of(source: int, trace: Trace) -> list[Call]:
    """The calls of an activation whose only input is a value, in order; [] if the value goes into none."""
    made, calls = {source}, list[Call]()
    waiting = sorted(set(trace.values[source].readers))
    while waiting and len(calls) < _LONGEST:
        call = trace.calls[waiting.pop(0)]
        if not _stays_inside(call, made, trace):
            return []
        calls.append(call)
        output = call.outputs[0]
        made.add(output)
        waiting = sorted({*waiting, *trace.values[output].readers} - {c.index for c in calls})
        read = {reader for value in made - {output} for reader in trace.values[value].readers}
        if call.function in _JOINS and read <= {c.index for c in calls} and not (made - {output}) & set(trace.outputs):
            return calls if any(c.function in _CURVED for c in calls) else []
    return []


def _stays_inside(call: Call, made: set[int], trace: Trace) -> bool:
    """Whether a call computes entry by entry from values made so far, and numbers."""
    if call.kind != "elementwise" or len(call.outputs) != 1:
        return False
    size = trace.values[call.outputs[0]].num_channels
    for k, operand in enumerate(call.operands):
        if operand in made:
            if not call.keeps(k) or trace.values[operand].num_channels != size:
                return False
        elif operand is not None and (trace.values[operand].call is not None or trace.values[operand].num_channels > 1):
            return False
    return True


def _gated_unit(n: Nonlinearity, trace: Trace) -> Call | None:
    """The product of a gated linear unit whose sigmoid this is: of two tensors of one shape, entry by entry."""
    call = trace.calls[n.call]
    readers = trace.values[call.outputs[0]].readers
    product = trace.calls[readers[0]] if len(readers) == 1 else None
    if n.function not in SCALES or product is None or product.function != "mul" or product.kind != "elementwise":
        return None
    operands = [operand for operand in product.operands if operand is not None]
    same = len(set(operands)) == 2 and all(product.keeps(k) for k in range(len(product.operands)))
    shapes = {trace.values[operand].shape for operand in operands}
    if not same or len(shapes) != 1 or trace.values[product.outputs[0]].num_channels == 1:
        return None
    (other,) = set(operands) - {call.outputs[0]}
    return None if _is_made_of(call.outputs[0], other, trace) else product  # it scales what it is made of


def _is_made_of(value: int, source: int, trace: Trace) -> bool:
    """Whether a value is computed from another one."""
    made = {source}
    for call in trace.calls:
        if made & set(call.operands):
            made |= set(call.outputs)
    return value in made


def _replace(calls: list[Call], source: int | None, trace: Trace) -> None:
    """Let the last of some calls be a nonlinearity, and none of the others."""
    inside, last = {call.index for call in calls}, calls[-1]
    output = trace.values[last.outputs[0]]
    if output.dim is None:
        return
    number = sum(n.call < last.index for n in trace.nonlinearities)
    size = output.shape[output.dim]
    layer = output.layer if output.num_channels == size else None
    whole = Nonlinearity(number, last.function, output.dim, size, layer, last.index, source)
    kept = [n for n in trace.nonlinearities if n.call not in inside]
    trace.nonlinearities = sorted([*kept, whole], key=lambda n: n.call)
