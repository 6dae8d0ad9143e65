"""Weight files: read without running any code in them, written whole."""

from __future__ import annotations

import hashlib
import json
import pickle
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import CheckpointError
from .files import atomic_path

FORMAT = "bise-prune model"
TRANSFORMER = "transformers"  # the architecture of every Hugging Face classifier: its configuration tells the rest
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_PREFIXES = ("module.", "_orig_mod.")
# What torch and zipfile raise on files that are cut, mixed up or of another kind.
_DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and what their file says of the network.

    Attributes:
        state: the state dict.
        sha256: of the file.
        arch: architecture, if the file names it; with the number of classes and further arguments.
        num_classes: outputs of the head, if the file tells.
        arguments: further constructor arguments.
        data: data specification of the training set, if the file names it.
        preprocessing: ``mean`` and ``std`` per channel on a [0, 1] scale and ``size`` (height, width), if known.
        classes: class names, if known.
        slim: for a pruned network, how its forward pass differs from the dense one's; None for a dense network.
        plan: for a pruned network, its plan.
    """

    state: Mapping[str, Tensor]
    sha256: str = ""
    arch: str | None = None
    num_classes: int | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    slim: Mapping[str, Any] | None = None
    plan: Mapping[str, Any] | None = None

    def description(self) -> dict[str, Any]:
        """All but the weights, as JSON values."""
        return {
            "format": FORMAT,
            "arch": self.arch,
            "num_classes": self.num_classes,
            "arguments": dict(self.arguments),
            "data": self.data,
            "preprocessing": dict(self.preprocessing),
            "classes": list(self.classes),
            "slim": None if self.slim is None else dict(self.slim),
            "plan": None if self.plan is None else dict(self.plan),
        }


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write weights and description: as safetensors, or in torch's format if ``path`` ends in .pt or .pth."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.state.items()}
    with atomic_path(Path(path)) as temporary:
        if path.suffix in (".pt", ".pth"):
            torch.save({"bise_prune": json.dumps(checkpoint.description()), "state_dict": state}, temporary)
        else:
            save_file(state, temporary, metadata={"bise_prune": json.dumps(checkpoint.description())})


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a weight file: safetensors, a state dict, or a training checkpoint that nests one.

    A folder is that of a Hugging Face classifier: ``config.json`` beside ``model.safetensors`` or
    ``pytorch_model.bin``.

    Files are read with ``weights_only=True``; a pickle that wants code is refused with the list of what it wants.

    Raises:
        CheckpointError: the file is missing, unreadable, unsafe, or holds no weights.
    """
    path = Path(path)
    if path.is_dir():
        return _load_transformer(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    sha256, start = hashlib.sha256(content).hexdigest(), content[:9]
    if len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] < len(content):
        state, text = _read_safetensors(path)
    else:
        state, text = _read_torch(path)
    return _checkpoint(path, state, text, sha256)


def _load_transformer(folder: Path) -> Checkpoint:
    weights = next((f for name in ("model.safetensors", "pytorch_model.bin") if (f := folder / name).is_file()), None)
    if weights is None or not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is a folder without config.json and model.safetensors: expected a Hugging Face classifier's"
        )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        names = {int(number): str(name) for number, name in config.get("id2label", {}).items()}
    except (AttributeError, UnicodeDecodeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} is damaged: {error}") from error
    found = load_checkpoint(weights)
    num_classes = len(names) or int(config.get("num_labels", 2))
    return replace(
        found,
        arch=TRANSFORMER,
        num_classes=num_classes,
        arguments={"config": {key: value for key, value in config.items() if not key.startswith("_")}},
        classes=tuple(names[number] for number in sorted(names)),
    )


def _checkpoint(path: Path, state: Mapping[str, Tensor], text: str | None, sha256: str) -> Checkpoint:
    if text is None:
        return Checkpoint(state, sha256)
    try:
        about = json.loads(text)
        if not isinstance(about, dict) or not isinstance(about["arch"], str | None):
            raise TypeError("it is no description of a network")
        slim, plan = about.get("slim"), about.get("plan")
        return Checkpoint(
            state=state,
            sha256=sha256,
            arch=about["arch"],
            num_classes=about["num_classes"],
            arguments=about.get("arguments", {}),
            data=about.get("data"),
            preprocessing=about.get("preprocessing", {}),
            classes=tuple(about.get("classes", ())),
            slim=None if slim is None else dict(slim),
            plan=None if plan is None else dict(plan),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its description is damaged ({type(error).__name__}: {error})") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") == "bise-prune masks":
                raise CheckpointError(f"{path} holds masks, not a network; pass it with --masks")
            return {name: file.get_tensor(name) for name in file.keys()}, metadata.get("bise_prune")
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {error}") from error


def _read_torch(path: Path) -> tuple[dict[str, Tensor], str | None]:
    names: set[str] = set()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = {name.rpartition("/")[2] for name in archive.namelist()}
    except _DAMAGED as error:
        raise CheckpointError(f"{path} is a damaged archive") from error
    if "constants.pkl" in names or "archive_format" in names:
        raise CheckpointError(f"{path} is a TorchScript or exported program; a state dict is needed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unusual pickle protocols, which are read or refused below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if wanted := _wanted_code(path):
            raise CheckpointError(
                f"{path} is a pickle that wants to run code ({', '.join(wanted)}); it was not loaded. "
                "Save the weights alone: torch.save(model.state_dict(), ...)"
            ) from error
        raise CheckpointError(f"{path} is no checkpoint that torch can read") from error
    except _DAMAGED as error:
        raise CheckpointError(f"{path} is no checkpoint that torch can read, or it is damaged") from error
    text = content.get("bise_prune") if isinstance(content, dict) else None
    return _state_dict(path, content), text if isinstance(text, str) else None


def _wanted_code(path: Path) -> list[str]:
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (*_DAMAGED, pickle.UnpicklingError):  # torch lists its zip format alone
        is_pickle = path.read_bytes()[:1] == pickle.PROTO
        return ["an old format that does not list what"] if is_pickle else []
    return sorted(wanted)[:5]


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items())
    ):
        raise CheckpointError(f"{path} holds no state dict (a mapping of names to tensors)")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in content):
            content = {key.removeprefix(prefix): value for key, value in content.items()}
    return dict(content)
