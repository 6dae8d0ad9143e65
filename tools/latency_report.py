"""Measure the latency of models with torch, onnxruntime and TensorRT on CPU and CUDA, timed by turns.

    python tools/latency_report.py dense.pt slim/slim.safetensors --batch-sizes 1 16
    python tools/latency_report.py slim/slim.onnx slim/slim.int8.onnx --threads 4

Batch norms are fused first. Each run of one model is followed by a run of the next, so that a disturbance affects all
models. The ratio to the first model is computed from neighbouring runs: its median with a 95 % bootstrap interval. If
the interval contains 1, the table says that there is no measurable difference. ONNX files run in onnxruntime or
TensorRT as they are. A runtime or device that was asked for and is missing is an error; there is no fall-back to the
CPU.
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
import numpy as np
import onnx
import torch
from rich.console import Console

from bise_prune.errors import ConfigError
from bise_prune.export.onnx_file import export_onnx
from bise_prune.export.runtime import open_session
from bise_prune.metrics.cost import summarise, time_by_turns
from bise_prune.pruning import fuse_batchnorm
from bise_prune.report.tables import side_by_side

PROVIDERS = {
    ("onnxruntime", "cpu"): "CPUExecutionProvider",
    ("onnxruntime", "cuda"): "CUDAExecutionProvider",
    ("tensorrt", "cuda"): "TensorrtExecutionProvider",
}
RUNTIMES = ("torch", "compiled", "onnxruntime", "tensorrt")
KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8,
         "tensor(int64)": np.int64, "tensor(int32)": np.int32}  # fmt: skip

Calls = list[Callable[[], object]]


def main(argv: Sequence[str] | None = None) -> int:
    parser = models.parser(__doc__)
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, help="default: torch and onnxruntime; of ONNX files "
                        "the latter")  # fmt: skip
    parser.add_argument("--devices", nargs="+", choices=("cpu", "cuda"), default=["cpu"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1])
    parser.add_argument("--length", type=int, default=128, help="of sequences in ONNX files of texts (default: 128)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of either runtime (default: 1)")
    parser.add_argument("--runs", type=int, default=50, help="timed runs of each model (default: 50)")
    arguments = parser.parse_args(argv)
    if arguments.runs < 2 or min(arguments.threads, arguments.length, *arguments.batch_sizes) < 1:
        parser.error("--runs must be at least 2, --threads, --length and --batch-sizes at least 1")
    return models.guarded(lambda: report(arguments))


def report(arguments: Any) -> int:
    """Time the models, and print the table or one JSON object."""
    given = [path.suffix == ".onnx" for path in arguments.checkpoints]
    if any(given) and not all(given):
        raise ConfigError("ONNX files and checkpoints run in different ways: give one or the other")
    runtimes = arguments.runtimes or (["onnxruntime"] if any(given) else ["torch", "onnxruntime"])
    if any(given) and {"torch", "compiled"} & set(runtimes):
        raise ConfigError("ONNX files run in onnxruntime and tensorrt alone; for torch give the checkpoints")
    _check_devices(runtimes, arguments.devices)
    torch.set_num_threads(arguments.threads)
    records = []
    with tempfile.TemporaryDirectory() as folder:
        if any(given):
            names, paths, networks, examples = models.short_names(arguments.checkpoints), arguments.checkpoints, [], []
        else:
            loaded = models.load(arguments)
            names, examples = [item.name for item in loaded], [item.example for item in loaded]
            networks = [fuse_batchnorm(item.model, item.example) for item in loaded]
            paths = [Path(folder) / f"{i}.onnx" for i in range(len(loaded))]
            if {"onnxruntime", "tensorrt"} & set(runtimes):
                for network, path, example in zip(networks, paths, examples, strict=True):
                    export_onnx(network, path, example)
        for runtime in runtimes:
            for device in arguments.devices:
                for size in arguments.batch_sizes:
                    if runtime in ("torch", "compiled"):
                        calls = _torch_calls(networks, examples, size, device, runtime == "compiled")
                    else:
                        provider = PROVIDERS[runtime, device]
                        calls = [_onnx_call(path, provider, size, arguments) for path in paths]
                    wait = torch.cuda.synchronize if device == "cuda" and runtime in ("torch", "compiled") else None
                    with torch.inference_mode():
                        times = time_by_turns(calls, arguments.runs, wait, warm_up_s=0.5)
                    records.append(_record(runtime, device, size, arguments.threads, times))
    if arguments.json:
        print(json.dumps({"models": names, "measurements": records}))
        return 0
    rows = []
    for record in records:
        label = f"{record['runtime']} {record['device']}, batch {record['batch_size']}"
        cells = []
        for i, m in enumerate(record["models"]):
            cell = f"{m['median_ms']:.3f} (p10 {m['p10_ms']:.3f}, p90 {m['p90_ms']:.3f}, p99 {m['p99_ms']:.3f})"
            if i:
                same = ", no measurable difference" if m["ratio_low"] <= 1 <= m["ratio_high"] else ""
                cell += f"\nx{m['ratio']:.2f} [{m['ratio_low']:.2f}, {m['ratio_high']:.2f}]{same}"
            cells.append(cell)
        rows.append((label, cells))
    title = f"milliseconds, and the ratio to the first; {arguments.runs} runs by turns, {arguments.threads} threads"
    Console().print(side_by_side(names, rows, title))
    return 0


def _check_devices(runtimes: Sequence[str], devices: Sequence[str]) -> None:
    """Check that the runtimes and devices that were asked for are there."""
    if "cuda" in devices and {"torch", "compiled"} & set(runtimes) and not torch.cuda.is_available():
        raise ConfigError("--devices cuda: torch sees no CUDA device")
    if "tensorrt" in runtimes and "cpu" in devices:
        raise ConfigError("tensorrt runs on CUDA alone: give --devices cuda with it")
    for runtime in {"onnxruntime", "tensorrt"} & set(runtimes):
        for device in devices:
            open_session(_smallest_model(), provider=PROVIDERS[runtime, device])


def _smallest_model() -> bytes:
    """An ONNX graph that returns its input, to test before any work whether a provider starts."""
    value = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "ab"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["a"], ["b"])], "g", value[:1], value[1:])
    opset = [onnx.helper.make_opsetid("", 18)]
    return bytes(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10).SerializeToString())


def _torch_calls(
    networks: Sequence[Any], examples: Sequence[torch.Tensor], size: int, device: str, compiled: bool
) -> Calls:
    """For each network, a function that runs it once in torch."""
    calls: Calls = []
    for network, example in zip(networks, examples, strict=True):
        moved = network.to(device)
        call = torch.compile(moved, dynamic=False) if compiled else moved
        sample = example.expand(size, *example.shape[1:]).contiguous().to(device)
        calls.append(lambda call=call, sample=sample: call(sample))
    return calls


def _onnx_call(path: Path, provider: str, size: int, arguments: Any) -> Callable[[], object]:
    """A function that runs an ONNX file once on random inputs."""
    session = open_session(path, arguments.threads, provider)
    generator = np.random.default_rng(0)
    feed = {}
    for value in session.get_inputs():
        shape = [d if isinstance(d, int) else arguments.length for d in value.shape]
        shape[0] = size
        kind = KINDS[value.type]
        if np.issubdtype(kind, np.integer):
            feed[value.name] = generator.integers(0, 255 if kind == np.uint8 else 2, shape, dtype=kind)
        else:
            feed[value.name] = generator.standard_normal(shape).astype(kind)
    return lambda: session.run(None, feed)


def _record(
    runtime: str, device: str, batch_size: int, threads: int, times: Sequence[Sequence[float]]
) -> dict[str, Any]:
    """The latencies of one runtime, device and batch size, and their ratios to the first model's."""
    figures = []
    for samples in times:
        latency = summarise(samples, batch_size, device, threads)
        ratios = np.array([mine / first for mine, first in zip(samples, times[0], strict=True)])
        drawn = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
        low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
        figures.append(
            {
                "median_ms": latency.median_ms,
                "p10_ms": latency.p10_ms,
                "p90_ms": latency.p90_ms,
                "p99_ms": float(np.quantile(samples, 0.99)),
                "ratio": statistics.median(ratios),
                "ratio_low": float(low),
                "ratio_high": float(high),
                "ratio_p10": float(np.quantile(ratios, 0.1)),
                "ratio_p90": float(np.quantile(ratios, 0.9)),
            }
        )
    return {"runtime": runtime, "device": device, "batch_size": batch_size, "threads": threads, "models": figures}


if __name__ == "__main__":
    sys.exit(main())
