"""The demo: a small network, trained on digits whose background colour predicts the class, is debiased and pruned."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ..config import RunConfig, SearchConfig
from ..data import BatchLoader, load_data
from ..errors import ConfigError
from ..models import build_model
from ..tuning.vanilla import train_vanilla
from .checks import check_device
from .output_folder import check_output, check_resumable
from .pipeline import run
from .progress import EpochFigures, Progress, StageClock

CHECKPOINT = "dense.pt"
RHO = 0.95
EPOCHS = 16
ARCHITECTURE = {"kernel_size": 3, "strides": [2, 2, 2, 1], "last_activation": "relu"}


def run_demo(output: Path, seed: int = 0, device: str = "cpu", progress: Progress | None = None) -> dict[str, Any]:
    """Train the demo's vanilla network into ``output/dense.pt``, and run the pipeline on it into ``output/slim``.

    An interrupted demo is resumed.

    Args:
        output: folder for the results; it must not hold those of another demo.
        seed: random seed for data, training and search.
        device: device of the run; the vanilla network is always trained on the CPU.
        progress: function that gets the progress; see :data:`bise_prune.app.progress.Progress`.

    Returns:
        The report record.

    Raises:
        ConfigError: the folder holds results, or a network that was trained with another seed.
    """
    checkpoint = output / CHECKPOINT
    config = demo_config(checkpoint, output / "slim", seed, device)
    check_device(config.device)
    check_output(config)
    check_resumable(config)
    if not checkpoint.exists():
        train_demo_checkpoint(checkpoint, seed, progress)
    elif load_checkpoint(checkpoint).data != _specification(seed):  # an interrupted demo is resumed
        raise ConfigError(f"{checkpoint} is another network; choose another folder with --output")
    return run(config, progress)


def demo_config(checkpoint: Path, output: Path, seed: int, device: str = "cpu") -> RunConfig:
    """Settings of the demo: the defaults."""
    return RunConfig(checkpoint=checkpoint, output=output, device=device, search=SearchConfig(seed=seed))


def train_demo_checkpoint(path: Path, seed: int, progress: Progress | None = None) -> None:
    """Train the vanilla network and save it together with the name of its data, so that no ``--data`` is needed."""
    specification = _specification(seed)
    splits = load_data(specification)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model("simple_convnet", 10, ARCHITECTURE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9, weight_decay=1e-4)
    clock, stage = StageClock(progress), "train the vanilla network"
    with clock.stage(stage):
        train_vanilla(
            model,
            BatchLoader(splits.train, 100, shuffle=True, seed=seed),
            optimizer,
            epochs=EPOCHS,
            scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS),
            on_epoch=lambda epoch, loss: clock.epoch(stage, epoch, EPOCHS, EpochFigures(loss)),
        )
    about = Checkpoint(
        state=model.state_dict(),
        arch="simple_convnet",
        num_classes=10,
        arguments=ARCHITECTURE,
        data=specification,
        preprocessing={"mean": list(splits.train.mean), "std": list(splits.train.std), "size": [16, 16]},
    )
    save_checkpoint(path, dataclasses.replace(about, classes=tuple(splits.classes)))


def _specification(seed: int) -> str:
    """The demo's data set as a specification."""
    return f"digits,rho={RHO},seed={seed}"
