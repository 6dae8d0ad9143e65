"""The search against Algorithm 1 as it is written: wall time, and the accuracy that comes out.

    python benchmarks/search_speed.py --data-root FOLDER_WITH_MNIST --networks mlp

Protocol: both sides get the same vanilla network, data, seeds and the paper's settings (a temperature cut every 10
epochs, 50 epochs of the head), and pick "last". Ours is timed before and after the literal one, and the mean counts.
Literal: each epoch of the head is a forward pass over the training set, the schedule runs to its end, gates are module
hooks, weights are not stepped and keep requires_grad; "without weight gradients", for the first two seeds, they do not.
Networks: SimpleConvNet as in the demo (scikit-learn digits, rho .95; masks are searched on 4,000 of the 10,000 images
of 16x16), and the MLP of Multi-Color MNIST (vanilla trained for 20 epochs on 60,000 images, masks searched on 10,000 of
them). One thread. The step times are medians for a batch as each network is trained with (100; MLP 256): a mask step
against a vanilla training step, and the peak of the memory allocated during it, one process each.
Writes benchmarks/records/search_speed_NETWORKS.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from records import RECORDS, base_record, peak_memory_bytes, plus_minus, summary
from rich.console import Console
from torch import Tensor, nn

from bise_prune import MaskSet, SearchConfig, apply_masks, evaluate, search
from bise_prune.app.demo import train_demo_checkpoint
from bise_prune.checkpoint.networks import load_model
from bise_prune.data import BatchLoader, BiasedDataset, DataSplits, load_data
from bise_prune.files import write_json
from bise_prune.mask_search.assembly import assemble
from bise_prune.mask_search.step import MaskStep
from bise_prune.mask_search.weights import sample_weights
from bise_prune.metrics.subgroups import aligned_values, is_aligned
from bise_prune.models import build_model
from bise_prune.report.tables import side_by_side
from bise_prune.tuning.vanilla import train_vanilla

SETTINGS: dict[str, Any] = {"placement": "paper"}
SAMPLES = {"simple_convnet": 4000, "mlp": 10_000}
STEPS = (("simple_convnet", 14, 100), ("resnet18", 32, 100), ("mlp", 28, 256))  # size, batch


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True, help="folder with MNIST's idx files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--networks", nargs="+", choices=("simple_convnet", "mlp"), default=["simple_convnet", "mlp"])
    parser.add_argument("--work", type=Path, default=Path("runs"), help="folder for the vanilla networks")
    parser.add_argument("--output", type=Path, help="default: the record of these networks")
    parser.add_argument("--step", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.step:
        name, size, n, kind = arguments.step
        print(json.dumps(one_step(name, int(size), int(n), kind)))
        return 0
    record = base_record(arguments.seeds, (__doc__ or "").split("Protocol: ")[1].split("Writes")[0].strip(), "cpu")
    record["settings"] = SETTINGS
    for network in arguments.networks:
        runs = [
            one_seed(network, seed, arguments.data_root, arguments.work, both=place < 2)
            for place, seed in enumerate(arguments.seeds)
        ]
        record[network] = {key: summary([run[key] for run in runs if key in run]) for key in runs[0]}
    record["steps"] = {f"{name} {size}x{size}": step_ratios(name, size, n) for name, size, n in STEPS}
    record["peak_memory_bytes"] = peak_memory_bytes()
    write_json(arguments.output or RECORDS / f"search_speed_{'_'.join(arguments.networks)}.json", record)
    show(record, arguments.networks)
    print(json.dumps({name: record[name]["times_faster"]["median"] for name in arguments.networks}))
    return 0


def one_seed(network: str, seed: int, root: Path, work: Path, both: bool) -> dict[str, float]:
    model, splits = vanilla(network, seed, root, work)
    assert splits.test is not None
    batch = 100 if network == "simple_convnet" else 256
    weighting = "auto" if network == "simple_convnet" else "alignment"
    config = SearchConfig(**SETTINGS, weighting=weighting, seed=seed)
    aligned = aligned_values(splits.train.target, splits.train.bias, 10)
    test = BatchLoader(splits.test, 500)
    example = splits.train.example()
    figures = {"vanilla": evaluate(model, test, aligned).unbiased_accuracy}
    train = splits.train.subset(torch.arange(SAMPLES[network]))
    ours = []
    for name in ("ours", "literal", "ours", "literal_without_weight_gradients")[: 4 if both else 3]:
        loader = BatchLoader(train, batch, shuffle=True, seed=seed)
        start = time.perf_counter()
        if name == "ours":
            found = search(model, loader, config)
            masks = found.last
            figures["epochs"] = len(found.history)
        else:
            masks = literal(model, loader, config, aligned, weight_gradients=name == "literal")
        figures[f"{name}_seconds"] = time.perf_counter() - start
        if name == "ours":
            ours.append(figures["ours_seconds"])
        figures[name] = evaluate(apply_masks(model, masks, example), test, aligned).unbiased_accuracy
    figures["ours_seconds"] = statistics.mean(ours)
    figures["times_faster"] = figures["literal_seconds"] / figures["ours_seconds"]
    if both:
        seconds = figures["literal_without_weight_gradients_seconds"]
        figures["times_faster_without_weight_gradients"] = seconds / figures["ours_seconds"]
    print(network, seed, {key: round(value, 4) for key, value in figures.items()}, file=sys.stderr, flush=True)
    return figures


def vanilla(network: str, seed: int, root: Path, work: Path) -> tuple[nn.Module, DataSplits]:
    work.mkdir(parents=True, exist_ok=True)
    if network == "simple_convnet":
        path = work / f"digits-{seed}.pt"
        if not path.exists():
            train_demo_checkpoint(path, seed)
        model, about = load_model(path)
        return model, load_data(about.data or "")
    splits = load_data(f"multi_color_mnist:{root},seed={seed}")
    torch.manual_seed(seed)
    model = build_model("mlp", 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    train_vanilla(model, BatchLoader(splits.train, 256, shuffle=True, seed=seed), optimizer, epochs=20)
    return model, splits


# -- Algorithm 1 as it is written -------------------------------------------------------------------


class _Step(torch.autograd.Function):
    """1{sigma(m / tau) >= .5}, with the slope of the sigmoid."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, tau: float) -> Tensor:
        ctx.save_for_backward(m)
        ctx.tau = tau
        return (torch.sigmoid(m / tau) >= 0.5).to(m)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (m,) = ctx.saved_tensors
        s = torch.sigmoid(m / ctx.tau)
        return gradients[0] * s * (1 - s) / ctx.tau, None


def literal(
    model: nn.Module, loader: BatchLoader, config: SearchConfig, aligned: Tensor, weight_gradients: bool
) -> MaskSet:
    """Algorithm 1 line by line; the network is a chain that ends in ``head``."""
    model = copy.deepcopy(model).eval().requires_grad_(weight_gradients)
    activations = {n: m for n, m in model.named_modules() if isinstance(m, (nn.ReLU, nn.Tanh))}
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and n != "head"]
    widths = [model.get_submodule(n).weight.shape[0] for n in layers]
    masks = [torch.zeros(width, requires_grad=True) for width in widths]  # line 1
    tau, epoch = 1.0, 0

    def hook(m: Tensor) -> Any:
        return lambda module, args, output: output * _Step.apply(m, tau).view(1, -1, *[1] * (output.ndim - 2))

    for activation, m in zip(activations.values(), masks, strict=True):  # line 2
        activation.register_forward_hook(hook(m))
    bottleneck: list[Tensor] = []
    model.head.register_forward_hook(lambda module, args, output: bottleneck.append(args[0]))
    data = loader.data
    classes = [int(column.max()) + 1 for column in data.bias.unbind(1)]
    torch.manual_seed(config.seed)
    heads = [nn.Linear(model.head.in_features, c) for c in classes]  # line 3
    parameters = [p for head in heads for p in head.parameters()]
    head_optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)
    mask_optimizer = torch.optim.SGD(masks, lr=1e-2, momentum=0.9, weight_decay=1e-4)
    weights = sample_weights(data.target, data.bias, 10, aligned, config.weighting, config.rho).to(
        torch.device("cpu"), torch.float32
    )

    def head_loss(z: Tensor, bias: Tensor) -> Tensor:
        return sum((F.cross_entropy(h(z), bias[:, k]) for k, h in enumerate(heads)), torch.zeros(()))

    def train_heads() -> None:
        for _ in range(config.head_epochs):
            for batch in loader:
                model(batch.input)
                loss = head_loss(bottleneck.pop().detach(), batch.bias)
                head_optimizer.zero_grad()
                loss.backward()
                head_optimizer.step()

    train_heads()  # line 4
    while True:  # line 5
        epoch += 1  # line 6
        for batch in loader:  # line 7
            logits = model(batch.input)
            z = bottleneck.pop()
            r = weights(batch.target, batch.bias)
            loss = (F.cross_entropy(logits, batch.target, reduction="none") * r).mean()  # line 8
            conflicting = ~is_aligned(batch.target, batch.bias, aligned)
            for k, head in enumerate(heads):
                rows = conflicting[:, k].nonzero().flatten()
                if len(rows) > 1:
                    p = torch.softmax(head(z[rows]), 1)
                    joint = (F.one_hot(batch.bias[rows, k], classes[k]).to(p).T @ p).clamp(min=1e-15) / len(rows)
                    outer = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
                    information = (joint * (joint / outer.clamp(min=1e-15)).log()).sum() / math.log(classes[k])
                    loss = loss + config.mi_weight * information
            mask_optimizer.zero_grad()
            model.zero_grad()
            loss.backward()
            head_optimizer.zero_grad()
            head_loss(z.detach(), batch.bias).backward()
            mask_optimizer.step()  # line 9
            head_optimizer.step()  # line 10
        if epoch % config.anneal_every == 0:  # lines 11 to 14
            tau *= config.anneal_factor
            train_heads()
        if tau < config.min_temperature:  # line 15
            return MaskSet({n: m.detach() for n, m in zip(layers, masks, strict=True)})  # line 16


# -- one step ---------------------------------------------------------------------------------------


def step_ratios(name: str, size: int, n: int) -> dict[str, float]:
    """A mask step against a vanilla step of the same network and batch, each in a process of its own."""
    times, memory = {}, {}
    for kind in ("vanilla", "mask"):
        command = [sys.executable, __file__, "--data-root", ".", "--step", name, str(size), str(n), kind]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        times[kind], memory[kind] = json.loads(done.stdout.splitlines()[-1])
    return {
        "vanilla_step_seconds": times["vanilla"],
        "mask_step_seconds": times["mask"],
        "time_ratio": times["mask"] / times["vanilla"],
        "vanilla_kept_bytes": memory["vanilla"],
        "mask_kept_bytes": memory["mask"],
        "memory_ratio": memory["mask"] / memory["vanilla"],
        "batch": n,
    }


def one_step(name: str, size: int, n: int, kind: str) -> tuple[float, int]:
    """Median seconds of a step, and the bytes that it needs at its peak beyond the weights and the batch."""
    torch.manual_seed(0)
    model = build_model(name, 10)
    labels = torch.arange(n)
    data = BiasedDataset(torch.randn(n, 3, size, size), labels % 10, (labels // 3 % 10)[:, None])
    batch = data.batch(labels)
    if kind == "vanilla":
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(model(batch.input), batch.target).backward()
            optimizer.step()
    else:
        run = assemble(model.eval(), BatchLoader(data, n), SearchConfig(head_epochs=1))

        def step() -> None:
            run.passes.take_steps(
                MaskStep(run.state, run.labels, run.config, None), run.data.next_pass(run.state.position), lambda: None
            )

    step()
    times = []
    for _ in range(15):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return statistics.median(times), peak


def show(record: dict[str, Any], networks: Sequence[str]) -> None:
    rows = []
    for label, key, scale in (
        ("vanilla, unbiased accuracy, %", "vanilla", 100),
        ("literal, unbiased accuracy, %", "literal", 100),
        ("ours, unbiased accuracy, %", "ours", 100),
        ("literal, seconds", "literal_seconds", 1),
        ("literal without weight gradients, seconds", "literal_without_weight_gradients_seconds", 1),
        ("ours, seconds", "ours_seconds", 1),
        ("times faster", "times_faster", 1),
        ("times faster than without weight gradients", "times_faster_without_weight_gradients", 1),
    ):
        rows.append((label, [plus_minus(record[name][key], scale) for name in networks]))
    Console().print(
        side_by_side(networks, rows, f"The search against the literal Algorithm 1, {len(record['seeds'])} seeds")
    )
    for name, step in record["steps"].items():
        print(f"{name}: a mask step takes {step['time_ratio']:.2f} of the time of a vanilla step and "
              f"{step['memory_ratio']:.2f} of its memory")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
