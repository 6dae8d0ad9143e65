"""What a process imports and makes before copies of it run the command, where each would take seconds for it."""

import importlib
import pkgutil
from contextlib import suppress

import operators
import pytest
import torch
from PIL import Image

import bise_prune

OWN = [module.name for module in pkgutil.walk_packages(bise_prune.__path__, "bise_prune.")]
OTHERS = [
    "fvcore.nn",
    "matplotlib.backends.backend_svg",
    "matplotlib.pyplot",
    "onnxruntime",
    "scipy.stats",
    "tritonclient.grpc",
]
for name in [*(name for name in OWN if "__main__" not in name), *OTHERS]:
    with suppress(ImportError):  # of what is not installed
        importlib.import_module(name)
Image.init()
operators.make_once(pytest.MonkeyPatch())
torch.onnx.export(torch.nn.Linear(1, 1).eval(), (torch.ones(1, 1),), dynamo=True, verbose=False)
