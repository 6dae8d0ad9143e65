"""Runs ONNX files in onnxruntime: sessions, predictions and latencies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ..data import BatchLoader, BiasedDataset
from ..errors import ConfigError
from ..metrics.cost import Latency, summarise, time_by_turns


def open_session(
    model: str | Path | bytes, threads: int = 0, provider: str = "CPUExecutionProvider"
) -> onnxruntime.InferenceSession:
    """Open an onnxruntime session on the given provider, without a fall-back to another one.

    Args:
        model: an ONNX file, or its content.
        threads: number of CPU threads; 0 for onnxruntime's choice.
        provider: onnxruntime's name for the device to run on.

    Raises:
        ConfigError: the provider is missing or does not start.
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


def onnx_predictions(path: Path, data: BiasedDataset, batch_size: int = 256, *, as_images: bool = False) -> Tensor:
    """Classes that an ONNX file predicts, shape (N,), computed by onnxruntime on the CPU.

    Args:
        path: ONNX file.
        data: samples to classify.
        batch_size: samples in each batch.
        as_images: whether the file takes raw images, as :class:`AsImages` does.
    """
    session = open_session(path)
    if as_images:
        assert isinstance(data.inputs, Tensor)
        (name,) = [value.name for value in session.get_inputs()]
        parts = [session.run(None, {name: pixels_of(part)})[0] for part in data.inputs.split(batch_size)]
    else:
        parts = [session.run(None, feed)[0] for feed, _ in feeds_of(session, BatchLoader(data, batch_size))]
    return torch.from_numpy(np.concatenate([part.argmax(1) for part in parts]))


def onnx_latencies(paths: Sequence[Path], data: BiasedDataset, batch_size: int, runs: int = 30) -> list[Latency]:
    """Latencies of ONNX files on one batch, timed by turns in onnxruntime on as many CPU threads as torch uses.

    Args:
        paths: ONNX files; the latencies come in the same order.
        data: data set that the batch is taken from.
        batch_size: samples in the batch.
        runs: timed runs of each file.
    """
    threads = torch.get_num_threads()
    example = data.subset(torch.arange(batch_size) % len(data))
    calls = []
    for path in paths:
        session = open_session(path, threads)
        if session.get_inputs()[0].type == "tensor(uint8)":
            feed = {session.get_inputs()[0].name: pixels_of(example.inputs)}  # type: ignore[arg-type]
        else:
            feed = next(feeds_of(session, BatchLoader(example, batch_size)))[0]
        calls.append(lambda session=session, feed=feed: session.run(None, feed))
    return [
        summarise(times, batch_size, "cpu, onnxruntime", threads) for times in time_by_turns(calls, runs, warm_up_s=0.1)
    ]


def feeds_of(session: Any, loader: BatchLoader) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Batches of a loader as mappings from the input names of a session to arrays, each with its class labels."""
    names = [value.name for value in session.get_inputs()]
    for batch in loader:
        tensors = [batch.input] if isinstance(batch.input, Tensor) else [batch.input[name] for name in names]
        yield {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}, batch.target


def pixels_of(images: Tensor) -> Any:
    """Images (N, C, H, W) of uint8 as an array (N, H, W, C)."""
    return images.permute(0, 2, 3, 1).contiguous().numpy()
