"""Model repositories for NVIDIA Triton, with the dense and the slim network as versions 1 and 2 of one model."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from ..errors import ConfigError

_DATA_TYPES = {
    onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.FLOAT16: "TYPE_FP16", onnx.TensorProto.UINT8: "TYPE_UINT8",
    onnx.TensorProto.INT32: "TYPE_INT32", onnx.TensorProto.INT64: "TYPE_INT64", onnx.TensorProto.BOOL: "TYPE_BOOL",
}  # fmt: skip
_LABELS, _CONFIG = "labels.txt", "config.pbtxt"
_PARTIAL = ".bise-prune-partial-"
_WARM_UP_LENGTH = 8  # tokens, for sequences of dynamic length


def check_repository(folder: Path, name: str, *, may_be_there: bool = False) -> None:
    """Check that a model can be added to a repository.

    Args:
        folder: folder of the repository.
        name: name of the model.
        may_be_there: whether a run that was stopped may have added it.

    Raises:
        ConfigError: tritonclient is missing, the name is none for a model, ``folder`` is a file or the folder of a
            model, or the repository has a model of that name.
    """
    _protobuf()
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise ConfigError(
            f"--triton names the model after the checkpoint, and {name!r} is no name for one: rename the checkpoint, "
            "with letters, digits, dots, hyphens and underscores"
        )
    inside = next((place for place in (folder, *folder.resolve().parents) if (place / _CONFIG).is_file()), None)
    if inside is not None:
        raise ConfigError(f"{folder} lies in the folder of a model ({inside / _CONFIG}); --triton takes a repository")
    if (folder / name).exists() and not may_be_there:
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
    """Add a model to a repository; if that fails, the repository stays as it was.

    The model is made beside the repository, where no server looks, and then moved into it. If it is there already with
    the same files, which a stopped run has left, nothing is done.

    Clients that name no version get the last one. Triton batches requests as they come, and warms each version up with
    a batch of one and a full batch before it serves, which also reveals shapes and types that do not fit.

    Args:
        folder: folder of the repository.
        name: name of the model.
        versions: ONNX files with the same inputs and outputs; the first becomes version 1.
        classes: class names, for clients that ask for classes instead of logits; empty for none.
        max_batch_size: largest batch size.
        max_queue_delay_us: longest time in microseconds that a request waits for others; with 0, only requests that
            come in while the model is busy are batched, and a single client does not wait.

    Returns:
        The folder of the model.

    Raises:
        ConfigError: tritonclient is missing, the model is there already, or the versions differ in inputs or outputs.
    """
    check_repository(folder, name, may_be_there=True)
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
                sample.zero_data = True  # random numbers would not be valid tokens
            else:
                sample.random_data = True
    folder.mkdir(parents=True, exist_ok=True)
    with _beside(folder) as temporary:
        made = temporary / name
        for number, path in enumerate(versions, 1):
            (made / str(number)).mkdir(parents=True)
            shutil.copyfile(path, made / str(number) / "model.onnx")
        if classes:
            (made / _LABELS).write_text("".join(f"{' '.join(str(label).split())}\n" for label in classes))
        (made / _CONFIG).write_text(text_format.MessageToString(config))
        if not (folder / name).exists():
            made.rename(folder / name)
        elif _contents(made) != _contents(folder / name):
            raise ConfigError(f"{folder} has another model '{name}' already: choose another folder with --triton")
    return folder / name


@contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A temporary folder from which a folder can be moved into a repository.

    It lies beside the repository, or in it if the place beside it cannot be written to or is another file system. What
    stopped runs have left is removed first.
    """
    prefix = f".{folder.resolve().name}{_PARTIAL}"
    for place in (folder.resolve().parent, folder):
        for stale in place.glob(f"{prefix}*"):
            shutil.rmtree(stale, ignore_errors=True)
    try:
        is_near = folder.resolve().parent.stat().st_dev == folder.stat().st_dev
        made = tempfile.TemporaryDirectory(prefix=prefix, dir=folder.resolve().parent if is_near else folder)
    except OSError:
        made = tempfile.TemporaryDirectory(prefix=prefix, dir=folder)
    with made as name:
        yield Path(name)


def _contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by their paths in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _protobuf() -> tuple[Any, Any]:
    """Triton's configuration messages and their text format.

    Raises:
        ConfigError: tritonclient is missing.
    """
    try:
        from google.protobuf import text_format
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise ConfigError("--triton needs the package tritonclient: pip install 'bise-prune[triton]'") from error
    return model_config_pb2, text_format


def _interface(value: Any) -> tuple[str, str, list[int]]:
    """Name, data type and sizes without the batch dimension of an input or output; -1 for a size that is free."""
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    return value.name, _DATA_TYPES[tensor.elem_type], dims[1:]
