"""Export to ONNX files without traces of the machine, each compared with the model that it was made from."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
import torch
from torch import Tensor, nn

from ..errors import ConfigError, ModelError
from ..files import atomic_path
from ..pruning.verification import Verification, compare_outputs, require
from ..tracing import ByPosition, Inputs
from ..version import __version__
from .positional import dynamic_shapes, positional, sample_of
from .runtime import open_session

_UNKNOWN_BEFORE = "noop_with_empty_axes"  # attribute of reductions, from operator set 18 on
_SINGLE_FILE_LIMIT = 1_500_000_000  # bytes; protobuf's limit is 2 GB


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
    """Write ``model`` as a single ONNX file with a dynamic batch size, and compare it with the model.

    The file is run by onnxruntime's CPU provider and kept only if the comparison passes. It holds no stack traces and
    no local paths; weights below 1e-30 in magnitude are written as zero. Inputs are named "input" (or "input_0",
    "input_1", ...).

    Args:
        model: network in any mode; it is exported in eval mode and never changed.
        path: file to write.
        example_inputs: a tensor, a tuple of tensors or a mapping to tensors, batch first. Inputs of a mapping keep
            their names; if all of them are token sequences, their length is dynamic, too.
        metadata: text for the file's metadata; the versions of the tools are always added.
        opset: version of ONNX's operator set; None for the exporter's choice.
        output_name: name of the output.
        batch_sizes: batch sizes at which the file is compared with the model.
        tolerance: largest absolute logit difference in float32 that passes; relative to the largest logit if that is
            above 1.

    Returns:
        The comparison with onnxruntime.

    Raises:
        ConfigError: inputs are not tensors, or the model cannot be written in that opset.
        ModelError: torch cannot export the model, or the model is too large for a single file.
        VerificationError: onnxruntime computes something else.
    """
    module, inputs = positional(model, example_inputs, "export_onnx")
    # The exporter would fix a batch dimension of one, so it gets two samples.
    samples = tuple(sample_of(value) for value in inputs)
    names = list(module.names or []) or [f"input_{i}" for i in range(len(samples))]
    names = ["input"] if names == ["input_0"] else names
    proto = _exported(module, samples, names, output_name, opset)
    if opset is not None and opset_of(proto) != opset:
        proto = _converted(proto, opset)
    written = opset_of(proto)
    about = {"producer": "bise-prune", "versions": json.dumps(_versions()), "opset": str(written)}
    for key, value in {**about, **(metadata or {})}.items():
        proto.metadata_props.add(key=key, value=value)
    with atomic_path(Path(path)) as temporary:
        onnx.save(proto, temporary)
        session = open_session(temporary)

        def outputs(batch: Any) -> tuple[Tensor, Tensor]:
            """Outputs of the model and of the file for one batch."""
            with torch.no_grad():
                reference = module(*batch)
            try:
                (candidate,) = session.run(None, {name: _array(v) for name, v in zip(names, batch, strict=True)})
            except Exception as error:  # the errors of onnxruntime have no class in common
                raise ModelError(
                    f"the ONNX file does not run on a batch of {len(batch[0])} ({str(error).strip().splitlines()[0]}): "
                    "the forward pass makes the size of the batch a constant; write x.flatten(1) or x.view(x.size(0), "
                    "-1) where it uses len(x), a literal or an integer made of it"
                ) from error
            return reference, torch.from_numpy(np.asarray(candidate))

        verification = compare_outputs(
            outputs, inputs, batch_sizes, tolerance=tolerance, dtype=torch.float32, relative=True
        )
        return require(verification, f"onnxruntime does not compute what the model does ({Path(path).name})")


def _converted(proto: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """A model in another version of the operator set than torch's exporter gives; a ConfigError if that cannot be."""
    for node in proto.graph.node:  # the converter leaves this attribute of later versions in place; 0 is its default
        for place in [k for k, value in enumerate(node.attribute) if value.name == _UNKNOWN_BEFORE and not value.i]:
            del node.attribute[place]
    try:
        converted = onnx.version_converter.convert_version(proto, opset)
        onnx.checker.check_model(converted)
    except Exception as error:  # the converter raises errors of several kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"opset {opset} cannot be written for this network: torch's exporter gives {opset_of(proto)}, and "
            f"converting it fails ({reason[:200]})"
        ) from error
    clean(converted)
    return converted


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of ONNX's own operator set that a model uses."""
    return next(int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))


def _versions() -> dict[str, str]:
    """Versions of the packages that wrote the file."""
    return {"bise-prune": __version__, "torch": str(torch.__version__), "onnx": str(onnx.__version__)}


def _exported(
    module: ByPosition, samples: tuple[Tensor, ...], names: list[str], output_name: str, opset: int | None
) -> onnx.ModelProto:
    """The model as ONNX, checked and without traces of the machine; the exporter's messages are silenced."""
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
                dynamic_shapes=dynamic_shapes(module, samples, torch.export.Dim("length")),
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
    """Delete all metadata, and all that exporters record about the machine, such as stack traces and file names."""
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


def _array(value: Tensor) -> Any:
    """The tensor as a NumPy array."""
    return value.detach().cpu().numpy()
