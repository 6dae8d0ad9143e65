"""Unpickle without running code: everything but tensors, plain values and modules of known classes is a stand-in."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

import torch

from ..files import BoundedUnpickler
from .kinds import LEGACY

# Functions and classes that make tensors and plain containers, and nothing else.
_HARMLESS = {
    "builtins.set", "__builtin__.set", "collections.OrderedDict", "functools.partial", "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter",
}  # fmt: skip
_PLAIN_TORCH = {name for name in vars(torch) if isinstance(getattr(torch, name), torch.dtype)} | {"Size", "device"}
_ENCODED = "_codecs.encode"  # bytes in a pickle of an old protocol
_STORED_BYTES = "torch.storage._load_from_bytes"  # storages in a plain pickle, each of them a file of torch's


class Inert(dict[Any, Any]):
    """What stands for an object whose class or function is not called: its state, and its items if it is a mapping.

    Attributes:
        wanted: full name of the class or function.
        state: what the object was to get as its state; None if there is none.
    """

    wanted = ""
    state: Any = None
    dump_patches = False  # torch asks this of the class of a whole module in its old format

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:  # noqa: D102
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return self is other

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:  # noqa: D102
        return self

    def __setstate__(self, state: Any) -> None:
        vars(self)["state"] = state

    def append(self, item: Any) -> None:
        """Take an item of a list, which is not kept."""

    def extend(self, items: Iterable[Any]) -> None:
        """Take items of a list, which are not kept."""

    def add(self, item: Any) -> None:
        """Take an item of a set, which is not kept."""


class Reader:
    """Unpickles files of torch.

    Args:
        known: function from the full name of a class to what stands for it; None for one that is not known.

    Attributes:
        wanted: full names of what was replaced by stand-ins, in the order in which the file asks for it.
    """

    def __init__(self, known: Callable[[str], Any]) -> None:
        self.known = known
        self.wanted: dict[str, None] = {}

    def archive(self, member: Callable[[str], bytes], pickled: str = "data.pkl") -> Any:
        """Read what torch has written into an archive.

        Args:
            member: function from the name of a member of the archive to its content; raises KeyError.
            pickled: name of the member that is a pickle.
        """
        storages: dict[str, torch.UntypedStorage] = {}

        class Unpickler(self._unpickler()):  # type: ignore[misc]
            """Reads the pickle, and the tensors' bytes beside it."""

            def persistent_load(self, found: Any) -> Any:
                """The storage that a tensor is a view of."""
                kind, storage_type, key, _, _ = found
                if kind != "storage":
                    raise pickle.UnpicklingError(f"it refers to a {kind}")
                if key not in storages:
                    storages[key] = _storage(member(f"data/{key}"))
                return torch.storage.TypedStorage(
                    wrap_storage=storages[key], dtype=_dtype_of(storage_type), _internal=True
                )

        return Unpickler(io.BytesIO(member(pickled)), encoding="utf-8").load()

    def legacy(self, path: Any) -> Any:
        """Read a file of torch's format before version 1.6, or a file object of one."""
        unpickler = self._unpickler()
        module = SimpleNamespace(
            Unpickler=unpickler,
            load=lambda file, **options: unpickler(file, encoding="utf-8").load(),
            __name__="pickle",
        )
        return torch.load(path, map_location="cpu", pickle_module=module, weights_only=False)

    def _nested(self, content: object) -> Any:
        """Read a file of torch that lies in a pickle; another format than the old one would not be read as data."""
        if not isinstance(content, bytes) or not content.startswith(LEGACY):
            raise pickle.UnpicklingError("it holds a storage that torch did not write")
        return self.legacy(io.BytesIO(content))

    def plain(self, content: bytes) -> Any:
        """Read a plain pickle."""
        return self._unpickler()(io.BytesIO(content), encoding="utf-8").load()

    def _unpickler(self) -> type[BoundedUnpickler]:
        """A class of unpicklers that find nothing but what is harmless or known."""
        found = self._found

        class Unpickler(BoundedUnpickler):
            """Finds stand-ins."""

            def find_class(self, module: str, name: str) -> Any:
                """What stands for a class or function."""
                return found(f"{module}.{name}")

        return Unpickler

    def _found(self, name: str) -> Any:
        """What stands for a class or function, by its full name."""
        if name == _ENCODED:
            return _bytes_of
        if name == _STORED_BYTES:
            return self._nested
        if is_harmless(name):
            return _harmless(name)
        if (known := self.known(name)) is not None:
            return known
        self.wanted[name] = None
        return stand_in_for(name)


def stand_in_for(name: str) -> type[Inert]:
    """A class of stand-ins for objects of a class or function, by its full name."""
    return type("Inert", (Inert,), {"wanted": name})


def is_harmless(name: str) -> bool:
    """Whether a full name stands for a tensor, dtype, container or other object that runs no code."""
    package, _, last = name.rpartition(".")
    return name in _HARMLESS or (
        package in ("torch", "torch.storage") and (last.endswith("Storage") or last in _PLAIN_TORCH)
    )


def _harmless(name: str) -> Any:
    """The object of a name that is harmless."""
    package, _, last = name.rpartition(".")
    package = {"__builtin__": "builtins"}.get(package, package)
    return getattr(__import__(package, fromlist=[last]), last)


def _bytes_of(text: str, encoding: str = "latin1") -> bytes:
    """Bytes that a pickle holds as text."""
    if encoding not in ("latin1", "utf-8", "ascii"):
        raise pickle.UnpicklingError(f"it holds bytes in {encoding}")
    return text.encode(encoding)


def _storage(content: bytes) -> torch.UntypedStorage:
    """A storage that holds bytes."""
    if not content:
        return torch.UntypedStorage(0)
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).untyped_storage()


def _dtype_of(storage_type: Any) -> torch.dtype:
    """The type of the numbers in a storage, by the class of the storage."""
    if storage_type is torch.storage.UntypedStorage:
        return torch.uint8
    dtype = getattr(storage_type, "dtype", None)
    if not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("it has numbers of an unknown type")
    return dtype
