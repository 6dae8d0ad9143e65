"""ONNX files in half precision and int8."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from ..data import BatchLoader, BiasedDataset
from ..data.batch import input_map
from ..errors import ModelError
from ..files import atomic_path
from ..tracing import logits_of, run
from .onnx_file import clean
from .runtime import feeds_of, open_session

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
    feeds = iter([feed for feed, _ in feeds_of(open_session(source), BatchLoader(data.subset(rows), 32))])

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
