"""How much of its time a search waits for data.

    python benchmarks/data_waiting.py

Protocol: JPEG files of 224 x 224 in a folder with metadata.csv, loaded as a run loads them (decoded once, into a
file-backed array), and steps of the paper's search on torchvision's ResNet-18 in batches of 100, on one core, with the
given numbers of threads that make batches ahead. Waiting is the time between asking for a batch and having it; its
share is waiting / (waiting + stepping), over all steps but the first. The images are drawn from a seed, half noise, so
that they compress and decode as photographs do (about 19 kB each).
Writes benchmarks/records/data_waiting.json.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from records import RECORDS, base_record, peak_memory_bytes

from bise_prune import SearchConfig
from bise_prune.data import BatchLoader, BiasedDataset, load_data
from bise_prune.files import write_json
from bise_prune.mask_search.assembly import assemble
from bise_prune.mask_search.step import MaskStep
from bise_prune.mask_search.training_data import TrainingData, TrainingLabels
from bise_prune.models import build_model

_SIDE, _CLASSES = 224, 2


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", type=Path, default=RECORDS / "data_waiting.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    record = base_record([0], (__doc__ or "").split("Protocol: ")[1].split("Writes")[0].strip(), "cpu")
    record["images"], record["steps"] = arguments.images, arguments.steps
    with tempfile.TemporaryDirectory() as folder:
        record["bytes_per_image"] = draw(Path(folder), arguments.images) / arguments.images
        start = time.perf_counter()
        data = load_data(folder).train
        record["loading_seconds"] = time.perf_counter() - start
    torch.manual_seed(0)
    model = build_model("resnet18", _CLASSES).eval()
    record["waiting"] = {str(workers): waiting(model, data, workers, arguments.steps) for workers in arguments.workers}
    record["peak_memory_bytes"] = peak_memory_bytes()
    write_json(arguments.output, record)
    print(json.dumps({key: record[key] for key in ("bytes_per_image", "loading_seconds", "waiting")}, indent=2))
    return 0


def draw(folder: Path, count: int) -> int:
    """Images whose red or blue tint says their class for nine in ten; the bytes that they take."""
    generator = np.random.default_rng(0)
    rows, size = [["file", "label", "bias", "split"]], 0
    for i in range(count):
        label = i % _CLASSES
        bias = label if generator.random() < 0.9 else 1 - label
        coarse = generator.integers(0, 256, (28, 28, 3), np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)).astype(np.int16)
        pixels += generator.integers(-16, 17, pixels.shape, np.int16)
        pixels[..., 2 * bias] += 40
        path = folder / f"{i}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=85)
        size += path.stat().st_size
        rows.append([path.name, str(label), str(bias), "train"])
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return size


def waiting(model: torch.nn.Module, data: BiasedDataset, workers: int, steps: int) -> dict[str, float]:
    """Seconds of waiting and of stepping, and the share of the former."""
    subset = data.subset(torch.arange(100))  # what a search computes before its first step is not asked for here
    config = SearchConfig(head_epochs=1, cache_bytes=0)
    run = assemble(model, BatchLoader(subset, 100), config)
    passes = run.passes
    passes.data = TrainingData(BatchLoader(data, 100, shuffle=True, workers=workers))
    labels = TrainingLabels(
        data.target, data.bias, run.network.num_classes, config, run.labels.aligned, run.network.device,
        run.network.dtype,
    )  # fmt: skip
    step = MaskStep(run.state, labels, config, None)
    batches = passes.inputs(itertools.islice(passes.data.next_pass(run.state.position), steps + 1))
    waited = stepped = 0.0
    for number in range(steps + 1):
        start = time.perf_counter()
        part, inputs = next(batches)
        there = time.perf_counter()
        gates = step.open_gates()
        step(gates, *passes.forward(gates, inputs), part)
        if number:
            waited += there - start
            stepped += time.perf_counter() - there
    return {"waiting_seconds": waited, "stepping_seconds": stepped, "share": waited / (waited + stepped)}


if __name__ == "__main__":
    sys.exit(main())
