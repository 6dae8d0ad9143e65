"""One vanilla network, and the means to search on it, finetune and measure what comes of it; all of it resumes."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bise_prune import MaskSet, SearchConfig, evaluate, export_onnx, fuse_batchnorm, measure, prune, search
from bise_prune.config import FinetuneConfig
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.errors import PruningError
from bise_prune.export.runtime import onnx_latencies
from bise_prune.files import atomic_path, write_json
from bise_prune.gates.gated_model import apply_masks
from bise_prune.mask_search import SearchInterrupted
from bise_prune.metrics.accuracy import Evaluation
from bise_prune.metrics.subgroups import aligned_values, is_aligned
from bise_prune.pruning.exact import PruningResult
from bise_prune.tracing import replace_tensors
from bise_prune.tuning.finetuning import finetune
from bise_prune.tuning.vanilla import train_vanilla

from .settings import Data, Setting

Figures = dict[str, float | None]

_SAVE_EVERY_S = 30.0
LATENCY_BATCH, _LATENCY_RUNS = 16, 100


class OutOfTime(Exception):
    """The time that was given is over; what there is has been saved."""


@dataclass(frozen=True)
class Found:
    """What a search found: masks of the best and of the last epoch, and how it went."""

    best: MaskSet
    last: MaskSet
    best_epoch: int
    epochs: int
    silent_share: float
    cpu_seconds: float


class Clock:
    """When the time that was given is over."""

    def __init__(self, minutes: float | None = None) -> None:
        self.end = None if minutes is None else time.monotonic() + 60 * minutes

    def is_over(self) -> bool:
        """Whether the time is over."""
        return self.end is not None and time.monotonic() > self.end


class Case:
    """The vanilla network of a setting, a share of aligned samples and a seed.

    Args:
        setting: data, network and recipes.
        rho: share of bias-aligned training samples; 0 where the setting leaves nothing to choose.
        seed: of data, weights, batches and masks.
        data_root: folder with mnist/, cifar10/, ...
        work: folder for networks, masks and what an interrupted run resumes from.
        device: where to train.
        clock: asked after each epoch whether to stop.
    """

    def __init__(
        self, setting: Setting, rho: float, seed: int, data_root: Path, work: Path, device: str, clock: Clock
    ) -> None:
        self.setting = setting = setting.at(setting, rho)
        self.rho, self.seed, self.data_root = rho, seed, data_root
        self.device, self.clock = device, clock
        self.work = work / setting.name / setting.size / f"rho{rho}-seed{seed}"
        self.work.mkdir(parents=True, exist_ok=True)

    @cached_property
    def data(self) -> Data:
        """As the setting loads them."""
        return self.setting.load(self.data_root, self.rho, self.seed)

    @property
    def train(self) -> BiasedDataset:
        """For masks, finetuning and peers."""
        return self.data.splits.train

    @property
    def test(self) -> BiasedDataset:
        """To report on, once."""
        assert self.data.splits.test is not None
        return self.data.splits.test

    @property
    def val(self) -> BiasedDataset | None:
        """To select an epoch on; None where the last one counts."""
        return self.data.splits.val if self.setting.rule == "best" else None

    @cached_property
    def aligned(self) -> Tensor:
        """The bias value each class is aligned with, shape (classes, K)."""
        return aligned_values(self.train.target, self.train.bias, self.num_classes)

    @property
    def num_classes(self) -> int:
        """Of the test set."""
        return int(self.test.target.max()) + 1

    @property
    def num_conflicting(self) -> list[int]:
        """Bias-conflicting training samples, per bias."""
        return (~is_aligned(self.train.target, self.train.bias, self.aligned)).sum(0).tolist()

    def untrained(self) -> nn.Module:
        """The network before vanilla training; equal on each call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.setting.network(self.data_root, self.work.parent).to(self.device)

    def loader(self, data: BiasedDataset | None = None) -> BatchLoader:
        """Shuffled batches of the masks' training set, or of another."""
        return BatchLoader(data or self.train, self.setting.recipe.batch_size, shuffle=True, seed=self.seed)

    @property
    def val_loader(self) -> BatchLoader | None:
        """Batches of it."""
        return None if self.val is None else BatchLoader(self.val, 500)

    @property
    def example(self) -> Any:
        """Two samples to trace and measure networks with, on the device."""
        return replace_tensors(self.train.example(), lambda tensor: tensor.to(self.device))

    # -- the vanilla network ---------------------------------------------------------------------

    @cached_property
    def vanilla(self) -> nn.Module:
        """Trained by the recipe, one epoch at a time, and kept in the work folder."""
        return self._trained_vanilla[0]

    @property
    def epoch_cpu_seconds(self) -> float:
        """CPU seconds of one epoch of the vanilla training: the unit of all costs."""
        return self._trained_vanilla[1] / self.setting.recipe.epochs

    @cached_property
    def _trained_vanilla(self) -> tuple[nn.Module, float]:
        model, recipe, path = self.untrained(), self.setting.recipe, self.work / "vanilla.pt"
        optimizer = recipe.optimizer(model.parameters())
        scheduler = None if recipe.scheduler is None else recipe.scheduler(optimizer)
        parts: dict[str, Any] = {"model": model, "optimizer": optimizer}
        if scheduler is not None:
            parts["scheduler"] = scheduler
        done, seconds = 0, 0.0
        state = torch.load(path, map_location=self.device) if path.exists() else {}
        of = f"{len(self.data.vanilla)} samples, {recipe.epochs} epochs, batches of {recipe.batch_size}"
        if state.get("of") == of:
            done, seconds = state["epochs"], state["cpu_seconds"]
            for name, part in parts.items():
                part.load_state_dict(state[name])
        loader, saved = self.loader(self.data.vanilla), time.monotonic()

        def save() -> None:
            state = {name: part.state_dict() for name, part in parts.items()}
            with atomic_path(path) as temporary:
                about = {"epochs": done, "cpu_seconds": seconds, "of": of}
                torch.save({**state, **about}, temporary)

        while done < recipe.epochs:
            start = time.process_time()
            loader.set_epoch(done)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1_000 * self.seed + done)
                train_vanilla(model, loader, optimizer, epochs=1, augment=recipe.augment)
            if scheduler is not None:
                scheduler.step()
            done, seconds = done + 1, seconds + time.process_time() - start
            over = self.clock.is_over() and done < recipe.epochs
            if over or done == recipe.epochs or time.monotonic() - saved > _SAVE_EVERY_S:
                save()
                saved = time.monotonic()
            if over:
                raise OutOfTime
        return model.eval(), seconds

    # -- what is made of it ----------------------------------------------------------------------

    def found(self, name: str = "bise", train: BiasedDataset | None = None, val: BiasedDataset | None = None,
              start: MaskSet | None = None, aligned: Tensor | None = None, **changes: Any) -> Found:  # fmt: skip
        """Masks by the setting's search, with some of its settings changed; kept in the work folder under ``name``."""
        self.vanilla  # noqa: B018  # trained outside the time that is taken
        config = dataclasses.replace(self.setting.search, **changes, seed=self.seed)
        of = f"{self.setting.protocol}; {config}"
        folder = self.work / "masks" / name
        about = folder / "about.json"
        if not about.exists() or json.loads(about.read_text())["of"] != of:
            self._search(folder, config, of, train or self.train, val or self.val, start, aligned)
        known = json.loads(about.read_text())
        del known["of"]
        return Found(
            MaskSet.load(folder / "best.safetensors"), MaskSet.load(folder / "last.safetensors"), **known
        )  # fmt: skip

    def _search(
        self, folder: Path, config: SearchConfig, of: str, train: BiasedDataset, val: BiasedDataset | None,
        start: MaskSet | None, aligned: Tensor | None,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        state, timing = folder / "state.pt", folder / "cpu-seconds.json"
        before = json.loads(timing.read_text()) if state.exists() and timing.exists() else 0.0
        began = time.process_time()

        def note(*_: object) -> None:
            if resumable:
                write_json(timing, before + time.process_time() - began)

        resumable = self.clock.end is not None or state.exists()
        try:
            found = search(
                self.vanilla, self.loader(train), config, None if val is None else BatchLoader(val, 500), start=start,
                aligned=aligned, state_path=state if resumable else None, interrupted=self.clock.is_over, on_epoch=note,
            )  # fmt: skip
        except SearchInterrupted as stop:
            note()
            raise OutOfTime from stop
        seconds = before + time.process_time() - began
        picked = found.picks.get("worst-group" if config.select == "worst-group" else "best", found.picks["last"])
        picked.masks.save(folder / "best.safetensors")
        found.last.save(folder / "last.safetensors")
        silent = sum(epoch.silent_share for epoch in found.history) / len(found.history)
        about = {"best_epoch": picked.epoch, "epochs": len(found.history), "silent_share": silent}
        write_json(folder / "about.json", {**about, "cpu_seconds": seconds, "of": of})
        state.unlink(missing_ok=True)
        timing.unlink(missing_ok=True)

    def masks(self) -> MaskSet:
        """Those that the setting's rule picks."""
        found = self.found()
        return found.best if self.setting.rule == "best" else found.last

    def pruned(self, masks: MaskSet | None = None, model: nn.Module | None = None, **target: Any) -> PruningResult:
        """The vanilla network, or another, without the channels that masks close, by one lowering on every machine."""
        model, masks = self.vanilla if model is None else model, masks or self.masks()
        return prune(model, masks, self.example, joins="expand", batch_sizes=(1, 2), **target)

    def tuned(self, model: nn.Module, **changes: Any) -> tuple[nn.Module, float]:
        """``model`` finetuned as the setting says, and the CPU seconds it took."""
        config: FinetuneConfig = dataclasses.replace(self.setting.finetune, **changes)
        start = time.process_time()
        done = finetune(model, self.loader(), config, self.val_loader)
        return done.model, time.process_time() - start

    # -- figures ---------------------------------------------------------------------------------

    def evaluation(self, model: nn.Module, data: BiasedDataset | None = None) -> Evaluation:
        """Accuracies on the test set, or on other data."""
        return evaluate(model, BatchLoader(data or self.test, 500), self.aligned)

    def figures(self, model: nn.Module, cpu_seconds: float = 0.0, latency: bool = False, **more: float) -> Figures:
        """Accuracies on the test set, size and cost of a network that was made of the vanilla one.

        Args:
            model: what came of it.
            cpu_seconds: what that took beyond the vanilla training.
            latency: whether to time it in onnxruntime, by turns with the dense network.
            more: further figures.
        """
        found, size, dense = self.evaluation(model), measure(model, self.example), measure(self.vanilla, self.example)
        aligned, conflicting = found.aligned_accuracy, found.conflicting_accuracy
        figures: Figures = {
            "unbiased": found.unbiased_accuracy,
            "worst_group": found.worst_group_accuracy,
            "accuracy": found.accuracy,
            "aligned": aligned,
            "conflicting": conflicting,
            "gap": None if aligned is None or conflicting is None else aligned - conflicting,
            "params": size.params,
            "flops": size.flops,
            "sparsity": 1 - size.params / dense.params,
            "flops_left": size.flops / dense.flops,
            "epochs": cpu_seconds / self.epoch_cpu_seconds,
            **more,
        }
        if self.train.bias.shape[1] > 1:
            figures |= {f"group {group.name}": group.accuracy for group in found.subgroups}
        if latency:
            figures |= self.latency(model)
        return figures

    def masked_figures(self, masks: MaskSet, cpu_seconds: float = 0.0, **more: float) -> Figures:
        """Figures of the pruned network; where that would be dead, accuracies of the masked one alone."""
        closed = {"closed": masks.num_closed / masks.num_channels}
        try:
            pruned = self.pruned(masks)
        except PruningError:
            found = self.evaluation(apply_masks(self.vanilla, masks, self.example))
            return {"unbiased": found.unbiased_accuracy, "worst_group": found.worst_group_accuracy, **closed, **more}
        error = pruned.verification.max_abs_error
        return self.figures(pruned.model, cpu_seconds, max_abs_error=error, **closed, **more)

    def latency(self, model: nn.Module) -> Figures:
        """Milliseconds a batch in onnxruntime, and the ratio to the dense network's, run by turns on one thread."""
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / "dense.onnx", Path(folder) / "slim.onnx"]
            for network, path in zip((self.vanilla, model), paths, strict=True):
                example = self.train.example()
                export_onnx(fuse_batchnorm(network.cpu(), example), path, example, batch_sizes=(1, 2))
                network.to(self.device)
            dense, slim = onnx_latencies(paths, self.test, LATENCY_BATCH, runs=_LATENCY_RUNS)
        return {"latency_ms": slim.median_ms, "latency_ratio": slim.median_ms / dense.median_ms}


def timed(action: Callable[[], Any]) -> tuple[Any, float]:
    """What an action returns, and its CPU seconds."""
    start = time.process_time()
    result = action()
    return result, time.process_time() - start


def rows_of(figures: Mapping[str, Figures]) -> dict[str, Figures]:
    """Rows of a record with their figures rounded to what is known of them."""
    return {
        row: {key: value if value is None else float(f"{value:.6g}") for key, value in values.items()}
        for row, values in figures.items()
    }
