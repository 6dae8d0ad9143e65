r"""A real ResNet-18, end to end: trained a little on tinted CIFAR-10, then debiased by the command line.

    python benchmarks/tinted_cifar10.py --data-root FOLDER_WITH_CIFAR10 --work FOLDER --seeds 0 1 2

Per seed, FOLDER/seed-S gets data/ (PNG images and metadata.csv), resnet18.pt (a plain torchvision state dict) and the
results of

    bise-prune resnet18.pt --data data --target-sparsity auto --anneal-every 2 --head-epochs 10 \
        --initial-logit 0.1 --output slim

Protocol: vehicles against animals on CIFAR-10, each image blended 7:3 with red or blue. 8,000 training images, 95 % of
them in their class's colour (vehicles red, animals blue); 2,000 validation and 2,000 test images, half of each class in
either colour. Vanilla: torchvision ResNet-18 from scratch at 32x32, Adam 1e-3, weight decay 1e-4, cosine, flips, 6
epochs, batch 100. Masks: tied placement, the epoch with the highest unbiased validation accuracy; a temperature cut
every 2 epochs instead of 10; m starts at .1, since from 0 the first step closes so many channels that the search
ends in a constant prediction. Writes benchmarks/records/tinted_cifar10.json.
Expects the archive as zips of WebP sheets of 1,000 images, 10 tiles a row, 100 of each class in class order.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from records import RECORDS, base_record, peak_memory_bytes, plus_minus, summary
from rich.console import Console
from torch import Tensor

from bise_prune.app import cli
from bise_prune.data import BatchLoader, load_data
from bise_prune.data.biased_mnist import assign_bias
from bise_prune.files import write_json
from bise_prune.models import build_model
from bise_prune.report.tables import side_by_side
from bise_prune.tuning.vanilla import train_vanilla

# airplane automobile bird cat deer dog frog horse ship truck: vehicles 0, animals 1
IS_ANIMAL = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1, 0, 0])
COLOURS = ((255, 0, 0), (0, 0, 255))
TINT = 0.3
RHO = 0.95
EPOCHS = 6
OPTIONS = ["--target-sparsity", "auto", "--anneal-every", "2", "--head-epochs", "10", "--initial-logit", "0.1"]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data-root", type=Path, required=True, help="folder with cifar10_train_*.zip, cifar10_test.zip"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for images, checkpoints and results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=RECORDS / "tinted_cifar10.json")
    arguments = parser.parse_args(argv)
    runs = []
    for seed in arguments.seeds:
        folder = arguments.work / f"seed-{seed}"
        if not (folder / "resnet18.pt").exists():
            start = time.perf_counter()
            write_folder(arguments.data_root, folder / "data", seed)
            train(folder, seed)
            print(f"seed {seed}: prepared in {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        paths = [str(folder / "resnet18.pt"), "--data", str(folder / "data"), "--output", str(folder / "slim")]
        if not (folder / "slim" / "report.json").exists():
            code = cli.main([*paths, *OPTIONS, "--seed", str(seed)])
            if code:
                return code
        runs.append(json.loads((folder / "slim" / "report.json").read_text()))
    write_json(arguments.output, record_of(runs, arguments))
    return 0


def record_of(runs: list[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    record = base_record(arguments.seeds, (__doc__ or "").split("Protocol: ")[1].split(" Writes")[0], "cpu")
    record["n_test"] = runs[0]["dense"]["n"]
    keys = ("accuracy", "unbiased_accuracy", "worst_group_accuracy", "params", "flops", "size_bytes", "latency_ms")
    for model in ("dense", "slim"):
        record[model] = {key: summary([run[model][key] for run in runs]) for key in keys}
    record["gain"] = summary([run["slim"]["unbiased_accuracy"] - run["dense"]["unbiased_accuracy"] for run in runs])
    record["latency_ratio"] = summary([run["slim"]["latency_ms"] / run["dense"]["latency_ms"] for run in runs])
    record["sparsity"] = summary([run["sparsity"] for run in runs])
    for rule in ("best", "last"):
        figures = [run["selection"][rule]["unbiased_accuracy"] for run in runs]
        record[f"masked_{rule}"] = {"unbiased_accuracy": summary(figures)}
    checks = [run["verification"] for run in runs]
    record["max_abs_error"] = max(check["slim_against_masked"]["max_abs_error"] for check in checks)
    record["onnx_max_abs_error"] = max(check["onnx_against_slim"]["max_abs_error"] for check in checks)
    record["seconds_search"] = summary([run["timings"]["search"] for run in runs])
    record["peak_memory_bytes"] = peak_memory_bytes()
    rows = [
        (name, [plus_minus(record[model][key], scale) for model in ("dense", "slim")])
        for name, key, scale in (
            ("unbiased accuracy, %", "unbiased_accuracy", 100),
            ("worst subgroup, %", "worst_group_accuracy", 100),
            ("parameters, millions", "params", 1e-6),
            ("MFLOPs", "flops", 1e-6),
            ("latency, batch 16, ms", "latency_ms", 1),
        )
    ]
    Console().print(side_by_side(("dense", "slim"), rows, f"tinted CIFAR-10, {len(runs)} seeds"))
    return record


def write_folder(archive: Path, folder: Path, seed: int) -> None:
    """Tinted PNG images and their metadata.csv."""
    generator = torch.Generator().manual_seed(seed)
    train_images, train_labels = read_sheets(archive / "cifar10_train_1of2.zip", 10)
    test_images, test_labels = read_sheets(archive / "cifar10_test.zip", 2)
    chosen = (torch.arange(len(train_labels)) % 100) < 80  # 80 of the 100 of each class on each sheet
    parts = {
        split: (images, IS_ANIMAL[classes], assign_bias(IS_ANIMAL[classes], rho, generator, num_bias_classes=2))
        for split, images, classes, rho in (
            ("train", train_images[chosen], train_labels[chosen], RHO),
            ("val", train_images[~chosen], train_labels[~chosen], 0.5),
            ("test", test_images, test_labels, 0.5),
        )
    }
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for split, (images, labels, bias) in parts.items():
        for i, image in enumerate(tint(images, bias)):
            name = f"images/{split}-{i:05d}.png"
            Image.fromarray(image.numpy()).save(folder / name)
            rows.append((name, split, int(labels[i]), int(bias[i])))
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "split", "label", "bias"))
        writer.writerows(rows)


def tint(images: Tensor, bias: Tensor) -> Tensor:
    """Images blended with their colour: (N, 32, 32, 3) uint8."""
    colours = torch.tensor(COLOURS).float()[bias][:, None, None, :]
    return ((1 - TINT) * images.float() + TINT * colours).round().to(torch.uint8)


def read_sheets(path: Path, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` sheets of an archive: images (N, 32, 32, 3) uint8 and labels (N,)."""
    images, labels = [], []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(".webp"))[:count]:
            sheet = np.asarray(Image.open(io.BytesIO(archive.read(name))).convert("RGB"))
            rows, columns = sheet.shape[0] // 32, sheet.shape[1] // 32
            tiles = sheet.reshape(rows, 32, columns, 32, 3).transpose(0, 2, 1, 3, 4).reshape(-1, 32, 32, 3)
            images.append(torch.from_numpy(tiles.copy()))
            labels.append(torch.arange(10).repeat_interleave(len(tiles) // 10))
    return torch.cat(images), torch.cat(labels)


def train(folder: Path, seed: int) -> None:
    """A vanilla ResNet-18, saved as users save theirs: ``torch.save(model.state_dict())``."""
    splits = load_data(str(folder / "data"))
    torch.manual_seed(seed)
    model = build_model("resnet18", 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-4)
    train_vanilla(
        model,
        BatchLoader(splits.train, 100, shuffle=True, seed=seed),
        optimizer,
        epochs=EPOCHS,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS),
        augment=lambda images: torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images),
        on_epoch=lambda epoch, loss: print(f"epoch {epoch}: loss {loss:.3f}", file=sys.stderr, flush=True),
    )
    torch.save(model.state_dict(), folder / "resnet18.pt")


if __name__ == "__main__":
    sys.exit(main())
