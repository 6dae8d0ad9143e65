"""ONNX in other forms: half precision, int8, and a graph that takes images as they come."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from .artifacts import Latency
from .data import BatchLoader, BiasedDataset
from .data.batch import input_map
from .errors import ModelError
from .export import clean, open_session
from .files import atomic_path
from .measurement import summarise, time_by_turns
from .tracing import logits_of, run

CALIBRATION_SAMPLES = 256


def write_half(source: Path, path: Path) -> None:
    """Write an ONNX file of float32 in half precision; its inputs and outputs stay float32.

    Raises:
        ModelError: onnxruntime's converter cannot.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    try:
        with _quiet():
            proto = convert_float_to_float16(onnx.load(source), keep_io_types=True)
            OnnxModel(proto).topological_sort()  # the converter appends its casts
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ModelError(f"onnxruntime cannot turn {source.name} into float16: {error}") from error
    _write(proto, source, path, "float16")


def write_int8(source: Path, path: Path, data: BiasedDataset, seed: int = 0) -> dict[str, int]:
    """Write an ONNX file of float32 as int8, weights and activations, in quantise-dequantise pairs (static QDQ).

    Weights per channel, all of it symmetric, as GPUs want it; weights take 7 of the 8 bits, since processors without
    the newer integer instructions overflow otherwise. Ranges of activations are those on a sample of the data that has
    about as many of every subgroup, so that small ones count.

    Args:
        source: the ONNX file.
        path: of the result.
        data: to calibrate on.
        seed: of the sample.

    Returns:
        Samples of the calibration: in all, and the fewest and most of a subgroup.

    Raises:
        ModelError: onnxruntime's quantiser cannot.
    """
    from onnxruntime.quantization import QuantType, quantize_static

    rows, counts = balanced_rows(data, CALIBRATION_SAMPLES, seed)
    feeds = iter([feed for feed, _ in _feeds(open_session(source), BatchLoader(data.subset(rows), 32))])

    class Reader:
        def get_next(self) -> dict[str, Any] | None:
            return next(feeds, None)

    with atomic_path(path) as temporary:
        try:
            with _quiet():
                quantize_static(
                    onnx.load(source),
                    temporary,
                    Reader(),
                    per_channel=True,
                    reduce_range=True,
                    activation_type=QuantType.QInt8,
                    weight_type=QuantType.QInt8,
                    extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
                )
        except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ModelError(f"onnxruntime cannot quantise {source.name}: {error}") from error
        proto = onnx.load(temporary)
    _write(proto, source, path, "int8")
    return {"n": len(rows), "least_per_subgroup": min(counts), "most_per_subgroup": max(counts)}


def balanced_rows(data: BiasedDataset, count: int, seed: int = 0) -> tuple[Tensor, list[int]]:
    """Up to ``count`` samples, dealt to the subgroups by turns as long as they have some; and how many each got."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.cat([data.target[:, None], data.bias], 1).cpu().unique(dim=0, return_inverse=True)[1]
    order = torch.randperm(len(cells), generator=generator)
    turns = torch.zeros_like(order)  # at which turn a sample would be dealt
    for cell in range(int(cells.max()) + 1):
        members = (cells[order] == cell).nonzero().flatten()
        turns[members] = torch.arange(len(members))
    rows = order[turns.argsort(stable=True)[:count]]
    return rows, cells[rows].bincount(minlength=int(cells.max()) + 1).tolist()


def half_overflow(model: nn.Module, data: BiasedDataset, seed: int = 0) -> str | None:
    """Whether a network leaves the range of float16 on a sample that is balanced over the subgroups; if so, in words.

    onnxruntime computes float16 in float32 on CPUs, so that its figures there would not show it.
    """
    half = copy.deepcopy(model).half().eval()
    rows, _ = balanced_rows(data, CALIBRATION_SAMPLES, seed)
    lost = 0
    with torch.no_grad():
        for batch in BatchLoader(data.subset(rows), 32):
            inputs = input_map(batch.input, lambda tensor: tensor.half() if tensor.is_floating_point() else tensor)
            lost += int((~torch.isfinite(logits_of(run(half, inputs)))).any(1).sum())
    return f"{lost} of {len(rows)} outputs are not finite in half precision" if lost else None


class AsImages(nn.Module):
    """A classifier of images as cameras and browsers give them: uint8 (N, H, W, C) in, probabilities (N, classes) out.

    Args:
        model: a classifier of normalised (N, C, H, W) images.
        mean: per channel, on the [0, 1] scale; empty for none.
        std: likewise.
    """

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(list(mean) or [0.0]).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std) or [1.0]).view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Probabilities."""
        pixels = image.permute(0, 3, 1, 2).float() / 255
        return logits_of(self.model((pixels - self.mean) / self.std)).softmax(1)


def onnx_predictions(path: Path, data: BiasedDataset, batch_size: int = 256, *, as_images: bool = False) -> Tensor:
    """The classes that an ONNX file predicts, shape (N,), in onnxruntime on the CPU.

    Args:
        path: the file.
        data: samples.
        batch_size: of the passes.
        as_images: whether the file takes them as :class:`AsImages` does.
    """
    session = open_session(path)
    if as_images:
        assert isinstance(data.inputs, Tensor)
        (name,) = [value.name for value in session.get_inputs()]
        parts = [session.run(None, {name: _pixels(part)})[0] for part in data.inputs.split(batch_size)]
    else:
        parts = [session.run(None, feed)[0] for feed, _ in _feeds(session, BatchLoader(data, batch_size))]
    return torch.from_numpy(np.concatenate([part.argmax(1) for part in parts]))


def onnx_latencies(paths: Sequence[Path], data: BiasedDataset, batch_size: int, runs: int = 30) -> list[Latency]:
    """Time ONNX files by turns on a batch, in onnxruntime on as many CPU threads as torch has."""
    threads = torch.get_num_threads()
    example = data.subset(torch.arange(batch_size) % len(data))
    calls = []
    for path in paths:
        session = open_session(path, threads)
        if session.get_inputs()[0].type == "tensor(uint8)":
            feed = {session.get_inputs()[0].name: _pixels(example.inputs)}  # type: ignore[arg-type]
        else:
            feed = next(_feeds(session, BatchLoader(example, batch_size)))[0]
        calls.append(lambda session=session, feed=feed: session.run(None, feed))
    return [
        summarise(times, batch_size, "cpu, onnxruntime", threads) for times in time_by_turns(calls, runs, warm_up_s=0.1)
    ]


def _feeds(session: Any, loader: BatchLoader) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Batches by the names of a session's inputs, with their labels."""
    names = [value.name for value in session.get_inputs()]
    for batch in loader:
        tensors = [batch.input] if isinstance(batch.input, Tensor) else [batch.input[name] for name in names]
        yield {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}, batch.target


def _pixels(images: Tensor) -> Any:
    """Images (N, C, H, W) of uint8 as (N, H, W, C)."""
    return images.permute(0, 2, 3, 1).contiguous().numpy()


def _write(proto: onnx.ModelProto, source: Path, path: Path, precision: str) -> None:
    """Save a model with the metadata of its source."""
    metadata = {entry.key: entry.value for entry in onnx.load(source, load_external_data=False).metadata_props}
    clean(proto)
    for key, value in {**metadata, "precision": precision}.items():
        proto.metadata_props.add(key=key, value=value)
    with atomic_path(path) as temporary:
        onnx.save(proto, temporary)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the converters' warnings and their advice on the root logger."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
