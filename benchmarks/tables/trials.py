"""How the small settings were chosen: by vanilla networks alone, on validation images.

A small setting must leave a vanilla network that has learned some shape, 40 to 90 % unbiased; among those that do, the
cheaper one is taken.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bise_prune import evaluate
from bise_prune.data import BatchLoader
from bise_prune.metrics.subgroups import aligned_values
from bise_prune.models import build_model
from bise_prune.tuning.vanilla import train_vanilla

from .settings import CLEAN_NETWORK, Setting, adam, setting_of


def trials(root: Path, work: Path) -> list[dict[str, Any]]:
    """Unbiased accuracy of vanilla networks on validation images, and what they cost; seed 0."""
    mnist, cifar = setting_of("biased_mnist", "small"), setting_of("corrupted_cifar10", "small")
    place = work / cifar.folder
    place.mkdir(parents=True, exist_ok=True)
    clean = cifar.network(root, place)
    found = [_trained("3x3, strided", mnist, mnist.network(root, work), rho, root) for rho in (0.9, 0.95, 0.98, 0.99)]
    found.append(_trained("7x7, the paper's", mnist, build_model("simple_convnet", 10), 0.95, root, 4))
    for lr, epochs in ((1e-3, 5), (3e-4, 3), (1e-4, 3)):
        found.append(_trained(f"from clean images, Adam {lr:g}", cifar, clean, 0.95, root, epochs, adam(lr)))
    torch.manual_seed(0)
    fresh = build_model("simple_convnet", 10, CLEAN_NETWORK)
    found.append(_trained("from random weights, Adam 0.001", cifar, fresh, 0.95, root, 15, adam(1e-3)))
    return found


def _trained(
    label: str, setting: Setting, model: nn.Module, rho: float, root: Path, epochs: int | None = None,
    optimizer_of: Callable[..., torch.optim.Optimizer] | None = None,
) -> dict[str, Any]:  # fmt: skip
    model = copy.deepcopy(model)
    data = setting.load(root, rho, 0)
    assert data.splits.val is not None
    recipe, epochs = setting.recipe, epochs or setting.recipe.epochs
    optimizer = (optimizer_of or recipe.optimizer)(model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    start = time.process_time()
    train_vanilla(
        model, BatchLoader(data.vanilla, recipe.batch_size, shuffle=True), optimizer, epochs=epochs,
        scheduler=scheduler, augment=recipe.augment,
    )  # fmt: skip
    seconds = time.process_time() - start
    found = evaluate(
        model, BatchLoader(data.splits.val, 500), aligned_values(data.vanilla.target, data.vanilla.bias, 10)
    )
    return {
        "setting": setting.name, "network": label, "rho": rho, "samples": len(data.vanilla), "epochs": epochs,
        "unbiased": found.unbiased_accuracy, "n": found.n, "cpu_seconds": seconds,
    }  # fmt: skip
