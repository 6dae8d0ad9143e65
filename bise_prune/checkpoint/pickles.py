"""Read torch's files without running code in them: tensors, plain values, and modules of well-known classes."""

from __future__ import annotations

import functools
import importlib
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import torch
import torch.fx
from torch import nn

from ..errors import CheckpointError
from ..files import importing_from_here
from .kinds import DAMAGED, Kind

# Packages whose module classes may be unpickled, except those that trace or compile other modules.
SAFE_PACKAGES = ("torch.nn.", "torchvision.models.", "torchvision.ops.", "timm.models.", "timm.layers.")
_UNSAFE_PACKAGES = ("timm.models._features", "torchvision.models.feature_extraction", "torch.nn.utils.")
# Names that pickled modules of these packages ask for besides module classes.
_HARMLESS = {
    "builtins.set", "__builtin__.set", "collections.OrderedDict", "functools.partial", "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter",
}  # fmt: skip
_NAMED = 5  # number of wanted names that a message lists
_LEGACY_PICKLES = 5  # magic number, protocol, system, content, storage keys; raw storages follow
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")


def read_torch(path: Path, kind: Kind, trust_pickle: bool) -> Any:
    """Read a file that torch or pickle wrote.

    By default only tensors and plain values are read, with torch's ``weights_only=True``. A whole module is read as
    well if it asks only for module classes of torch, torchvision and timm; their constructors are not called, and an
    object that is more than a plain module is refused.

    Args:
        path: the file.
        kind: its format, see :func:`bise_prune.checkpoint.kinds.kind_of`.
        trust_pickle: whether to unpickle whatever is in the file, which can run any code.

    Raises:
        CheckpointError: the file is damaged, or wants to run other code and is not trusted.
    """
    if trust_pickle:
        with importing_from_here():
            return _loaded(path, weights_only=False)
    wanted = wanted_names(path, kind)
    if kind == "pickle":
        raise _refusal(path, sorted(name for name in wanted if not _is_harmless(name)))
    classes = {name: found for name in wanted if (found := _module_class(name)) is not None}
    if not classes:
        unsafe = sorted(name for name in wanted if not _is_harmless(name))
        return _loaded(path, weights_only=True, wanted=unsafe)
    others = sorted(name for name in wanted if name not in classes and not _is_harmless(name))
    if others:
        raise _refusal(path, others)
    stand_ins: dict[str, Any] = {name: _stand_in(found) for name, found in classes.items()}
    allowed: list[Any] = [(stand_in, name) for name, stand_in in stand_ins.items()]
    with torch.serialization.safe_globals([*allowed, functools.partial]):
        content = _loaded(path, weights_only=True)
    real = {stand_in: classes[name] for name, stand_in in stand_ins.items()}
    return _checked(content, path, real)


def _loaded(path: Path, weights_only: bool, wanted: Collection[str] = ()) -> Any:
    """Call ``torch.load`` and turn its errors into messages for the user."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unusual pickle protocols, which are handled below
            return torch.load(path, map_location="cpu", weights_only=weights_only)
    except pickle.UnpicklingError as error:
        if "Only persistent_load of storage" in str(error):
            raise CheckpointError(
                f"{path} holds a whole module in torch's format before version 1.6, which cannot be read without "
                "running code; it was not loaded. Save the weights alone, or pass --trust-pickle if you trust whoever "
                "made it"
            ) from error
        if weights_only and ("Weights only" in str(error) or wanted):
            raise _refusal(path, wanted) from error
        raise CheckpointError(f"{path} is no checkpoint that torch can read, or it is damaged") from error
    except ImportError as error:
        raise CheckpointError(f"{path} needs '{error.name}', which cannot be imported here") from error
    except AttributeError as error:
        if not weights_only and "get attribute" in str(error):
            raise CheckpointError(
                f"{path} needs a class that cannot be imported here ({error}): save model.state_dict() where it is "
                "known, and name the class with --arch package.module:Class"
            ) from error
        raise CheckpointError(f"{path} is no checkpoint that torch can read, or it is damaged") from error
    except DAMAGED as error:
        raise CheckpointError(f"{path} is no checkpoint that torch can read, or it is damaged") from error


def _refusal(path: Path, wanted: Collection[str]) -> CheckpointError:
    """The error for a pickle that wants to run code."""
    names = list(wanted)
    listed = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
    return CheckpointError(
        f"{path} is a pickle that wants to run code{f' ({listed})' if names else ''}; it was not loaded. Save the "
        "weights alone, torch.save(model.state_dict(), ...), or pass --trust-pickle if you trust whoever made it"
    )


def wanted_names(path: Path, kind: Kind) -> set[str]:
    """Collect the full names of the classes and functions that a pickle asks for; its opcodes are read, nothing is run.

    Raises:
        CheckpointError: the file is damaged.
    """
    names: set[str] = set()
    try:
        if kind == "torch":
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    if member.endswith(".pkl"):
                        with archive.open(member) as file:
                            names |= _names_in(file)
            return names
        with path.open("rb") as stream:
            for _ in range(_LEGACY_PICKLES if kind == "legacy torch" else 1):
                names |= _names_in(stream)
    except (*DAMAGED, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is no checkpoint that torch can read, or it is damaged") from error
    return names


def _names_in(file: IO[bytes]) -> set[str]:
    """Full names in the opcodes of one pickle."""
    names: set[str] = set()
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(strings[-2:]) or "something unnamed")
        elif isinstance(argument, str):
            strings.append(argument)
    return names


def _is_harmless(name: str) -> bool:
    """Whether a name stands for a tensor, dtype, container or other object that runs no code."""
    package, _, last = name.rpartition(".")
    return name in _HARMLESS or (package == "torch" and (last.endswith("Storage") or last in _PLAIN_TORCH))


_PLAIN_TORCH = {name for name in vars(torch) if isinstance(getattr(torch, name), torch.dtype)} | {"Size", "device"}


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
    """Metaclass of classes whose instances a file may hold, but whose constructors it may not call."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise pickle.UnpicklingError(f"Weights only: the file calls {cls.__name__}")


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
        odd += [name for name in values if callable(getattr(type(module), name, None))]  # would replace a method
        if odd:
            raise _refusal(path, [f"a module with {str(odd[0])[:40]!r}"])
        module.__class__ = real.get(type(module), type(module))
    return content


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
