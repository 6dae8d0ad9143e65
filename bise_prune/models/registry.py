"""From an architecture's name to a network, and from a state dict to an architecture's name."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError
from .mlp import MLP
from .simple_convnet import SimpleConvNet

_OWN: dict[str, Callable[..., nn.Module]] = {"simple_convnet": SimpleConvNet, "mlp": MLP}
_TORCHVISION = "torchvision:"


def known_architectures() -> list[str]:
    """Names that :func:`build_model` accepts; torchvision's may also be written ``torchvision:NAME``."""
    import torchvision

    return [*_OWN, *torchvision.models.list_models(module=torchvision.models)]


def build_model(arch: str, num_classes: int, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """An untrained network.

    Args:
        arch: its name.
        num_classes: outputs of its head.
        arguments: further keyword arguments of its constructor.

    Raises:
        ConfigError: an unknown name, or arguments it does not take.
    """
    if arch == "transformers":
        return _transformer(num_classes, **(arguments or {}))
    name = arch.removeprefix(_TORCHVISION)
    known = known_architectures()
    if name not in known or (name in _OWN and arch != name):
        near = difflib.get_close_matches(name, known, n=3)
        raise ConfigError(f"unknown architecture '{arch}'" + (f": did you mean {', '.join(near)}?" if near else ""))
    arguments = dict(arguments or {})
    try:
        if name in _OWN:
            return _OWN[name](num_classes, **arguments)
        import torchvision

        if name in ("googlenet", "inception_v3"):
            arguments = {"aux_logits": False, "init_weights": False, **arguments}
        return torchvision.models.get_model(name, num_classes=num_classes, **arguments)  # type: ignore[no-any-return]
    except TypeError as error:
        raise ConfigError(f"architecture '{arch}' does not take {arguments}: {error}") from error


def _transformer(num_classes: int, config: Mapping[str, Any] | None = None) -> nn.Module:
    """An untrained Hugging Face text classifier from its configuration."""
    try:
        from transformers import AutoConfig, AutoModelForSequenceClassification
    except ImportError as error:
        raise ConfigError(
            "this network needs the package transformers: pip install 'bise-prune[transformers]'"
        ) from error
    try:
        settings = AutoConfig.for_model(**{**(config or {}), "num_labels": num_classes})
        return AutoModelForSequenceClassification.from_config(settings)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"no text classifier of this configuration: {str(error).splitlines()[0]}") from error


def identify_architecture(state: Mapping[str, Tensor], hint: str = "") -> tuple[str, int]:
    """The torchvision architecture whose names and shapes a state dict has, and its number of classes.

    Args:
        state: the weights.
        hint: a file name; an architecture it names is tried first.

    Raises:
        CheckpointError: none fits, or several do.
    """
    if not state:
        raise CheckpointError("the checkpoint holds no weights")
    import torchvision

    names = torchvision.models.list_models(module=torchvision.models)
    names.sort(key=lambda name: (name not in hint, -len(name) if name in hint else 0, not name.startswith("resnet")))
    shapes = {key: tensor.shape for key, tensor in state.items()}
    fitting = []
    for name in names:
        if name.startswith("regnet"):  # their constructors do not run on the meta device
            continue
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            keys = list(build_model(name, 2).state_dict())
            if shapes.keys() != set(keys) or not shapes[keys[-1]]:
                continue
            num_classes = shapes[keys[-1]][0]
            candidate = build_model(name, num_classes)
        if {key: tensor.shape for key, tensor in candidate.state_dict().items()} == shapes:
            if name in hint or name.startswith("resnet"):
                return name, num_classes
            fitting.append((name, num_classes))
    if len(fitting) != 1:
        found = (
            f"several fit ({', '.join(name for name, _ in fitting)})"
            if fitting
            else "no torchvision classifier fits (RegNets are not tried)"
        )
        raise CheckpointError(f"cannot tell the architecture from the weights: {found}; name it with --arch")
    return fitting[0]
