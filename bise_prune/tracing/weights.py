"""What a forward pass makes of parameters alone, such as weights that are normalised, and what reads it.

Calls on parameters alone are recorded as steps. If a parameter goes into a weight, and nothing else reads it, the slim
network stores the weight in that parameter and skips the steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from .functions import Slot, is_in_place, replace_tensors, tensors_in
from .origins import Fold, Origin, Source, Step
from .record import Trace


class Steps:
    """Records calls on parameters and constants alone, and what reads parameters and the results of such calls.

    Args:
        owner: id of a parameter or buffer -> name of the module that it belongs to and its name in that module; None
            for tensors that several modules share.
        shapes: full name of each parameter -> its shape.

    Attributes:
        readers: a parameter's or buffer's full name, or (step, position) -> what reads it: indices of calls in the
            trace, and -1 - index of a step.
    """

    def __init__(self, owner: Mapping[int, tuple[str, str] | None], shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.owner, self.shapes = owner, shapes
        self.steps: list[Step] = []
        self.readers: dict[Source, set[int]] = {}
        self._made: dict[int, tuple[int, int]] = {}
        self._alive: list[Tensor] = []  # as long as a tensor lives, no other one has its id
        self._changes: dict[int, list[int]] = {}  # step -> steps that change its result through a view of it

    def source(self, tensor: Tensor) -> Source:
        """Return where a tensor comes from that does not depend on the model's input."""
        if id(tensor) in self._made:
            return self._made[id(tensor)]
        owner = self.owner.get(id(tensor))
        return tensor if owner is None else f"{owner[0]}.{owner[1]}".lstrip(".")

    def read(self, tensors: Iterable[Tensor], reader: int) -> None:
        """Note that a call of the trace, or -1 - index of a step, reads tensors."""
        for tensor in tensors:
            source = self.source(tensor)
            if not isinstance(source, Tensor):
                self.readers.setdefault(source, set()).add(reader)

    def note(
        self,
        key: tuple[str, int],
        counted: bool,
        run: Callable[..., Any],
        arguments: tuple[tuple[Any, ...], dict[str, Any]],
        sources: tuple[Source, ...],
        results: list[Tensor],
        is_part: bool,
    ) -> None:
        """Record a call that has just run, if it makes something of parameters."""
        if all(isinstance(source, Tensor) for source in sources):
            return
        changes_in_place = key[0] == "setitem" or is_in_place(run)
        given = {id(tensor) for tensor in tensors_in([*arguments[0], *arguments[1].values()])}
        fresh = [result for result in results if changes_in_place or id(result) not in given]
        if not fresh:
            return
        positions = iter(range(len(sources)))
        args, kwargs = replace_tensors(arguments, lambda _: Slot(next(positions)))
        shapes = tuple(tuple(result.shape) for result in results)
        for source in sources:
            if not isinstance(source, Tensor):
                self.readers.setdefault(source, set()).add(-1 - len(self.steps))
        if changes_in_place:
            self._note_changes(results[0])
        for place, result in enumerate(results):
            self._made[id(result)] = (len(self.steps), place)
            self._alive.append(result)
        self.steps.append(Step(key[0], key[1] if counted else None, run, args, kwargs, sources, shapes, is_part))

    def _note_changes(self, changed: Tensor) -> None:
        """Note that the step to come changes the results of earlier ones that share their memory with a tensor."""
        memory = changed.untyped_storage().data_ptr()
        for tensor in self._alive:
            if tensor is not changed and tensor.untyped_storage().data_ptr() == memory:
                self._changes.setdefault(self._made[id(tensor)][0], []).append(len(self.steps))

    def origin(self, tensor: Tensor) -> Origin | None:
        """Return where a layer's weight comes from; None if no parameter can hold it."""
        source, shape, behind, flipped = self.source(tensor), tuple(tensor.shape), set[int](), False
        while isinstance(source, tuple) and (swaps := self.steps[source[0]].transposes) is not None:
            behind.add(source[0])
            flipped ^= swaps
            shape = shape[::-1] if swaps else shape
            (source,) = self.steps[source[0]].sources
        if isinstance(source, str):
            return Origin(source, {}, source, {}, frozenset(behind), flipped)
        path = None if isinstance(source, Tensor) else self._path(source, shape)
        if path is None:
            return None
        name, places = path
        steps = {index: self.steps[index] for index in sorted(self._before(source))}
        return Origin(name, steps, source, places, frozenset(behind), flipped)

    def _before(self, source: Source) -> set[int]:
        """The steps that a result is made by."""
        found, waiting = set[int](), [source]
        while waiting:
            source = waiting.pop()
            if isinstance(source, tuple) and source[0] not in found:
                found.add(source[0])
                waiting += [*self.steps[source[0]].sources, *((step, 0) for step in self._changes.get(source[0], ()))]
        return found

    def _path(self, source: Source, shape: tuple[int, ...]) -> tuple[str, dict[int, int]] | None:
        """A parameter that a result is made of, if possible of the given shape, and how the steps lead to it."""
        seen = set[int]()
        waiting: list[tuple[Source, dict[int, int]]] = [(source, {})]
        found: tuple[str, dict[int, int]] | None = None
        while waiting:
            source, places = waiting.pop(0)
            if isinstance(source, str) and self.shapes.get(source) == shape:
                return source, places
            is_whole = not any(self.steps[index].is_part for index in places)
            if isinstance(source, str) and source in self.shapes and found is None and is_whole:
                found = source, places
            if isinstance(source, tuple) and source[0] not in seen:
                seen.add(source[0])
                before = self.steps[source[0]].sources
                waiting += [(operand, {**places, source[0]: k}) for k, operand in enumerate(before)]
        return found


def folds(trace: Trace, steps: Steps) -> dict[str, Fold]:
    """Return how the weights of layers that are made in steps are read in the slim network.

    Names of parameters that must keep their shape, since something else reads them or what is made of them, are added
    to the trace.

    Args:
        trace: the trace, complete but for these.
        steps: the steps of the same pass, and what read their results.
    """
    found = {}
    for layer, calls in trace.calls_by_layer.items():
        origins = trace.origins_of(layer)
        inside = {-1 - index for o in origins for index in (*o.steps, *o.behind)} | {call.index for call in calls}
        made = {index: step for o in origins for index, step in o.steps.items()}
        path = {index: place for o in origins for index, place in o.path.items()}
        for origin in origins:
            if not _read_inside(steps, origin.name, inside):
                trace.rigid.add(origin.name)
        skipped: dict[int, tuple[Step, int]] = {}
        done = {call.index for call in calls} | {-1 - index for o in origins for index in o.behind}
        for index in sorted(made, reverse=True):
            readers = set().union(*(steps.readers.get((index, k), set()) for k in range(len(made[index].shapes))))
            if readers <= done:
                done.add(-1 - index)
                if made[index].count is not None:  # others run on what the skipped ones pass on
                    skipped[index] = (made[index], path.get(index, 0))
        if made and not {o.name for o in origins} & trace.rigid:
            names = {name for step in made.values() for name in step.sources if isinstance(name, str)}
            kept = {o.name for o in origins}
            spent = frozenset(name for name in names - kept if steps.readers[name] <= done)
            found[layer] = Fold(skipped, spent)
    return found


def _read_inside(steps: Steps, name: Source, inside: set[int]) -> bool:
    """Whether only some readers read a parameter and what is made of it."""
    waiting = [name]
    while waiting:
        for reader in steps.readers.get(waiting.pop(), ()):
            if reader not in inside:
                return False
            if reader < 0:
                waiting += [(-1 - reader, place) for place in range(len(steps.steps[-1 - reader].shapes))]
    return True
