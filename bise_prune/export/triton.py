"""Model repositories for NVIDIA Triton: dense and slim network as versions 1 and 2 of one model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from ..errors import ConfigError

_DATA_TYPES = {
    onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.FLOAT16: "TYPE_FP16", onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT32: "TYPE_INT32", onnx.TensorProto.INT64: "TYPE_INT64", onnx.TensorProto.BOOL: "TYPE_BOOL",
}  # fmt: skip
_LABELS = "labels.txt"
_WARM_UP_LENGTH = 8  # of sequences, whose length is free


def check_repository(folder: Path, name: str) -> None:
    """Whether a model could be added to a repository.

    Raises:
        ConfigError: tritonclient is missing, or the model is there already.
    """
    _protobuf()
    if (folder / name).exists():
        raise ConfigError(f"{folder} has a model '{name}' already: choose another folder with --triton")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; --triton takes a folder")


def write_repository(
    folder: Path,
    name: str,
    versions: Sequence[Path],
    classes: Sequence[str] = (),
    *,
    max_batch_size: int = 64,
    max_queue_delay_us: int = 0,
) -> Path:
    """Add a model to a repository, whole or not at all.

    Clients that name no version get the last one. Requests are batched as they come, and each version is warmed up
    with a batch of one and a full one before it serves, which also brings out shapes and types that do not fit.

    Args:
        folder: the repository.
        name: of the model.
        versions: ONNX files of one interface; the first becomes version 1.
        classes: their names, for clients that ask for classes instead of logits; empty for none.
        max_batch_size: largest batch.
        max_queue_delay_us: how long a request may wait for others, in microseconds; with 0, requests are batched that
            came in while the model was busy, and a lone client does not wait.

    Returns:
        The model's folder.

    Raises:
        ConfigError: tritonclient is missing, the model is there already, or the versions differ in what they take.
    """
    check_repository(folder, name)
    protobuf, text_format = _protobuf()
    graphs = [onnx.load(path, load_external_data=False).graph for path in versions]
    interfaces = [[_interface(value) for value in [*graph.input, *graph.output]] for graph in graphs]
    if any(interface != interfaces[0] for interface in interfaces):
        raise ConfigError(f"{versions[0].name} and {versions[-1].name} differ in inputs or outputs: no versions of one")
    config = protobuf.ModelConfig(name=name, backend="onnxruntime", max_batch_size=max_batch_size)
    config.version_policy.all.SetInParent()
    config.dynamic_batching.max_queue_delay_microseconds = max_queue_delay_us
    for value in graphs[0].input:
        field, (kind, dims) = config.input.add(name=value.name), _interface(value)[1:]
        field.data_type = protobuf.DataType.Value(kind)
        field.dims.extend(dims)
    for value in graphs[0].output:
        output, (kind, dims) = config.output.add(name=value.name), _interface(value)[1:]
        output.data_type = protobuf.DataType.Value(kind)
        output.dims.extend(dims)
        if classes:
            output.label_filename = _LABELS
    for batch in (1, max_batch_size):
        warmup = config.model_warmup.add(name=f"batch of {batch}", batch_size=batch)
        for field in config.input:
            sample = warmup.inputs[field.name]
            sample.data_type = field.data_type
            sample.dims.extend(_WARM_UP_LENGTH if size < 0 else size for size in field.dims)
            if protobuf.DataType.Name(field.data_type) in ("TYPE_INT32", "TYPE_INT64", "TYPE_BOOL"):
                sample.zero_data = True  # random numbers are no tokens
            else:
                sample.random_data = True
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bise-prune-", dir=folder) as temporary:
        made = Path(temporary) / name
        for number, path in enumerate(versions, 1):
            (made / str(number)).mkdir(parents=True)
            shutil.copyfile(path, made / str(number) / "model.onnx")
        if classes:
            (made / _LABELS).write_text("".join(f"{' '.join(str(label).split())}\n" for label in classes))
        (made / "config.pbtxt").write_text(text_format.MessageToString(config))
        made.rename(folder / name)
    return folder / name


def _protobuf() -> tuple[Any, Any]:
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise ConfigError("--triton needs the package tritonclient: pip install 'bise-prune[triton]'") from error
    return model_config_pb2, text_format


def _interface(value: Any) -> tuple[str, str, list[int]]:
    """Name, data type and sizes behind the batch, -1 where a size is free."""
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    return value.name, _DATA_TYPES[tensor.elem_type], dims[1:]
