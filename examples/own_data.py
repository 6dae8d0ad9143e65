"""Your own network and your own images: search masks, remove channels, verify, export ONNX.

    python examples/own_data.py                                            makes a tiny example in a temporary folder
    python examples/own_data.py --data FOLDER --weights FILE --network mynet:Net --output slim

FOLDER holds images and a metadata.csv with the columns file, label, bias and split (train, val, test). FILE is a state
dict of the network that the factory mynet:Net returns; mynet.py lies in the current folder. Without arguments, the
program draws squares and crosses whose colour predicts their class, and trains a small network on them first.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import Tensor, nn

import bise_prune as bp
from bise_prune.data import BatchLoader, BiasedDataset, load_data
from bise_prune.metrics.accuracy import Evaluation
from bise_prune.metrics.subgroups import aligned_values

PREPROCESSING = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


class Net(nn.Module):
    """A small convolutional network that ends in a linear layer, as the search needs it."""

    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(32, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images of shape (N, 3, H, W)."""
        return self.head(self.features(images).mean((2, 3)))


def main() -> int:
    """Run the example; the exit code is returned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of images with metadata.csv")
    parser.add_argument("--weights", type=Path, help="state dict of the trained network")
    parser.add_argument("--network", default="", metavar="MODULE:NAME", help="class or function that makes the network")
    parser.add_argument("--output", type=Path, help="folder for the results")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        data = arguments.data or draw_images(Path(temporary) / "data")
        output = arguments.output or Path(temporary) / "slim"
        output.mkdir(parents=True, exist_ok=True)

        # 1. Data with three named fields: input, target (the class) and bias (the bias label).
        splits = load_data(str(data), PREPROCESSING)
        train, val, test = splits.train, splits.val, splits.test
        assert val is not None and test is not None
        print(f"{len(train)} training samples, classes {splits.classes}")

        # 2. The vanilla network: yours, or a small one that is trained now.
        if arguments.network:
            sys.path.insert(0, str(Path.cwd()))
            module, _, name = arguments.network.partition(":")
            model = getattr(importlib.import_module(module), name)()
        else:
            model = Net()
        if arguments.weights:
            model.load_state_dict(torch.load(arguments.weights, weights_only=True))
        else:
            train_vanilla(model, train)
        model.eval()

        # 3. How biased is it? Accuracy by subgroup of class and bias label.
        test_loader = BatchLoader(test, 200)
        aligned = aligned_values(train.target, train.bias, num_classes=int(train.target.max()) + 1)
        show("dense", bp.evaluate(model, test_loader, aligned))

        # 4. Search masks on the frozen network. The schedule is short here; the default is the paper's.
        config = bp.SearchConfig(anneal_every=2, head_epochs=10, initial_logit=0.1)
        found = bp.search(model, BatchLoader(train, 50, shuffle=True), config, BatchLoader(val, 200))

        # 5. Remove the closed channels. The slim network computes the same function as the masked one: it is checked.
        example = train.example()
        result = bp.prune(model, found.masks, example)
        assert result.verification.passed
        show("slim", bp.evaluate(result.model, test_loader, aligned))
        dense, slim = bp.measure(model, example), bp.measure(result.model, example)
        print(f"sparsity {result.plan.sparsity:.1%}, FLOPs left {slim.flops / dense.flops:.1%}")
        print(f"largest logit difference to the masked network: {result.verification.max_abs_error:.0e} (float64)")

        # 6. Save it for finetuning, and export it for a server.
        bp.save_slim(output / "slim.safetensors", result.model, plan=result.plan)
        bp.export_onnx(bp.fuse_batchnorm(result.model, example), output / "slim.onnx", example)

        # 7. Run the ONNX file without this package.
        session = onnxruntime.InferenceSession(output / "slim.onnx", providers=["CPUExecutionProvider"])
        images = next(iter(test_loader)).input
        (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            difference = np.abs(logits - result.model(images).numpy()).max()
        print(f"slim.onnx: {len(logits)} images classified, largest logit difference {difference:.0e} (float32)")
        assert difference < 1e-4
        print(f"written: {', '.join(sorted(path.name for path in output.iterdir()))}")
    return 0


def show(name: str, figures: Evaluation) -> None:
    """One line of accuracies."""
    print(f"{name}: unbiased accuracy {figures.unbiased_accuracy:.1%}, worst group {figures.worst_group_accuracy:.1%}")


def train_vanilla(model: nn.Module, data: BiasedDataset, epochs: int = 3) -> None:
    """Ordinary training with cross-entropy, which learns the bias."""
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    model.train()
    for _ in range(epochs):
        for batch in BatchLoader(data, 50, shuffle=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch.input), batch.target).backward()
            optimizer.step()


def draw_images(folder: Path, size: int = 12) -> Path:
    """Squares and crosses; in training, 95 % of the squares are red and 95 % of the crosses are blue."""
    random = np.random.default_rng(0)
    square = np.zeros((size, size))
    square[3:-3, 3:-3] = 1
    cross = np.clip(np.eye(size) + np.eye(size)[::-1], 0, 1)
    rows = [("file", "label", "bias", "split")]
    for split, count, share_aligned in (("train", 1000, 0.95), ("val", 200, 0.5), ("test", 200, 0.5)):
        (folder / split).mkdir(parents=True)
        for i in range(count):
            label = i % 2
            bias = label if random.random() < share_aligned else 1 - label
            image = random.normal(90, 40, (size, size, 3))
            image += 18 * (cross if label else square)[..., None]  # what should count
            image[..., 2 * bias] += 40  # what predicts the class in training
            name = f"{split}/{i}.png"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name)
            rows.append((name, ("square", "cross")[label], ("red", "blue")[bias], split))
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


if __name__ == "__main__":
    sys.exit(main())
