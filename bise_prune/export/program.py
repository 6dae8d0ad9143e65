"""Export to torch programs (.pt2) without traces of the machine, each compared with the model that it was made from."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..files import atomic_path
from ..pruning.verification import Verification, compare_outputs, require
from ..tracing import Inputs
from .positional import dynamic_shapes, positional, sample_of


def export_program(
    model: nn.Module,
    path: str | Path,
    example_inputs: Inputs,
    *,
    batch_sizes: Sequence[int] = (1, 2, 5),
    tolerance: float = 1e-4,
) -> Verification:
    """Write ``model`` as a ``.pt2`` program that loads with torch alone (``torch.export.load(path).module()``).

    It has a dynamic batch size, and holds no stack traces, local paths or example tensors. The file is kept only if the
    program, loaded again, computes what the model does. See :func:`export_onnx` for the arguments and errors.
    """
    module, inputs = positional(model, example_inputs, "export_program")
    samples = tuple(sample_of(value) for value in inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module, samples, dynamic_shapes=dynamic_shapes(module, samples, torch.export.Dim.AUTO)
            )
    except (torch._dynamo.exc.TorchDynamoException, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"torch cannot export {type(model).__name__}: {reason}") from error
    program._example_inputs = None
    for node in program.graph.nodes:
        for key in ("stack_trace", "source_fn_stack", "nn_module_stack", "from_node", "torch_fn"):
            node.meta.pop(key, None)
    with atomic_path(Path(path)) as temporary:
        torch.export.save(program, temporary)
        loaded = torch.export.load(temporary).module()

        def outputs(given: Any) -> tuple[Tensor, Tensor]:
            """Outputs of the model and of the program for one batch."""
            with torch.no_grad():
                return module(*given), loaded(*given)

        verification = compare_outputs(
            outputs, inputs, batch_sizes, tolerance=tolerance, dtype=torch.float32, relative=True
        )
        return require(verification, f"the exported program does not compute what the model does ({Path(path).name})")
