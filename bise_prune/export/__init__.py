"""Export of networks to files that run without this package: ONNX in several precisions, torch programs, Triton."""

from .denormals import flush_denormals
from .onnx_file import clean, export_onnx, opset_of
from .program import export_program
from .runtime import open_session

__all__ = ["clean", "export_onnx", "export_program", "flush_denormals", "open_session", "opset_of"]
