"""Read weight files without running code in them, and write them atomically."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import CheckpointError
from ..files import atomic_path
from .folders import check_preprocessing, check_sizes, described_by, read_mapping
from .kinds import kind_of
from .pickles import read_torch
from .unwrapping import accuracy_in, network_in

FORMAT = "bise-prune model"
_TRANSFORMER_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


@dataclass(frozen=True)
class Checkpoint:
    """Weights, and what their file says about the network.

    Attributes:
        state: the state dict.
        sha256: SHA-256 digest of the file, in hexadecimal.
        arch: name of the architecture, if the file gives it.
        num_classes: number of outputs of the classifier head, if the file gives it.
        arguments: further constructor arguments.
        data: data specification of the training set, if the file gives it.
        preprocessing: ``mean`` and ``std`` per channel on the [0, 1] scale and ``size`` (height, width), if known.
        classes: class names, if known.
        slim: for a slim network, how its forward pass differs from the dense network's; None for a dense network.
        plan: for a slim network, its plan as JSON values.
        module: the network itself, if the file holds it whole; its weights are ``state``.
        notes: assumptions that were made in reading the file.
        accuracy: accuracy that the training script has saved beside the weights, in [0, 1], if any.
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
    module: nn.Module | None = None
    notes: tuple[str, ...] = ()
    accuracy: float | None = None

    def description(self) -> dict[str, Any]:
        """Return what the file says about the network, without the weights, as JSON values."""
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
    """Write weights and description: in torch's format if ``path`` ends in .pt or .pth, otherwise as safetensors.

    Raises:
        BiseError: the file cannot be written.
    """
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.state.items()}
    with atomic_path(Path(path)) as temporary:
        if path.suffix in (".pt", ".pth"):
            torch.save({"bise_prune": json.dumps(checkpoint.description()), "state_dict": state}, temporary)
        else:
            save_file(state, temporary, metadata={"bise_prune": json.dumps(checkpoint.description())})


def load_checkpoint(path: Path, trust_pickle: bool = False) -> Checkpoint:
    """Read a weight file as training scripts leave it.

    It may be safetensors (also in parts, by their index), a state dict, a training checkpoint that nests one beside
    whatever else, a pickled module, a TorchScript file or an exported program. Modules of classes of torch, torchvision
    and timm are read whole, of others the weights alone. A folder must be that of a Hugging Face or timm classifier:
    ``config.json`` beside ``model.safetensors``, its index, or ``pytorch_model.bin``.

    Args:
        path: the file or folder.
        trust_pickle: whether to unpickle whatever is in the file, which can run any code.

    Raises:
        CheckpointError: the file is missing or unreadable, or holds no weights.
    """
    path = Path(path)
    if path.is_dir():
        return _load_folder(path, trust_pickle)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    kind = kind_of(path)
    if kind == "safetensors":
        state, text = _read_safetensors(path)
        state = state if text is not None else network_in(state, path)[0]
        return _checkpoint(path, Checkpoint(state, _sha256([path])), text)
    if kind == "sharded safetensors":
        return _read_shards(path)
    content, replaced = read_torch(path, kind, trust_pickle)
    if isinstance(content, dict) and isinstance(content.get("bise_prune"), str):  # a file of this package
        own = content.get("state_dict")
        if not isinstance(own, dict) or not all(isinstance(value, Tensor) for value in own.values()):
            raise CheckpointError(f"{path}: its weights are damaged")
        found = Checkpoint(own, _sha256([path]))
        return _checkpoint(path, found, content["bise_prune"])
    try:
        state, module, notes = network_in(content, path)
    except CheckpointError as error:
        if not replaced:
            raise
        raise CheckpointError(
            f"{error}; what it asks for ({', '.join(replaced[:3])}) was not run: save the weights alone, "
            "torch.save(model.state_dict(), ...), or pass --trust-pickle if you trust whoever made it"
        ) from error
    if replaced and kind != "TorchScript":
        listed = ", ".join(replaced[:3]) + (", ..." if len(replaced) > 3 else "")
        notes = (*notes, f"what {path.name} holds beside the weights was left out and not run ({listed})")
    return Checkpoint(state, _sha256([path]), module=module, notes=notes, accuracy=accuracy_in(content))


def _sha256(paths: Iterable[Path]) -> str:
    """SHA-256 digest, in hexadecimal, of the content of all files together."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**22):
                digest.update(block)
    return digest.hexdigest()


def _load_folder(folder: Path, trust_pickle: bool) -> Checkpoint:
    """Read the folder of a Hugging Face or timm classifier."""
    weights = next((f for name in _TRANSFORMER_FILES if (f := folder / name).is_file()), None)
    if weights is None or not (folder / "config.json").is_file():
        raise CheckpointError(
            f"{folder} is a folder without config.json and model.safetensors: expected a Hugging Face classifier's"
        )
    config = read_mapping(folder / "config.json")
    found = load_checkpoint(weights, trust_pickle)
    check_sizes(config, found.state, folder / "config.json")
    return replace(found, **described_by(config, folder))


def _checkpoint(path: Path, found: Checkpoint, text: str | None) -> Checkpoint:
    """Add the description in the file, if there is one, to the checkpoint ``found``."""
    if text is None:
        return found
    try:
        about = json.loads(text)
        if not isinstance(about, dict) or not isinstance(about["arch"], str | None):
            raise TypeError("it is no description of a network")
        num_classes = about["num_classes"]
        if num_classes is not None and (not isinstance(num_classes, int) or num_classes < 1):
            raise TypeError(f"num_classes is {num_classes!r}")
        if not all(isinstance(about.get(key, {}), dict) for key in ("arguments", "preprocessing")):
            raise TypeError("arguments and preprocessing are no mappings")
        check_preprocessing(about.get("preprocessing", {}))
        if not all(isinstance(name, str) for name in about.get("classes", ())):
            raise TypeError("class names are no texts")
        if about.get("classes") and num_classes not in (None, len(about["classes"])):
            raise ValueError(f"it names {len(about['classes'])} of {num_classes} classes")
        slim, plan = about.get("slim"), about.get("plan")
        return replace(
            found,
            arch=about["arch"],
            num_classes=num_classes,
            arguments=about.get("arguments", {}),
            data=about.get("data"),
            preprocessing=about.get("preprocessing", {}),
            classes=tuple(about.get("classes", ())),
            slim=None if slim is None else dict(slim),
            plan=None if plan is None else dict(plan),
        )
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: its description is damaged ({type(error).__name__}: {error})") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a safetensors file, and the description that this package wrote into it, if any."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") == "bise-prune masks":
                raise CheckpointError(f"{path} holds masks, not a network; pass it with --masks")
            state = {name: file.get_tensor(name) for name in file.keys()}
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no readable safetensors file: {error}") from error
    return state, metadata.get("bise_prune")


def _read_shards(path: Path) -> Checkpoint:
    """Read all safetensors files that an index names; they must lie beside it."""
    table = read_mapping(path)["weight_map"]
    names = sorted({str(name) for name in table.values()})
    foreign = [name for name in names if Path(name).name != name]
    if foreign:
        raise CheckpointError(f"{path} names files in other folders ({foreign[0]}); parts must lie beside their index")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{len(missing)} of the {len(names)} files that {path} names are missing: {', '.join(missing[:3])}"
        )
    state: dict[str, Tensor] = {}
    for name in names:
        state.update(_read_safetensors(path.parent / name)[0])
    absent = [key for key in table if key not in state]
    if absent:
        raise CheckpointError(f"{path}: {len(absent)} tensors are in none of its files, first of all '{absent[0]}'")
    return Checkpoint(network_in(state, path)[0], _sha256([path, *(path.parent / name for name in names)]))
