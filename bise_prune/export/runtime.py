"""Runs ONNX files in onnxruntime: sessions, predictions and latencies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ..data import BatchLoader, BiasedDataset
from ..errors import ConfigError
from ..metrics.cost import Latency, LatencyRatio, latency_ratio, summarise, time_by_turns

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
ON_CPU = "cpu, onnxruntime"  # device of latencies of the CPU provider
_SECONDS = 0.5  # time for the timed runs of one file at one batch size
_FEWEST, _MOST = 10, 200  # timed runs
_SHORT = 0.01  # seconds; shorter runs are timed with warm caches


def open_session(model: str | Path | bytes, threads: int = 0, provider: str = _CPU) -> onnxruntime.InferenceSession:
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
    # Threads that wait for more work after a run would slow down other sessions, which are timed by turns.
    options.add_session_config_entry("session.force_spinning_stop", "1")
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
    sessions = [open_session(path, threads) for path in paths]
    samples = time_by_turns(_calls(sessions, data, batch_size), runs, warm_up_s=0.1)
    return [summarise(times, batch_size, ON_CPU, threads) for times in samples]


@dataclass(frozen=True)
class TimedFile:
    """Durations of the runs of an ONNX file in onnxruntime.

    Attributes:
        times_ms: batch size -> duration of every timed run in milliseconds.
        device: name of the device, such as "cpu, onnxruntime".
        threads: number of CPU threads.
    """

    times_ms: Mapping[int, Sequence[float]]
    device: str
    threads: int

    def latency(self, batch_size: int) -> Latency:
        """The median and spread of the durations at one of the batch sizes."""
        return summarise(self.times_ms[batch_size], batch_size, self.device, self.threads)

    def ratio_to(self, reference: TimedFile, batch_size: int) -> LatencyRatio:
        """The latency divided by that of a file that was timed by turns with this one."""
        return latency_ratio(self.times_ms[batch_size], reference.times_ms[batch_size], batch_size)


def timed_files(
    paths: Sequence[Path], data: BiasedDataset, batch_sizes: Sequence[int], device: torch.device | None = None
) -> list[TimedFile]:
    """Time ONNX files by turns in onnxruntime, on as many CPU threads as torch uses.

    Each file is run for about half a second per batch size, but 10 to 200 times, after a warm-up.

    Args:
        paths: ONNX files; the results come in the same order.
        data: data set that the batches are taken from.
        batch_sizes: samples per batch; one measurement each.
        device: CUDA device, which is used if this onnxruntime has a provider for it; otherwise the CPU.
    """
    threads = torch.get_num_threads()
    provider, name = _provider(paths[0], device)
    sessions = [open_session(path, threads, provider) for path in paths]
    found: list[dict[int, list[float]]] = [{} for _ in paths]
    for batch_size in batch_sizes:
        calls = _calls(sessions, data, batch_size)
        slowest = max(map(_duration, calls))
        runs = min(max(round(_SECONDS / slowest), _FEWEST), _MOST)
        samples = time_by_turns(calls, runs, warm_up_s=0.1, warm=slowest < _SHORT)
        for times, own in zip(samples, found, strict=True):
            own[batch_size] = times
    return [TimedFile(times, name, threads) for times in found]


def _provider(path: Path, device: torch.device | None) -> tuple[str, str]:
    """The provider for a device, or the CPU's if that does not start, and the name of the device that is used."""
    if device is not None and device.type == "cuda":
        try:
            open_session(path, provider=_CUDA)
        except ConfigError:
            return _CPU, ON_CPU
        return _CUDA, f"{torch.cuda.get_device_name(device)}, onnxruntime"
    return _CPU, ON_CPU


def _calls(sessions: Sequence[Any], data: BiasedDataset, batch_size: int) -> list[Callable[[], object]]:
    """For each session, a function that runs it on the same batch."""
    example = data.subset(torch.arange(batch_size) % len(data))
    calls: list[Callable[[], object]] = []
    for session in sessions:
        if session.get_inputs()[0].type == "tensor(uint8)":
            feed = {session.get_inputs()[0].name: pixels_of(example.inputs)}  # type: ignore[arg-type]
        else:
            feed = next(feeds_of(session, BatchLoader(example, batch_size)))[0]
        calls.append(partial(session.run, None, feed))
    return calls


def _duration(call: Callable[[], object]) -> float:
    """Duration of the second of two calls in seconds, > 0."""
    call()
    start = time.perf_counter()
    call()
    return max(time.perf_counter() - start, 1e-6)


def feeds_of(session: Any, loader: BatchLoader) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Batches of a loader as mappings from the input names of a session to arrays, each with its class labels."""
    names = [value.name for value in session.get_inputs()]
    for batch in loader:
        tensors = [batch.input] if isinstance(batch.input, Tensor) else [batch.input[name] for name in names]
        yield {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}, batch.target


def pixels_of(images: Tensor) -> Any:
    """Images (N, C, H, W) of uint8 as an array (N, H, W, C)."""
    return images.permute(0, 2, 3, 1).contiguous().numpy()
