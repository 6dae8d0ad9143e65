"""Time and memory of search, removal and export against vanilla training, over model and data size.

    python benchmarks/cost.py [--searches]

Protocol: one thread. Steps: a vanilla training step and a mask step of the same network and batch of 16 random
images, medians of 15, each in a process of its own; memory = the peak of what is allocated during the step, beyond
weights and batch. Also the network of BiasedMNIST at its full size (28x28, batch 100). Searches: the demo's network
with 2,500, 5,000 and 10,000 training images, against its 16 epochs of vanilla training, each in a process of its own:
the default search, on half of the validation images as in the command, and the paper's on the training images, with
10 epochs of the head and a temperature cut every 2 epochs; a ResNet-18 on 10,000 of the same images, against 2 epochs,
the default search alone; memory = the peak resident set of the process. Removal
(plan, removal, check, fusion) and ONNX export at 224x224 of ResNets with random masks that close half of the channels
in the paper's placement.
Writes benchmarks/records/cost.json, with ``--searches`` only that part of it; ``benchmarks/results.py`` writes the
page, with the growth, fitted, and what it comes to at ImageNet's size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from records import RECORDS, base_record, peak_memory_bytes
from removal import random_masks, scramble
from search_speed import step_ratios

from bise_prune import SearchConfig, export_onnx, fuse_batchnorm, gate_sites, measure, prune, search
from bise_prune.app.demo import ARCHITECTURE, EPOCHS, RHO
from bise_prune.app.halves import halved
from bise_prune.data import BatchLoader, load_data
from bise_prune.files import write_json
from bise_prune.mask_search.heads import BiasHeads
from bise_prune.metrics.subgroups import aligned_values
from bise_prune.models import build_model
from bise_prune.tuning.vanilla import train_vanilla

STEPS = (
    ("resnet18", 32, 16), ("resnet18", 64, 16), ("resnet18", 112, 16), ("resnet34", 64, 16), ("resnet50", 32, 16),
    ("resnet50", 64, 16), ("simple_convnet", 28, 100),
)  # fmt: skip
SAMPLES = (2_500, 5_000, 10_000)
SEARCHED = (*(("demo", kind, n) for n in SAMPLES for kind in ("gradual", "paper")), ("resnet18", "gradual", 10_000))
REMOVALS = ("resnet18", "resnet50", "resnet152")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RECORDS / "cost.json")
    parser.add_argument("--searches", action="store_true", help="measure the searches alone")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.one:
        name, *what = arguments.one
        print(json.dumps(searched(name, what[0], int(what[1])) if what else removed(name)))
        return 0
    record = base_record([0], (__doc__ or "").split("Protocol: ")[1].split("Writes")[0].strip(), "cpu")
    searches = [{"commit": record["commit"], **_alone(name, kind, str(n))} for name, kind, n in SEARCHED]
    if arguments.searches:
        write_json(arguments.output, {**json.loads(arguments.output.read_text()), "searches": searches})
        return 0
    record["steps"] = []
    for name, size, batch in STEPS:
        network = build_model(name, 10)
        flops = measure(network, torch.zeros(1, 3, size, size)).flops
        record["steps"].append({"network": name, "size": size, "flops": flops, **step_ratios(name, size, batch)})
        print(record["steps"][-1], file=sys.stderr, flush=True)
    record["searches"] = searches
    record["removals"] = [_alone(name) for name in REMOVALS]
    record["imagenet"] = imagenet()
    write_json(arguments.output, record)
    return 0


def _alone(*what: str) -> Any:
    command = [sys.executable, __file__, "--one", *what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(done.stdout.splitlines()[-1], file=sys.stderr, flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def searched(name: str, kind: str, samples: int) -> dict[str, Any]:
    """Vanilla training of the demo's network, or of another one, on so many images, and a search of it."""
    splits = load_data(f"digits,rho={RHO},samples={samples}")
    assert splits.val is not None
    torch.manual_seed(0)
    model, epochs = build_model("simple_convnet", 10, ARCHITECTURE), EPOCHS
    if name != "demo":
        model, epochs = build_model(name, 10), 2
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-4)
    loader = BatchLoader(splits.train, 100, shuffle=True)
    start = time.process_time()
    train_vanilla(model, loader, optimizer, epochs=epochs)
    trained, memory = time.process_time(), peak_memory_bytes()
    if kind == "paper":
        found = search(model, loader, SearchConfig(anneal_every=2, head_epochs=10), BatchLoader(splits.val, 256))
    else:
        learned, selecting = halved(splits.val)
        aligned = aligned_values(splits.train.target, splits.train.bias, 10)
        on_half = BatchLoader(learned, 100, shuffle=True)
        found = search(model, on_half, SearchConfig(), BatchLoader(selecting, 256), aligned=aligned)
    return {
        "network": name,
        "search": kind,
        "samples": samples,
        "vanilla_epochs": epochs,
        "vanilla_cpu_seconds": trained - start,
        "search_cpu_seconds": time.process_time() - trained,
        "mask_epochs": len(found.history),
        "vanilla_peak_bytes": memory,
        "search_peak_bytes": peak_memory_bytes(),
    }


def removed(name: str) -> dict[str, Any]:
    """Removal and export of a network at 224x224."""
    torch.manual_seed(0)
    model, inputs = build_model(name, 1000), torch.randn(2, 3, 224, 224)
    scramble(model)
    masks = random_masks(model.eval(), inputs, "paper", 0.5)
    start = time.process_time()
    slim = fuse_batchnorm(prune(model, masks, inputs, joins="expand", batch_sizes=(1,)).model, inputs)
    cut = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        export_onnx(slim, Path(folder) / "slim.onnx", inputs, batch_sizes=(1, 2), tolerance=1e-2)
    return {"network": name, "removal_cpu_seconds": cut - start, "export_cpu_seconds": time.process_time() - cut}


def imagenet() -> dict[str, float]:
    """What an extrapolation to ImageNet's size needs: FLOPs and gates of a ResNet-50, and a step of its head."""
    model, inputs = build_model("resnet50", 1000).eval(), torch.zeros(1, 3, 224, 224)
    gates = sum(site.num_channels for site in gate_sites(model, inputs, "paper"))
    generator = torch.Generator().manual_seed(0)
    heads = BiasHeads(2048, [10], generator, torch.float32, torch.device("cpu"))
    features, bias = torch.randn(100_000, 2048), torch.randint(0, 10, (100_000, 1))
    start = time.process_time()
    heads.train(features, bias, epochs=1, batch_size=100, generator=generator)
    return {
        "flops": measure(model, inputs).flops,
        "params": sum(p.numel() for p in model.parameters()),
        "gates": gates,
        "head_cpu_seconds_per_sample": (time.process_time() - start) / len(features),
    }


if __name__ == "__main__":
    sys.exit(main())
