"""How the small settings were chosen: vanilla networks alone, on images that no later run uses.

A small setting must leave a vanilla network that has learned some shape, 40 to 90 % unbiased; among those that do, the
cheaper one is taken.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bise_prune import evaluate
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.data.cifar10 import load_cifar10
from bise_prune.data.corrupted_cifar10 import corrupt
from bise_prune.models import build_model
from bise_prune.subgroups import aligned_values
from bise_prune.training import train_vanilla

from .settings import Setting, halved, setting_of

_CONVNET = {"kernel_size": 3, "widths": [32, 64, 128, 128], "strides": [1, 2, 2, 1], "last_activation": "relu"}


def trials(root: Path) -> list[dict[str, Any]]:
    """Unbiased accuracy of vanilla networks on held-out training images, and what they cost; seed 0."""
    mnist, cifar = setting_of("biased_mnist", "small"), setting_of("corrupted_cifar10", "small")
    found = []
    for rho in (0.9, 0.95, 0.98, 0.99, 0.995):
        data = mnist.load(root, rho, 0)
        assert data.splits.val is not None
        found.append(_trained("3x3, strided", mnist, mnist.network, rho, root, data.vanilla, data.splits.val))
    data = mnist.load(root, 0.95, 0)
    assert data.splits.val is not None
    paper = functools.partial(build_model, "simple_convnet", 10)
    found.append(
        _trained("7x7, the paper's", mnist, lambda root: paper(), 0.95, root, data.vanilla, data.splits.val, epochs=4)
    )
    train, held_out = _cifar(root)
    found.append(_trained("ResNet-20 from clean CIFAR-10", cifar, cifar.network, 0.95, root, train, held_out))
    small = functools.partial(build_model, "simple_convnet", 10, _CONVNET)
    found.append(
        _trained("3x3 from random weights, 16x16", cifar, lambda root: small(), 0.95, root, halved(train),
                 halved(held_out), epochs=20)
    )  # fmt: skip
    return found


def _cifar(root: Path) -> tuple[BiasedDataset, BiasedDataset]:
    """The small setting's images, and the next 2,000 of the training set with corruptions by turns."""
    images, labels = load_cifar10(root / "cifar10", "train")
    rows = torch.arange(3_000, 5_000)
    bias = rows % 10
    train = setting_of("corrupted_cifar10", "small").load(root, 0.95, 0).vanilla
    others = BiasedDataset(
        corrupt(images[rows], bias, (0, 2), rows), labels[rows], bias[:, None], train.mean, train.std
    )
    return train, others


def _trained(
    label: str, setting: Setting, network: Callable[[Path], nn.Module], rho: float, root: Path,
    train: BiasedDataset, held_out: BiasedDataset, epochs: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    recipe = dataclasses.replace(setting.recipe, epochs=epochs or setting.recipe.epochs)
    torch.manual_seed(0)
    model = network(root)
    optimizer = recipe.optimizer(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs)
    start = time.process_time()
    train_vanilla(
        model, BatchLoader(train, recipe.batch_size, shuffle=True), optimizer, epochs=recipe.epochs,
        scheduler=scheduler, augment=recipe.augment,
    )  # fmt: skip
    seconds = time.process_time() - start
    aligned = aligned_values(train.target, train.bias, 10)
    found = evaluate(model, BatchLoader(held_out, 500), aligned)
    return {
        "setting": setting.name, "network": label, "rho": rho, "samples": len(train), "epochs": recipe.epochs,
        "unbiased": found.unbiased_accuracy, "n": found.n, "cpu_seconds": seconds,
    }  # fmt: skip
