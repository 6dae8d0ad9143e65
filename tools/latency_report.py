"""Latency of models with torch and onnxruntime, on CPU and CUDA, timed by turns.

    python tools/latency_report.py dense.pt slim/slim.safetensors --batch-sizes 1 16

Batch norms are fused first. Every run of one model is followed by one of the next, so that what disturbs one disturbs
all; the ratio is that of neighbouring runs, with its 10th and 90th percentile. A runtime or device that is asked for
and not there is an error, never a silent fall-back to the CPU.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import models
import onnxruntime
import torch
from rich.console import Console

from bise_prune.errors import ConfigError
from bise_prune.export import export_onnx
from bise_prune.measurement import summarise, time_by_turns
from bise_prune.pruning import fuse_batchnorm
from bise_prune.report import side_by_side

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = models.parser(__doc__)
    parser.add_argument("--runtimes", nargs="+", choices=("torch", "onnxruntime"), default=["torch", "onnxruntime"])
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), default=["cpu"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of either runtime (default: 1)")
    parser.add_argument("--runs", type=int, default=50, help="timed runs of each model (default: 50)")
    arguments = parser.parse_args(argv)
    if arguments.runs < 2 or arguments.threads < 1 or min(arguments.batch_sizes) < 1:
        parser.error("--runs must be at least 2, --threads and --batch-sizes at least 1")
    return models.guarded(lambda: report(arguments))


def report(arguments: Any) -> int:
    _check_devices(arguments.runtimes, arguments.devices)
    torch.set_num_threads(arguments.threads)
    loaded = models.load(arguments)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        fused = [fuse_batchnorm(item.model, item.example) for item in loaded]
        paths = [Path(folder) / f"{i}.onnx" for i in range(len(loaded))]
        if "onnxruntime" in arguments.runtimes:
            for model, item, path in zip(fused, loaded, paths, strict=True):
                export_onnx(model, path, item.example)
        for runtime in arguments.runtimes:
            for device in arguments.devices:
                for batch_size in arguments.batch_sizes:
                    inputs = [item.example.expand(batch_size, *item.example.shape[1:]).contiguous() for item in loaded]
                    make = _torch_calls if runtime == "torch" else _onnxruntime_calls
                    calls = make(fused if runtime == "torch" else paths, inputs, device, arguments.threads)
                    synchronise = torch.cuda.synchronize if device == "cuda" and runtime == "torch" else None
                    with torch.inference_mode():
                        times = time_by_turns(calls, arguments.runs, synchronise)
                    records.append(_record(runtime, device, batch_size, arguments.threads, times))
    names = [item.name for item in loaded]
    if arguments.json:
        print(json.dumps({"models": names, "measurements": records}))
        return 0
    rows = []
    for record in records:
        label = f"{record['runtime']} {record['device']}, batch {record['batch_size']}"
        cells = [
            f"{m['median_ms']:.3f} ({m['p10_ms']:.3f}-{m['p90_ms']:.3f})"
            + (f" x{m['ratio']:.2f} ({m['ratio_p10']:.2f}-{m['ratio_p90']:.2f})" if i else "")
            for i, m in enumerate(record["models"])
        ]
        rows.append((label, cells))
    title = f"milliseconds, median (p10-p90), ratio to the first; {arguments.runs} runs, {arguments.threads} threads"
    Console().print(side_by_side(names, rows, title))
    return 0


def _check_devices(runtimes: Sequence[str], devices: Sequence[str]) -> None:
    if "cuda" in devices:
        if "torch" in runtimes and not torch.cuda.is_available():
            raise ConfigError("--devices cuda: torch sees no CUDA device")
        if "onnxruntime" in runtimes and PROVIDERS["cuda"] not in onnxruntime.get_available_providers():
            raise ConfigError("--devices cuda: this onnxruntime has no CUDA provider; install onnxruntime-gpu")


def _torch_calls(
    networks: Sequence[Any], inputs: Sequence[torch.Tensor], device: str, threads: int
) -> list[Callable[[], object]]:
    calls: list[Callable[[], object]] = []
    for network, batch in zip(networks, inputs, strict=True):
        moved, sample = network.to(device), batch.to(device)
        calls.append(lambda moved=moved, sample=sample: moved(sample))
    return calls


def _onnxruntime_calls(
    paths: Sequence[Any], inputs: Sequence[torch.Tensor], device: str, threads: int
) -> list[Callable[[], object]]:
    calls: list[Callable[[], object]] = []
    for path, batch in zip(paths, inputs, strict=True):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=[PROVIDERS[device]])
        if PROVIDERS[device] not in session.get_providers():
            raise ConfigError(f"onnxruntime fell back from {PROVIDERS[device]}; check its CUDA libraries")
        feed = {"input": batch.numpy()}
        calls.append(lambda session=session, feed=feed: session.run(None, feed))
    return calls


def _record(
    runtime: str, device: str, batch_size: int, threads: int, times: Sequence[Sequence[float]]
) -> dict[str, Any]:
    figures = []
    for samples in times:
        latency = summarise(samples, batch_size, device, threads)
        ratios = [mine / first for mine, first in zip(samples, times[0], strict=True)]
        deciles = statistics.quantiles(ratios, n=10)
        figures.append(
            {
                "median_ms": latency.median_ms,
                "p10_ms": latency.p10_ms,
                "p90_ms": latency.p90_ms,
                "ratio": statistics.median(ratios),
                "ratio_p10": deciles[0],
                "ratio_p90": deciles[8],
            }
        )
    return {"runtime": runtime, "device": device, "batch_size": batch_size, "threads": threads, "models": figures}


if __name__ == "__main__":
    sys.exit(main())
