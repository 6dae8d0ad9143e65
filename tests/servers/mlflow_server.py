"""`mlflow models serve` on an ONNX file, in an environment of its own (mlflow-requirements.txt)."""

import contextlib
import os
import subprocess
from pathlib import Path

from .processes import free_ports, started

VARIABLE = "BISE_PRUNE_MLFLOW_PYTHON"  # the environment's python

_SAVE = """
import sys
import mlflow.onnx, numpy, onnx
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

def schema(values):
    sizes = [[-1, *(d.dim_value for d in value.type.tensor_type.shape.dim[1:])] for value in values]
    kinds = [onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type) for value in values]
    return Schema([TensorSpec(numpy.dtype(k), s, v.name) for v, k, s in zip(values, kinds, sizes, strict=True)])

model = onnx.load(sys.argv[1])
signature = ModelSignature(schema(model.graph.input), schema(model.graph.output))
mlflow.onnx.save_model(model, sys.argv[2], signature=signature, pip_requirements=["onnxruntime"])
"""


@contextlib.contextmanager
def running(model, work):
    """Save an ONNX file as an MLflow model and serve it; gives the address that answers."""
    python = Path(os.environ[VARIABLE]).absolute()
    environment = {**os.environ, "PATH": f"{python.parent}:{os.environ['PATH']}", "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([python, "-c", _SAVE, model, work / "saved"], env=environment, check=True, capture_output=True)
    (port,) = free_ports(1)
    command = [python, "-m", "mlflow", "models", "serve", "--model-uri", work / "saved", "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", port]
    with started(command, environment, f"http://127.0.0.1:{port}/health", work / "server.log"):
        yield f"http://127.0.0.1:{port}/invocations"
