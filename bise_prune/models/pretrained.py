"""Facts that publishers of weights state: how inputs are made from pixels, and how the network was built."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchvision.models import WeightsEnum, get_model_weights

from .names import TORCHVISION
from .registry import torchvision_classifiers

TRANSFORMING = ("googlenet", "inception_v3")  # their published weights expect another normalisation


def published_preprocessing(arch: str | None, sha256: str, module: nn.Module | None = None) -> dict[str, Any]:
    """Look up how a network's inputs are made, as the publisher of its weights states it.

    Args:
        arch: name of the architecture.
        sha256: SHA-256 digest of the weight file; torchvision's file names hold its first eight digits.
        module: the network, if the checkpoint holds it whole; timm's networks state their ``mean`` and ``std``.

    Returns:
        ``mean`` and ``std`` per channel on the [0, 1] scale; for torchvision's weights ``size`` (height, width) and
        ``crop``, the share of the resized image's sides that it is cropped from; empty if nothing is stated.
    """
    weights = _published(arch, sha256)
    if weights is not None:
        transform = weights.transforms()
        size = list(transform.crop_size) * (2 // len(transform.crop_size))
        crop = min(size) / min(transform.resize_size)
        return {"mean": list(transform.mean), "std": list(transform.std), "size": size, "crop": crop}
    about = getattr(module, "pretrained_cfg", None)
    found = {}
    for key in ("mean", "std"):
        values = about.get(key) if isinstance(about, dict) else None
        if isinstance(values, (list, tuple)) and len(values) == 3 and all(isinstance(v, float) for v in values):
            found[key] = list(values)
    return found if len(found) == 2 else {}


def published_arguments(arch: str, sha256: str) -> dict[str, Any]:
    """Constructor arguments that torchvision adds for its published weights, and that the weights do not show."""
    return {"transform_input": True} if arch in TRANSFORMING and _published(arch, sha256) is not None else {}


def _published(arch: str | None, sha256: str) -> WeightsEnum | None:
    """The published weights of torchvision that a weight file holds; None if it holds none of them."""
    prefix, _, name = (arch or "").rpartition(":")
    if prefix not in ("", TORCHVISION) or name not in torchvision_classifiers():
        return None
    for weights in get_model_weights(name):
        if weights.url.rpartition("-")[2].removesuffix(".pth") == sha256[:8]:
            return weights
    return None
