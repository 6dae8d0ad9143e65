"""Read what the folder of a Hugging Face or timm classifier says of its network, and check it against the weights."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError

TRANSFORMER = "transformers"  # architecture name of all Hugging Face classifiers; the configuration tells them apart
_IMAGE_PROCESSOR = "preprocessor_config.json"
_PLACEHOLDER = re.compile(r"LABEL_\d+")
_MOST_CLASSES = 100_000
_LARGEST_IMAGE = 16_384  # pixels along a side
_MOST_CHANNELS = 4_096
# Keys whose numbers are sizes of weights.
_SIZES = (
    "vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings", "type_vocab_size", "dim", "hidden_dim",
    "n_positions", "n_embd", "n_inner", "d_model", "d_ff", "ffn_dim", "embedding_size",
)  # fmt: skip
_LEAST_SIZE = 4_096  # a size up to which no weight needs to have it


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        CheckpointError: it does not.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it holds no object")
    except (OSError, RecursionError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is damaged: {reason}") from error
    return found


def described_by(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a folder says of its network, as fields of a :class:`bise_prune.checkpoint.Checkpoint`.

    Args:
        config: content of its ``config.json``.
        folder: the folder; images are preprocessed as its ``preprocessor_config.json`` says, if there is one.

    Raises:
        CheckpointError: a file in it is damaged.
    """
    path = folder / "config.json"
    try:
        if isinstance(config.get("architecture"), str):
            return _of_timm(config)
        names = {int(number): str(name) for number, name in (config.get("id2label") or {}).items()}
        num_classes = len(names) or int(config.get("num_labels") or 2)
        if not 0 < num_classes <= _MOST_CLASSES:
            raise ValueError(f"it says that there are {num_classes} classes")
        processor = read_mapping(folder / _IMAGE_PROCESSOR) if (folder / _IMAGE_PROCESSOR).is_file() else {}
        preprocessing = _of_processor(processor)
        check_preprocessing(preprocessing)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    # transformers writes LABEL_0, LABEL_1, ... if the classes have no names.
    is_named = not all(map(_PLACEHOLDER.fullmatch, names.values()))
    return {
        "arch": TRANSFORMER,
        "num_classes": num_classes,
        "arguments": {"config": {key: value for key, value in config.items() if not key.startswith("_")}},
        "classes": tuple(names[number] for number in sorted(names)) if is_named else (),
        "preprocessing": preprocessing,
    }


def check_sizes(config: Mapping[str, Any], state: Mapping[str, Tensor], path: Path) -> None:
    """Check that a configuration does not claim more layers or larger ones than the weights can have.

    Raises:
        CheckpointError: it does.
    """
    largest = max((size for tensor in state.values() for size in tensor.shape), default=0)
    for key, value in config.items():
        if not isinstance(value, int) or isinstance(value, bool):
            continue
        if "layer" in key and value > max(len(state), 1):
            raise CheckpointError(f"{path} says {key} = {value}, but the file holds {len(state)} tensors")
        if key in _SIZES and value > max(largest, _LEAST_SIZE):
            raise CheckpointError(f"{path} says {key} = {value}, but the largest tensor is {largest} wide")


def check_preprocessing(found: Mapping[str, Any]) -> None:
    """Check the values of the preprocessing that a file gives.

    Raises:
        ValueError: one of them cannot be.
    """
    for key in ("mean", "std"):
        values = found.get(key) or ()
        if not _are_numbers(values) or (key == "std" and not all(value > 0 for value in values)):
            raise ValueError(f"{key} is {str(values)[:40]}")
    if len(found.get("mean") or ()) != len(found.get("std") or ()):
        raise ValueError("mean and std have different numbers of channels")
    for key, is_good in _CHECKS.items():
        if found.get(key) is not None and not is_good(found[key]):
            raise ValueError(f"{key} is {str(found[key])[:40]}")


def _are_numbers(values: Any) -> bool:
    """Whether a value is a sequence of finite numbers."""
    return isinstance(values, Sequence) and not isinstance(values, str) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) for value in values
    )  # fmt: skip


def _is_count(value: Any, most: int) -> bool:
    """Whether a value is an integer from 1 to ``most``."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most


_CHECKS: Mapping[str, Callable[[Any], bool]] = {
    "size": lambda size: _are_numbers(size) and len(size) == 2 and all(_is_count(s, _LARGEST_IMAGE) for s in size),
    "crop": lambda crop: _are_numbers([crop]) and 0 < crop <= 1,
    "channels": lambda channels: _is_count(channels, _MOST_CHANNELS),
}


def _of_timm(config: Mapping[str, Any]) -> dict[str, Any]:
    """What the ``config.json`` of a timm model says."""
    about = {**config, **(config.get("pretrained_cfg") or {})}
    preprocessing = {key: about[key] for key in ("mean", "std") if key in about}
    if len(sides := list(about.get("input_size") or ())) == 3:
        preprocessing |= {"size": sides[1:], "crop": about.get("crop_pct") or 1.0}
        preprocessing |= {"channels": sides[0]} if sides[0] != 3 else {}
    check_preprocessing(preprocessing)
    return {
        "arch": f"timm:{config['architecture']}",
        "num_classes": int(about["num_classes"]) if "num_classes" in about else None,
        "arguments": dict(config.get("model_args") or {}),
        "classes": tuple(map(str, about.get("label_names") or ())),
        "preprocessing": preprocessing,
    }


def _of_processor(about: Mapping[str, Any]) -> dict[str, Any]:
    """How the ``preprocessor_config.json`` of a Hugging Face model says that images are made."""
    found: dict[str, Any] = {}
    if about.get("do_normalize", True) and "image_mean" in about and "image_std" in about:
        found = {"mean": about["image_mean"], "std": about["image_std"]}
    size, cropped = about.get("size"), about.get("crop_size")
    sides = size if isinstance(size, Mapping) else {"height": size, "width": size} if size else {}
    edge = sides.get("shortest_edge")
    if about.get("do_center_crop") and cropped:
        sides = cropped if isinstance(cropped, Mapping) else {"height": cropped, "width": cropped}
        found["size"] = [sides["height"], sides["width"]]
        found["crop"] = min(1.0, min(found["size"]) / edge) if edge else 1.0
    elif edge:
        found["size"] = [edge, edge]
        found["crop"] = about.get("crop_pct") or 1.0
    elif "height" in sides:
        found["size"] = [sides["height"], sides["width"]]
    return found
