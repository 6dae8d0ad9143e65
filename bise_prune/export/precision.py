"""ONNX files in lower precision: float16 and int8."""

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
    """Convert an ONNX file from float32 to float16; its inputs and outputs stay float32.

    Args:
        source: ONNX file in float32.
        path: file to write.

    Raises:
        ModelError: onnxruntime's converter fails.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    try:
        with _quiet():
            proto = convert_float_to_float16(onnx.load(source), keep_io_types=True)
            OnnxModel(proto).topological_sort()  # the converter appends its casts at the end
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ModelError(f"onnxruntime cannot turn {source.name} into float16: {error}") from error
    _write(proto, source, path, "float16")


def write_int8(source: Path, path: Path, data: BiasedDataset, seed: int = 0) -> dict[str, int]:
    """Convert an ONNX file from float32 to int8 weights and activations (static quantisation, QDQ format).

    Weights are quantised per channel and everything symmetrically, as GPUs require it. Weights use 7 of the 8 bits,
    since processors without the newer integer instructions would overflow otherwise. The ranges of the activations are
    measured on a sample of the data with about equally many samples of every subgroup, so that small subgroups count.

    Args:
        source: ONNX file in float32.
        path: file to write.
        data: data to calibrate on.
        seed: random seed for the choice of the calibration samples.

    Returns:
        Number of calibration samples in all ("n"), and the fewest and most of a subgroup.

    Raises:
        ModelError: onnxruntime's quantiser fails.
    """
    from onnxruntime.quantization import QuantType, quantize_static

    rows, counts = balanced_rows(data, CALIBRATION_SAMPLES, seed)
    feeds = iter([feed for feed, _ in feeds_of(open_session(source), BatchLoader(data.subset(rows), 32))])

    class Reader:
        """The calibration batches, in the form that onnxruntime reads."""

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
    """Choose up to ``count`` samples at random, with about equally many of every subgroup.

    The subgroups take turns until they have no sample left.

    Args:
        data: data set with class and bias labels.
        count: most samples to choose.
        seed: random seed for the choice.

    Returns:
        Numbers of the samples, and how many each subgroup got.
    """
    generator = torch.Generator().manual_seed(seed)
    cells = torch.cat([data.target[:, None], data.bias], 1).cpu().unique(dim=0, return_inverse=True)[1]
    order = torch.randperm(len(cells), generator=generator)
    turns = torch.zeros_like(order)  # turn at which each sample would be chosen
    for cell in range(int(cells.max()) + 1):
        members = (cells[order] == cell).nonzero().flatten()
        turns[members] = torch.arange(len(members))
    rows = order[turns.argsort(stable=True)[:count]]
    return rows, cells[rows].bincount(minlength=int(cells.max()) + 1).tolist()


def half_overflow(model: nn.Module, data: BiasedDataset, seed: int = 0) -> str | None:
    """Describe in words how many outputs leave the range of float16 in half precision; None if none do.

    It runs the network on a sample that is balanced over the subgroups. onnxruntime computes float16 in float32 on
    CPUs, so that its outputs there would not show an overflow.
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
    """Save an ONNX model with the metadata of the file that it was made from."""
    metadata = {entry.key: entry.value for entry in onnx.load(source, load_external_data=False).metadata_props}
    clean(proto)
    for key, value in {**metadata, "precision": precision}.items():
        proto.metadata_props.add(key=key, value=value)
    with atomic_path(path) as temporary:
        onnx.save(proto, temporary)


@contextmanager
def _quiet() -> Iterator[None]:
    """A context without the converters' warnings and their messages on the root logger."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
