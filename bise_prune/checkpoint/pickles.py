"""Read torch's files without running code in them: tensors, plain values, and modules of well-known classes."""

from __future__ import annotations

import importlib
import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import running_code_of
from .inert import Inert, Reader, stand_in_for
from .kinds import DAMAGED, Kind

# Packages whose module classes may be unpickled, except those that trace or compile other modules.
SAFE_PACKAGES = ("torch.nn.", "torchvision.models.", "torchvision.ops.", "timm.models.", "timm.layers.")
_UNSAFE_PACKAGES = ("timm.models._features", "torchvision.models.feature_extraction", "torch.nn.utils.")
_MOST_UNPACKED = 20  # times the size of an archive that one of its members may have
_NAMED = 5  # number of wanted names that a message lists
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
_DEEPEST = 32  # levels of nested values that are searched for stand-ins
# Types of numbers in exported programs, by their codes.
_CODES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip


def read_torch(path: Path, kind: Kind, trust_pickle: bool) -> tuple[Any, list[str]]:
    """Read a file that torch or pickle wrote.

    By default nothing in it is run: tensors and plain values are read, and modules of classes of torch, torchvision and
    timm, whose constructors are not called. Whatever else the file asks for is replaced by a stand-in
    (:class:`bise_prune.checkpoint.inert.Inert`). A module that is more than a plain module is refused.

    Args:
        path: the file.
        kind: its format, see :func:`bise_prune.checkpoint.kinds.kind_of`.
        trust_pickle: whether to unpickle whatever is in the file, which can run any code.

    Returns:
        The content, and the full names of what was replaced.

    Raises:
        CheckpointError: the file is damaged.
    """
    if trust_pickle and kind in ("torch", "legacy torch", "pickle"):
        with running_code_of(str(path)):
            return _trusted(path), []
    stand_ins: dict[str, Any] = {}
    content, wanted = _unpickled(path, kind, lambda name: _stand_in_of(name, stand_ins))
    real = {stand_in: found for stand_in, found in stand_ins.values()}
    if any(isinstance(part, Inert) for module in _modules_in(content) for part in _parts_of(module)):
        return _unpickled(path, kind, lambda name: None)  # of a module that holds one of another class, the weights
    return _checked(content, path, real), wanted


def _unpickled(path: Path, kind: Kind, known: Callable[[str], Any]) -> tuple[Any, list[str]]:
    """The content of a file, and the full names of what was replaced, which is all that is not ``known``."""
    reader = Reader(known)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickle protocols and sources that cannot be compared
            return _read(reader, path, kind), list(reader.wanted)
    except (*DAMAGED, pickle.UnpicklingError, RecursionError, ImportError) as error:
        raise CheckpointError(f"{path} is no checkpoint that torch can read, or it is damaged") from error


def _read(reader: Reader, path: Path, kind: Kind) -> Any:
    """The content of a file, in which stand-ins replace what is not known."""
    if kind == "legacy torch":
        return reader.legacy(path)
    if kind == "pickle":
        return reader.plain(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        folder = archive.namelist()[0].split("/")[0]

        most = _MOST_UNPACKED * path.stat().st_size

        def member(name: str) -> bytes:
            """The content of a member, unless it claims to be far larger than the file."""
            if archive.getinfo(f"{folder}/{name}").file_size > most:
                raise pickle.UnpicklingError(f"its member '{name}' is larger than {most:,} bytes")
            return archive.read(f"{folder}/{name}")

        if f"{folder}/byteorder" in archive.namelist() and member("byteorder").strip() not in (b"little", b""):
            raise pickle.UnpicklingError("its numbers are in the byte order of another kind of machine")
        return _exported(member) if kind == "exported program" else reader.archive(member)


def _exported(member: Any) -> dict[str, Tensor]:
    """The weights of an exported program, by the table in its archive."""
    found = {}
    for name, about in json.loads(member("data/weights/model_weights_config.json"))["config"].items():
        meta = about["tensor_meta"]
        if about["use_pickle"] or meta["dtype"] not in _CODES:
            raise pickle.UnpicklingError(f"'{name}' is not stored plainly")
        dtype = _CODES[meta["dtype"]]
        sizes, strides = ([part["as_int"] for part in meta[key]] for key in ("sizes", "strides"))
        content = bytearray(member(f"data/weights/{about['path_name']}"))
        if not math.prod(sizes):
            found[name] = torch.empty(sizes, dtype=dtype)
            continue
        whole = torch.frombuffer(content, dtype=dtype)
        found[name] = torch.as_strided(whole, sizes, strides, meta["storage_offset"]["as_int"]).clone()
    return found


def _trusted(path: Path) -> Any:
    """The content of a file that may run any code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickle protocols
            return torch.load(path, map_location="cpu", weights_only=False)
    except ImportError as error:
        raise CheckpointError(
            f"{path} needs '{error.name}', which cannot be imported here; without --trust-pickle the weights alone "
            "are read"
        ) from error
    except AttributeError as error:
        if "get attribute" in str(error):
            raise CheckpointError(
                f"{path} needs a class that cannot be imported here ({error}): leave out --trust-pickle to read the "
                "weights alone, and name the class with --arch package.module:Class"
            ) from error
        raise CheckpointError(f"{path} is no checkpoint that torch can read, or it is damaged") from error
    except (*DAMAGED, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is no checkpoint that torch can read, or it is damaged") from error


def refusal(path: Path, wanted: Collection[str]) -> CheckpointError:
    """The error for a file whose network is not to be had without running code."""
    names = list(wanted)
    listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return CheckpointError(
        f"{path} is a pickle that wants to run code{f' ({listed})' if names else ''}; it was not loaded. Save the "
        "weights alone, torch.save(model.state_dict(), ...), or pass --trust-pickle if you trust whoever made it"
    )


# -- whole modules --------------------------------------------------------------------------------


def _stand_in_of(name: str, stand_ins: dict[str, Any]) -> Any:
    """What stands for a module class that may be unpickled; None for another class."""
    if name not in stand_ins:
        found = _module_class(name)
        if found is None:
            return None
        stand_ins[name] = _stand_in(found), found
    return stand_ins[name][0]


def _module_class(name: str) -> Any:
    """The class of this name if it is a module class that may be unpickled; otherwise None."""
    if not name.startswith(SAFE_PACKAGES) or name.startswith(_UNSAFE_PACKAGES):
        return None
    place, _, last = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(place), last, None)
    except ImportError:
        return None
    if type(found) is not type or not issubclass(found, nn.Module) or issubclass(found, torch.fx.GraphModule):
        return None
    return found if f"{found.__module__}.{found.__qualname__}" == name else None


class _NotCallable(type):
    """Metaclass of classes whose instances a file may hold, but whose constructors are not called."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return stand_in_for(f"{cls.__mro__[1].__module__}.{cls.__name__}")()


def _stand_in(module_class: type[nn.Module]) -> type[nn.Module]:
    """A subclass of a module class whose constructor cannot be called."""
    return _NotCallable(module_class.__name__, (module_class,), {})  # type: ignore[return-value]


def _checked(content: Any, path: Path, real: dict[Any, type[nn.Module]]) -> Any:
    """Check that the modules in ``content`` are nothing more than modules, and give them their real classes."""
    for module in _modules_in(content):
        values = vars(module)
        names = [name for kind in ("_modules", "_parameters", "_buffers") for name in values.get(kind) or ()]
        odd = [name for name in names if not isinstance(name, str) or not re.fullmatch(r"\w+", name)]
        odd += [hooks for hooks in _HOOKS if values.get(hooks)]
        odd += [n for n in values if not isinstance(n, str) or callable(getattr(type(module), n, None))]  # a method
        if odd:
            raise refusal(path, [f"a module with {str(odd[0])[:40]!r}"])
        if wanted := _stand_ins_in(values):
            raise refusal(path, wanted)
        module.__class__ = real.get(type(module), type(module))
    return content


def _stand_ins_in(value: Any, depth: int = _DEEPEST) -> list[str]:
    """Full names of what stand-ins stand for, in nested values."""
    if isinstance(value, Inert):
        return [value.wanted]
    if isinstance(value, type) and issubclass(value, Inert):
        return [value.wanted]
    if not depth or isinstance(value, (Tensor, nn.Module)):
        return []
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, (list, tuple, set)):
        parts = list(value)
    elif hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial
        parts = [value.func, *value.args, *value.keywords.values()]
    return [name for part in parts for name in _stand_ins_in(part, depth - 1)]


def _parts_of(module: nn.Module) -> list[Any]:
    """What stands in the place of the modules in a module."""
    parts = vars(module).get("_modules")
    return list(parts.values()) if isinstance(parts, Mapping) else []


def _modules_in(content: Any, depth: int = 4) -> list[nn.Module]:
    """All modules in nested containers, to the given depth."""
    if isinstance(content, nn.Module):
        try:
            return list(content.modules())
        except AttributeError:  # created, but without its attributes
            return [content]
    if depth and isinstance(content, (dict, list, tuple)):
        parts = content.values() if isinstance(content, dict) else content
        return [module for part in parts for module in _modules_in(part, depth - 1)]
    return []
