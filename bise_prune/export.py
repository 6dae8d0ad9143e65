"""ONNX files and torch programs: written clean, read back, and compared with the model that they came from."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from .artifacts import Verification
from .errors import ConfigError, ModelError
from .files import atomic_path
from .tracing import ByPosition, Inputs
from .verification import compare_outputs, require
from .version import __version__

_DENORMAL = 1e-30
_SINGLE_FILE_LIMIT = 1_500_000_000  # protobuf stops at 2 GB


def export_onnx(
    model: nn.Module,
    path: str | Path,
    example_inputs: Inputs,
    *,
    metadata: Mapping[str, str] | None = None,
    opset: int | None = None,
    output_name: str = "logits",
    batch_sizes: Sequence[int] = (1, 2, 5),
    tolerance: float = 1e-4,
) -> Verification:
    """Write ``model`` as a single ONNX file with a dynamic batch, and compare it with onnxruntime's CPU provider.

    The file appears only if the comparison passes. It holds no stack traces and no local paths; weights below 1e-30
    are written as zero. Inputs are named "input" (or "input_0", "input_1", ...).

    Args:
        model: a network in any mode; exported in eval mode, never changed.
        path: the file.
        example_inputs: a tensor, a tuple of tensors or a mapping to tensors, batch first. Inputs of a mapping keep
            their names, and where all are token sequences their length is dynamic, too.
        metadata: text to put in the file's metadata; versions of the tools stand there anyway.
        opset: version of the operator set; None = the exporter's choice.
        output_name: of the output.
        batch_sizes: batches to compare.
        tolerance: largest absolute logit difference in float32 that passes, relative to the largest logit above 1.

    Returns:
        The comparison with onnxruntime.

    Raises:
        ConfigError: inputs are no tensors, or the model cannot be written in that opset.
        ModelError: torch cannot export the model.
        VerificationError: onnxruntime computes something else.
    """
    module, inputs = _positional(model, example_inputs, "export_onnx")
    # The exporter fixes a batch dimension of one, so that two samples at least are shown.
    samples = tuple(_sample(value) for value in inputs)
    names = list(module.names or []) or [f"input_{i}" for i in range(len(samples))]
    names = ["input"] if names == ["input_0"] else names
    proto = _exported(module, samples, names, output_name, opset)
    written = opset_of(proto)
    if opset is not None and written != opset:
        raise ConfigError(f"opset {opset} cannot be written for this network: torch's exporter gives {written}")
    about = {"producer": "bise-prune", "versions": json.dumps(_versions()), "opset": str(written)}
    for key, value in {**about, **(metadata or {})}.items():
        proto.metadata_props.add(key=key, value=value)
    with atomic_path(Path(path)) as temporary:
        onnx.save(proto, temporary)
        session = open_session(temporary)

        def outputs(batch: Any) -> tuple[Tensor, Tensor]:
            with torch.no_grad():
                reference = module(*batch)
            (candidate,) = session.run(None, {name: _array(v) for name, v in zip(names, batch, strict=True)})
            return reference, torch.from_numpy(np.asarray(candidate))

        verification = compare_outputs(
            outputs, inputs, batch_sizes, tolerance=tolerance, dtype=torch.float32, relative=True
        )
        return require(verification, f"onnxruntime does not compute what the model does ({Path(path).name})")


def export_program(
    model: nn.Module,
    path: str | Path,
    example_inputs: Inputs,
    *,
    batch_sizes: Sequence[int] = (1, 2, 5),
    tolerance: float = 1e-4,
) -> Verification:
    """Write ``model`` as a ``.pt2`` program that loads with torch alone (``torch.export.load(path).module()``).

    It has a dynamic batch, and holds no stack traces, local paths or example tensors. The file appears only if the
    program read back computes what the model does. See :func:`export_onnx` for the arguments and errors.
    """
    module, inputs = _positional(model, example_inputs, "export_program")
    samples = tuple(_sample(value) for value in inputs)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                module, samples, dynamic_shapes=_dynamic(module, samples, torch.export.Dim.AUTO)
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
            with torch.no_grad():
                return module(*given), loaded(*given)

        verification = compare_outputs(
            outputs, inputs, batch_sizes, tolerance=tolerance, dtype=torch.float32, relative=True
        )
        return require(verification, f"the exported program does not compute what the model does ({Path(path).name})")


def open_session(
    model: str | Path | bytes, threads: int = 0, provider: str = "CPUExecutionProvider"
) -> onnxruntime.InferenceSession:
    """An onnxruntime session on one provider, never on another one instead.

    Args:
        model: an ONNX file, or its content.
        threads: of the CPU; 0 = onnxruntime's choice.
        provider: where to run.

    Raises:
        ConfigError: the provider is missing, or does not start.
    """
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ConfigError(f"this onnxruntime has no {provider}, only {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=[provider])
    if provider not in session.get_providers():
        raise ConfigError(f"onnxruntime fell back from {provider}; check its libraries")
    return session


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a model uses."""
    return next(int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


def _versions() -> dict[str, str]:
    return {"bise-prune": __version__, "torch": str(torch.__version__), "onnx": str(onnx.__version__)}


def flush_denormals(model: nn.Module) -> int:
    """Set weights below 1e-30 in magnitude to zero, in place, and count them: processors are slow on such numbers."""
    flushed = 0
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tiny = (tensor != 0) & (tensor.abs() < _DENORMAL)
                flushed += int(tiny.sum())
                tensor[tiny] = 0
    return flushed


def _positional(model: nn.Module, example_inputs: Inputs, function: str) -> tuple[ByPosition, tuple[Tensor, ...]]:
    """The model and its inputs by position, whatever its signature."""
    names = list(example_inputs) if isinstance(example_inputs, Mapping) else None
    values = example_inputs.values() if isinstance(example_inputs, Mapping) else example_inputs
    inputs = (values,) if isinstance(values, Tensor) else tuple(values)
    if not all(isinstance(value, Tensor) for value in inputs):
        raise ConfigError(f"{function} takes a tensor, a tuple of tensors or a mapping to tensors as example_inputs")
    module = copy.deepcopy(model).cpu().float().eval()
    flush_denormals(module)
    return ByPosition(module, names), inputs


def _dynamic(model: ByPosition, samples: tuple[Tensor, ...], length: Any) -> tuple[tuple[dict[int, Any], ...]]:
    """Sizes that may change: the batch, and the length of token sequences."""
    batch = torch.export.Dim("batch")
    is_text = model.names is not None and all(not s.is_floating_point() and s.ndim == 2 for s in samples)
    return (tuple({0: batch, 1: length} if is_text else {0: batch} for _ in samples),)


def _exported(
    module: ByPosition, samples: tuple[Tensor, ...], names: list[str], output_name: str, opset: int | None
) -> onnx.ModelProto:
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "onnxscript", "onnx_ir")}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                samples,
                dynamo=True,
                input_names=names,
                output_names=[output_name],
                opset_version=opset,
                dynamic_shapes=_dynamic(module, samples, torch.export.Dim("length")),
                external_data=False,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, torch._dynamo.exc.TorchDynamoException) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"torch cannot export {type(module.model).__name__} to ONNX: {reason}") from error
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    assert program is not None
    proto = program.model_proto
    if proto.ByteSize() > _SINGLE_FILE_LIMIT:
        raise ModelError(f"the model takes {proto.ByteSize()} bytes, too many for a single ONNX file")
    clean(proto)
    onnx.checker.check_model(proto)
    return proto


def clean(proto: onnx.ModelProto) -> None:
    """Drop what exporters note of the machine, stack traces and names of source files, and all metadata."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    for graph in [proto.graph, *proto.functions]:
        del graph.metadata_props[:]
        graph.doc_string = ""
        values = [graph.initializer, graph.input, graph.output] if isinstance(graph, onnx.GraphProto) else []
        for element in (e for collection in [graph.node, graph.value_info, *values] for e in collection):
            if hasattr(element, "metadata_props"):
                del element.metadata_props[:]
            element.doc_string = ""


def _sample(value: Tensor) -> Tensor:
    rows = value.detach().cpu()[[0, -1] if len(value) > 1 else [0, 0]]
    return rows.float() if rows.is_floating_point() else rows


def _array(value: Tensor) -> Any:
    return value.detach().cpu().numpy()
