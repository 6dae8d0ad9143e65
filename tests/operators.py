"""Torch's table of ONNX operators, which torch makes anew for each export, and which takes as long as a tiny one."""

import functools

from torch.onnx._internal.exporter._registration import ONNXRegistry


def make_once(monkeypatch):
    """Let the table be made by the first export, and all others read it."""
    monkeypatch.setattr(ONNXRegistry, "from_torchlib", staticmethod(functools.cache(ONNXRegistry.from_torchlib)))
