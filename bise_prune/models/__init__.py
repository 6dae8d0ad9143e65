"""Build network architectures by name: the paper's networks, torchvision's, timm's and Hugging Face's classifiers."""

from .names import is_factory, parse_architecture
from .registry import (
    build_model,
    identify_architecture,
    is_image_classifier,
    known_architectures,
    torchvision_classifiers,
)

__all__ = [
    "build_model", "identify_architecture", "is_factory", "is_image_classifier", "known_architectures",
    "parse_architecture", "torchvision_classifiers",
]  # fmt: skip
