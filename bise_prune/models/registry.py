"""Build a network from the name of its architecture, and recognise the architecture of a state dict."""

from __future__ import annotations

import difflib
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..errors import BiseError, CheckpointError, ConfigError
from ..files import running_code_of
from .matching import Difference, difference, left_out, matched
from .mlp import MLP
from .names import TIMM, is_factory
from .simple_convnet import SimpleConvNet

_CODE_IN_CONFIG = ("auto_map", "attn_implementation", "experts_implementation")  # keys that name code to download
_AUXILIARY = ("googlenet", "inception_v3")  # have extra classifiers that are used in training only
_FEW = 8  # names that differ, up to which the nearest architecture is told
_OWN: dict[str, Callable[..., nn.Module]] = {"simple_convnet": SimpleConvNet, "mlp": MLP}


def known_architectures() -> list[str]:
    """Names that :func:`build_model` accepts without a prefix; ``torchvision:NAME`` works for torchvision's as well."""
    return [*_OWN, *torchvision_classifiers()]


def torchvision_classifiers() -> list[str]:
    """Names of torchvision's image classifiers."""
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def build_model(arch: str, num_classes: int, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Build an untrained network.

    Args:
        arch: name of the architecture: one of :func:`known_architectures`, ``torchvision:NAME``, ``timm:NAME``,
            "transformers" (with the argument "config"), or ``package.module:factory``, which is imported and called.
        num_classes: number of outputs of the classifier head; a factory gets it if it has a parameter of this name.
        arguments: further keyword arguments of the constructor.

    Raises:
        ConfigError: the name is unknown, or the network cannot be built with these arguments.
    """
    arguments = dict(arguments or {})
    num_classes = arguments.pop("num_classes", num_classes)
    prefix, _, rest = arch.rpartition(":")
    try:
        if arch == "transformers":
            return _transformer(num_classes, **arguments)
        if is_factory(arch):
            return _made_by_factory(prefix, rest, num_classes, arguments)
        if prefix == TIMM:
            return _from_timm(rest, num_classes, arguments)
        known = torchvision_classifiers() if prefix else known_architectures()
        if rest not in known:
            raise _unknown(arch, rest, known)
        if rest in _OWN:
            return _OWN[rest](num_classes, **arguments)
        import torchvision

        if rest in _AUXILIARY:
            arguments = {"aux_logits": False, "init_weights": False, **arguments}
        return torchvision.models.get_model(rest, num_classes=num_classes, **arguments)  # type: ignore[no-any-return]
    except TypeError as error:
        raise ConfigError(f"architecture '{arch}' does not take {arguments}: {error}") from error
    except BiseError:
        raise
    except Exception as error:  # a constructor of another package may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"architecture '{arch}' with {num_classes} classes cannot be built: {reason}") from error


def _unknown(arch: str, name: str, known: Sequence[str]) -> ConfigError:
    """The error for an unknown name, with the nearest known names."""
    near = difflib.get_close_matches(name, known, n=3)
    return ConfigError(f"unknown architecture '{arch}'" + (f": did you mean {', '.join(near)}?" if near else ""))


def _from_timm(name: str, num_classes: int, arguments: dict[str, Any]) -> nn.Module:
    """Build an untrained network of timm."""
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"'{TIMM}:{name}' needs the package timm: pip install timm") from error
    if not timm.is_model(name.partition(".")[0]):
        raise _unknown(f"{TIMM}:{name}", name, timm.list_models())
    return timm.create_model(name, pretrained=False, num_classes=num_classes, **arguments)  # type: ignore[no-any-return]


def _made_by_factory(place: str, name: str, num_classes: int, arguments: dict[str, Any]) -> nn.Module:
    """Call a user's own function or class; its module may also lie in the current folder."""
    what = f"--arch {place}:{name}"
    with running_code_of(what):
        try:
            factory = getattr(importlib.import_module(place), name, None)
        except ImportError as error:
            raise ConfigError(f"{what}: cannot import '{place}' ({error})") from error
        except SyntaxError as error:
            where = f"{error.filename}, line {error.lineno}"
            raise ConfigError(f"{what}: '{place}' is no Python ({where}: {error.msg})") from error
        if not callable(factory):
            raise ConfigError(f"{what}: '{place}' has no function or class '{name}'")
        parameters = inspect.signature(factory).parameters.values()
        takes = any(p.name == "num_classes" or p.kind == p.VAR_KEYWORD for p in parameters)
        model = factory(**({"num_classes": num_classes} if takes else {}), **arguments)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{what} returned {type(model).__name__}, not an nn.Module")
    return model


def default_classes(arch: str) -> int | None:
    """The number of classes that a user's function or class has by default; None if it has none, or for other names."""
    place, _, name = arch.rpartition(":")
    if not is_factory(arch):
        return None
    try:
        with running_code_of(f"--arch {arch}"):
            factory = getattr(importlib.import_module(place), name, None)
        default = inspect.signature(factory).parameters["num_classes"].default if callable(factory) else None
    except Exception:  # the user's code may raise anything; building the network tells what is wrong
        return None
    return default if isinstance(default, int) and not isinstance(default, bool) and default > 0 else None


def is_image_classifier(config: Mapping[str, Any]) -> bool:
    """Whether a Hugging Face configuration is that of a classifier of images."""
    names = config.get("architectures") or ()
    if any(str(name).endswith("ForImageClassification") for name in names):
        return True
    return not names and "image_size" in config and "vocab_size" not in config


def _transformer(num_classes: int, config: Mapping[str, Any] | None = None) -> nn.Module:
    """Build an untrained Hugging Face classifier of texts or images from its configuration."""
    try:
        from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification
    except ImportError as error:
        raise ConfigError(
            "this network needs the package transformers: pip install 'bise-prune[transformers]'"
        ) from error
    try:
        # Keys with a leading underscore are transformers' own notes, such as where to download attention code from.
        plain = {
            key: value
            for key, value in (config or {}).items()
            if key not in _CODE_IN_CONFIG and not key.startswith("_")
        }
        settings = AutoConfig.for_model(**{**plain, "num_labels": num_classes})
        kind = AutoModelForImageClassification if is_image_classifier(plain) else AutoModelForSequenceClassification
        return kind.from_config(settings, trust_remote_code=False)  # type: ignore[no-any-return]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"no classifier of this configuration: {str(error).splitlines()[0][:200]}") from error


def renamed_weights(model: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The weights in a file of a Hugging Face model by the names that the installed version of transformers gives them.

    The file's own names stay if the weights do not fit.
    """
    from transformers.utils import logging

    kind: Any = type(model)
    logging.disable_progress_bar()
    try:
        loaded, about = kind.from_pretrained(
            None, config=model.config, state_dict=dict(state), output_loading_info=True
        )
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return state
    fits = not any(about.get(key) for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    return dict(loaded.state_dict()) if fits else state


def identify_architecture(state: Mapping[str, Tensor], hint: str = "") -> tuple[str, int, dict[str, Any]]:
    """Find the torchvision architecture with the names and shapes of a state dict; no two architectures have the same.

    Args:
        state: the state dict.
        hint: file name; an architecture that it contains is tried first.

    Returns:
        Name of the architecture, number of classes, and further constructor arguments.

    Raises:
        CheckpointError: the state dict is empty, or no architecture fits.
    """
    if not state:
        raise CheckpointError("the checkpoint holds no weights")
    candidates: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in torchvision_classifiers()]
    candidates += [(name, {"aux_logits": True}) for name in _AUXILIARY]
    candidates.sort(key=lambda c: (c[0] not in hint, -len(c[0]) if c[0] in hint else 0, not c[0].startswith("resnet")))
    nearest: tuple[Difference, str, int] | None = None
    fitting: dict[int, tuple[str, int, dict[str, Any]]] = {}  # by the number of tensors that are left out
    for name, arguments in candidates:
        like = _empty(name, 2, arguments).state_dict()
        last = next(reversed(like))
        found = matched(like, state)
        num_classes = len(found[last]) if last in found and found[last].ndim else 2
        if num_classes != 2 and not difference(like, found).missing:
            like = _empty(name, num_classes, arguments).state_dict()
        differing = difference(like, found)
        if not differing.count:
            if not (others := len(left_out(state, found))):
                return name, num_classes, arguments
            fitting.setdefault(others, (name, num_classes, arguments))
        if nearest is None or differing.count < nearest[0].count:
            nearest = differing, name, len(like)
    if fitting:
        return fitting[min(fitting)]
    assert nearest is not None
    if nearest[0].count <= max(_FEW, nearest[2] // 10):
        raise CheckpointError(
            f"the weights fit {nearest[1]} but for {nearest[0]}: name the function or class that builds this network "
            "with --arch package.module:factory"
        )
    raise CheckpointError(
        "cannot tell the architecture from the weights: no torchvision classifier fits (the first tensor is "
        f"'{next(iter(state))}'); name it with --arch"
    )


def _empty(name: str, num_classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """Build a network of torchvision whose weights take no memory."""
    with _WithoutMemory(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_model(name, num_classes, arguments)


class _WithoutMemory(TorchFunctionMode):
    """Context in which modules create weights on the meta device; other tensors in constructors stay real."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)
