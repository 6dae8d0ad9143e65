"""How the inputs of published weights are made from pixels."""

from __future__ import annotations

from typing import Any

from torch import nn

from .names import TORCHVISION
from .registry import torchvision_classifiers


def published_preprocessing(arch: str | None, sha256: str, module: nn.Module | None = None) -> dict[str, Any]:
    """Mean, std and size of an architecture's inputs; empty where nobody says.

    Args:
        arch: its name.
        sha256: of the weight file; torchvision's carry the first eight digits in their names.
        module: a network that came whole; timm's say how they want their inputs.
    """
    prefix, _, name = (arch or "").rpartition(":")
    if prefix in ("", TORCHVISION) and name in torchvision_classifiers():
        from torchvision.models import get_model_weights

        for weights in get_model_weights(name):
            if weights.url.rpartition("-")[2].removesuffix(".pth") == sha256[:8]:
                transform = weights.transforms()
                size = list(transform.crop_size) * (2 // len(transform.crop_size))
                return {"mean": list(transform.mean), "std": list(transform.std), "size": size}
    about = getattr(module, "pretrained_cfg", None)
    found = {}
    for key in ("mean", "std"):
        values = about.get(key) if isinstance(about, dict) else None
        if isinstance(values, (list, tuple)) and len(values) == 3 and all(isinstance(v, float) for v in values):
            found[key] = list(values)
    return found if len(found) == 2 else {}
