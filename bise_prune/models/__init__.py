"""Architectures by name: the paper's networks and torchvision's classifiers."""

from .registry import build_model, identify_architecture, known_architectures

__all__ = ["build_model", "identify_architecture", "known_architectures"]
