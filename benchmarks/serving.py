"""Dense and slim network behind a Triton server: requests a second, latency, and batches that the server forms.

    bise-prune --demo
    python benchmarks/serving.py --run bise-demo --triton-python ENV/bin/python

ENV is an environment with tests/servers/triton-requirements.txt (tests/servers/triton_server.py says what runs there).

Protocol: two pairs of networks, dense (batch norms folded in) and slim: those of a finished demo, and a ResNet-18 at
224 x 224 with random weights of which a random ranking leaves a third of the FLOPs, widths rounded up to 16. Each pair
is versions 1 and 2 of one model, in the repository that `bise-prune --triton` writes, behind one Triton server on the
same machine, on the CPU; each instance of a version computes in one thread, with onnxruntime in Triton's python
backend. 8 client threads of one process, each with a connection of its own, send one sample a request and wait for the
answer, 2,000 requests a turn for the demo, 200 for the ResNet-18.
Turns: dense and slim one after the other, in either order, 5 rounds over HTTP and
5 over gRPC, after a short turn of each to warm up; with the queue delay that the repository has by default (none), and
for the demo with 2 ms as well. Throughput is requests
answered / time from the first sent to the last answered; latency is seen from the client; batch is inferences /
executions in the server's statistics. Every answer is compared with onnxruntime's on the same file: a failed request,
or a logit that is off by more than 1e-4, is an error. Ratios are slim / dense of the same round. "alone" is the time
of onnxruntime without a server, one sample, one thread, by turns.
Writes benchmarks/records/serving.json.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from records import RECORDS, base_record, plus_minus, summary
from rich.console import Console
from tritonclient.utils import InferenceServerException

from bise_prune import export_onnx, fuse_batchnorm, load_model, prune
from bise_prune.baselines.random_scores import random_masks
from bise_prune.export.runtime import open_session
from bise_prune.export.triton import write_repository
from bise_prune.files import write_json
from bise_prune.metrics.cost import time_by_turns
from bise_prune.models import build_model
from bise_prune.report.tables import side_by_side

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from servers import triton_server

VERSIONS = {"dense": "1", "slim": "2"}
DELAYS_US = {"no delay": 0, "delay of 2 ms": 2000}
NETWORKS = {"demo": 1.0, "resnet18": 0.1}  # share of the requests
FIGURES = ("requests_per_second", "p50_ms", "p90_ms", "p99_ms", "batch", "errors")
TOLERANCE = 1e-4


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("bise-demo"), help="output folder of bise-prune --demo")
    parser.add_argument("--triton-python", type=Path, required=True, help="python of the server's environment")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--requests", type=int, default=2000, help="a turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RECORDS / "serving.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    record = base_record([0], (__doc__ or "").split("Protocol: ")[1].split("Writes")[0].strip(), "cpu")
    for name in ("clients", "rounds"):
        record[name] = getattr(arguments, name)
    for network, share in NETWORKS.items():
        record[network] = measured(network, int(share * arguments.requests), record, arguments)
    write_json(arguments.output, record)
    for network in NETWORKS:
        show(network, record[network], arguments.clients)
    return 0


def measured(network: str, requests: int, record: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """One pair of networks, alone and behind the server."""
    found: dict[str, Any] = {"requests": requests}
    with tempfile.TemporaryDirectory() as folder:
        files = (demo if network == "demo" else resnet18)(arguments.run, Path(folder))
        sessions = {name: open_session(file, threads=1) for name, file in files.items()}
        shape = sessions["slim"].get_inputs()[0].shape[1:]
        samples = np.random.default_rng(0).standard_normal((arguments.clients, 1, *shape), np.float32)
        expected = {
            name: [session.run(None, {"input": sample})[0] for sample in samples] for name, session in sessions.items()
        }
        calls = [partial(session.run, None, {"input": samples[0]}) for session in sessions.values()]
        alone = [statistics.median(times) for times in time_by_turns(calls, max(20, requests // 4))]
        found["alone"] = {**dict(zip(VERSIONS, alone, strict=True)), "ratio": alone[1] / alone[0]}
        for title, delay in DELAYS_US.items():
            if delay and network != "demo":
                continue
            work = Path(folder) / str(delay)  # no spaces: Triton's python backend starts through a shell
            write_repository(work / "models", "net", list(files.values()), max_queue_delay_us=delay)
            with triton_server.running(work / "models", work, python=arguments.triton_python) as server:
                record["server"] = version_of(server)
                found[title] = {
                    protocol: by_turns(server, protocol, samples, expected, requests, arguments.rounds)
                    for protocol in ("http", "grpc")
                }
    return found


def resnet18(run: Path, folder: Path) -> dict[str, Path]:
    """A ResNet-18 of random weights, and a third of it."""
    torch.manual_seed(0)
    model, example = build_model("resnet18", 10).eval(), torch.randn(2, 3, 224, 224)
    pruned = prune(model, random_masks(model, example, 0, "paper"), example, target_flops=1 / 3, round_to=16)
    files = {name: folder / f"{name}.onnx" for name in VERSIONS}
    for name, network in (("dense", model), ("slim", pruned.model)):
        export_onnx(fuse_batchnorm(network, example), files[name], example)
    return files


def demo(run: Path, folder: Path) -> dict[str, Path]:
    """The demo's ONNX files, dense and slim."""
    slim = run / "slim" / "slim.onnx"
    example = torch.randn(2, *open_session(slim).get_inputs()[0].shape[1:], generator=torch.Generator().manual_seed(0))
    dense = folder / "dense.onnx"
    export_onnx(fuse_batchnorm(load_model(run / "dense.pt")[0], example), dense, example)
    return {"dense": dense, "slim": slim}


def by_turns(
    server: triton_server.Server,
    protocol: str,
    samples: np.ndarray,
    expected: dict[str, list[np.ndarray]],
    requests: int,
    rounds: int,
) -> dict[str, Any]:
    """Figures of dense and slim over the rounds, and the ratio of their throughputs."""
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in VERSIONS}
    share = requests // len(samples)
    for name in VERSIONS:
        turn(server, protocol, name, samples, expected[name], max(1, share // 20))
    for number in range(rounds):
        for name in sorted(VERSIONS, reverse=number % 2 == 1):
            turns[name].append(turn(server, protocol, name, samples, expected[name], share))
    throughput = {name: [found["requests_per_second"] for found in turns[name]] for name in VERSIONS}
    return {
        **{name: {key: summary([found[key] for found in turns[name]]) for key in FIGURES} for name in VERSIONS},
        "ratio": summary([s / d for d, s in zip(throughput["dense"], throughput["slim"], strict=True)]),
    }


def turn(
    server: triton_server.Server, protocol: str, name: str, samples: np.ndarray, expected: list[np.ndarray], share: int
) -> dict[str, float]:
    """All clients at once, each sending its sample ``share`` times."""
    api = importlib.import_module(f"tritonclient.{protocol}")
    start = threading.Barrier(len(samples))

    def client(number: int) -> tuple[list[tuple[float, float]], list[np.ndarray], int]:
        connection = api.InferenceServerClient(getattr(server, protocol))
        value = api.InferInput("input", samples[number].shape, "FP32")
        value.set_data_from_numpy(samples[number])
        times, answers, failed = [], [], 0
        start.wait()
        for _ in range(share):
            sent = time.perf_counter()
            try:
                answers.append(connection.infer("net", [value], model_version=VERSIONS[name]).as_numpy("logits"))
            except InferenceServerException:
                failed += 1
            else:
                times.append((sent, time.perf_counter()))
        connection.close()
        return times, answers, failed

    before = counts(server, name)
    with ThreadPoolExecutor(len(samples)) as pool:
        results = list(pool.map(client, range(len(samples))))
    after = counts(server, name)
    times = [pair for found, _, _ in results for pair in found]
    wrong = sum(
        float(np.abs(answer - logits).max()) > TOLERANCE
        for (_, answers, _), logits in zip(results, expected, strict=True)
        for answer in answers
    )
    cuts = statistics.quantiles([(done - sent) * 1e3 for sent, done in times], n=100)
    return {
        "requests_per_second": len(times) / (max(done for _, done in times) - min(sent for sent, _ in times)),
        "p50_ms": cuts[49],
        "p90_ms": cuts[89],
        "p99_ms": cuts[98],
        "batch": (after[0] - before[0]) / (after[1] - before[1]),
        "errors": wrong + sum(failed for _, _, failed in results),
    }


def version_of(server: triton_server.Server) -> str:
    connection = importlib.import_module("tritonclient.http").InferenceServerClient(server.http)
    about = connection.get_server_metadata()
    connection.close()
    return f"{about['name']} {about['version']}"


def counts(server: triton_server.Server, name: str) -> tuple[int, int]:
    """Inferences and executions of a version so far."""
    connection = importlib.import_module("tritonclient.http").InferenceServerClient(server.http)
    (found,) = connection.get_inference_statistics("net", VERSIONS[name])["model_stats"]
    connection.close()
    return found["inference_count"], found["execution_count"]


def show(network: str, record: dict[str, Any], clients: int) -> None:
    rows = []
    for title in [title for title in DELAYS_US if title in record]:
        for protocol in ("http", "grpc"):
            found = record[title][protocol]
            for name in VERSIONS:
                cells = [plus_minus(found[name][key], digits=0 if key == FIGURES[0] else 2) for key in FIGURES]
                ratio = plus_minus(found["ratio"], digits=2) if name == "slim" else ""
                rows.append((f"{protocol}, {title}, {name}", [*cells, ratio]))
    title = f"{network}: {clients} clients, one sample a request"
    Console(width=150).print(side_by_side([*FIGURES, "slim / dense"], rows, title))
    alone = record["alone"]
    print(f"alone: dense {alone['dense']:.4f} ms, slim {alone['slim']:.4f} ms, ratio {alone['ratio']:.3f}")


if __name__ == "__main__":
    sys.exit(main())
