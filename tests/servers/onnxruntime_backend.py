"""Triton's backend "onnxruntime", for the tests: the python backend runs it, and deployed repositories load unchanged.

NVIDIA's containers have the real one, in C++. This one opens the model's file with onnxruntime, joins the requests that
Triton batched, runs once and splits the outputs.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def execute(self, requests):
        parts = [[pb_utils.get_input_tensor_by_name(r, name).as_numpy() for r in requests] for name in self.inputs]
        try:
            found = self.session.run(None, {n: np.concatenate(p) for n, p in zip(self.inputs, parts, strict=True)})
        except Exception as error:
            print(error, file=sys.stderr, flush=True)  # straight to the log: Triton 2.51 may crash before it gets there
            raise
        ends = np.cumsum([len(tensor) for tensor in parts[0]])[:-1]
        pieces = [np.split(tensor, ends) for tensor in found]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(n, p[i]) for n, p in zip(self.outputs, pieces, strict=True)])
            for i in range(len(requests))
        ]
