"""What takes part in the contest of contest.py: a cell of the zoo, the means to judge masks of it, and the methods."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import zoo
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from bise_prune import MaskSet, SearchConfig, search
from bise_prune.app.session import Session
from bise_prune.baselines.magnitude import magnitude_masks
from bise_prune.baselines.random_scores import random_masks
from bise_prune.config import Budget, Placement
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.mask_search.gate_cost import GateCost
from bise_prune.mask_search.network import MaskedNetwork
from bise_prune.mask_search.projection import Projection
from bise_prune.mask_search.refitted import refitted_head
from bise_prune.mask_search.weights import sample_weights
from bise_prune.metrics.accuracy import score

BUDGETS = (0.5, 0.33, 0.2)
_STEPS, _SAMPLE = 14, 400


class Arena:
    """A cell of the zoo, and the means to judge masks of its network.

    Args:
        cell: the cell.
        work: folder of the zoo.
        placement: where its gates sit.
    """

    def __init__(self, cell: zoo.Cell, work: Path, placement: Placement = "feed-forward") -> None:
        self.settings = SearchConfig(placement=placement)
        self.session: Session = zoo.session_of(cell, work, work / cell.name / "unused", search_on="validation")
        about = json.loads((work / cell.name / "about.json").read_text())
        self.epoch_seconds = about["cpu_seconds"] / about["epochs"]
        dense, example = self.session.dense, self.session.example
        whole = MaskedNetwork(dense, example, self.settings, None)
        self.sites, self.sizes = whole.sites, whole.gates.sizes
        self.projection = Projection(GateCost(whole.trace, dense, whole.sites), self.sizes)
        splits = self.session.splits
        assert splits.val is not None and splits.test is not None
        self.train, self.val, self.test = splits.train, splits.val, splits.test
        assert self.session.halves is not None
        self.learned, self.selecting = self.session.halves

    def cost(self, masks: MaskSet) -> float:
        """Cost of the masked network, as a share of the dense one's."""
        return self.projection.cost(torch.cat([masks.keep[site.name] for site in self.sites]).float())

    def masks_of(self, scores: Tensor, share: float) -> MaskSet:
        """Masks that keep the channels of highest score at a share of the cost."""
        kept = self.projection.kept(scores, share)
        logits = torch.where(kept, 1.0, -1.0).split(self.sizes)
        return MaskSet({site.name: part.clone() for site, part in zip(self.sites, logits, strict=True)})

    def scores_of(self, masks: MaskSet) -> Tensor:
        """Mask logits of all sites, shape (M,)."""
        return torch.cat([masks.logits[site.name] for site in self.sites])

    def drawn(self, data: BiasedDataset, count: int, seed: int = 0) -> Tensor:
        """Numbers of samples, drawn by their weight."""
        return torch.multinomial(
            self._weights(data), count, replacement=True, generator=torch.Generator().manual_seed(seed)
        )

    def _weights(self, data: BiasedDataset) -> Tensor:
        """Weights of the samples of a split, by its own subgroups, float64."""
        session = self.session
        weigh = sample_weights(data.target, data.bias, session.num_classes, session.aligned, "auto", None)
        return weigh(data.target, data.bias).double()

    def masked(self, masks: MaskSet) -> MaskedNetwork:
        """The masked network."""
        return MaskedNetwork(self.session.dense, self.session.example, self.settings, masks)

    @torch.no_grad()
    def outputs(self, network: MaskedNetwork, data: BiasedDataset, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, C) and bottleneck features (N, D) of samples."""
        gates = network.gates.values.split(network.gates.sizes)
        seen = [network.forward(gates, network.placed(data.batch(part))) for part in rows.split(250)]
        logits, features = (torch.cat(parts) for parts in zip(*seen, strict=True))
        return logits, features

    def judged(self, masks: MaskSet) -> dict[str, float]:
        """Unbiased and worst-group accuracies of the masked network, as it is and after refits."""
        return self.scored(self.masked(masks))

    def scored(self, model: MaskedNetwork) -> dict[str, float]:
        """The same of any network with gates."""
        figures: dict[str, float] = {}
        for prefix in ("", "statistics, ") if model.norms else ("",):
            if prefix:
                self.reestimate(model, self.train, self.drawn(self.train, 1_000))
            logits, features = self.outputs(model, self.test, torch.arange(len(self.test)))
            seen = {"as is": logits}
            for name, data, count in (("training", self.train, 2_000), ("validation", self.val, len(self.val))):
                rows = self.drawn(data, count)
                inputs = self.outputs(model, data, rows)[1]
                head = refitted_head(inputs, data.target[rows], self.session.num_classes)
                seen[f"head on {name}"] = linear(features, head[:, :-1], head[:, -1])
            for name, found in seen.items():
                evaluation = self._scored(found, self.test)
                figures[prefix + name] = evaluation.unbiased_accuracy
                figures[f"{prefix}{name}, worst group"] = evaluation.worst_group_accuracy
            selecting = self.outputs(model, self.selecting, torch.arange(len(self.selecting)))[0]
            figures[f"{prefix}validation"] = self._scored(selecting, self.selecting).unbiased_accuracy
            if not prefix:
                figures["classes predicted"] = len(logits.argmax(1).unique())
        return figures

    def _scored(self, logits: Tensor, data: BiasedDataset) -> Any:
        """Accuracies of logits on a split."""
        return score(logits.argmax(1), data.target, data.bias, self.session.aligned)

    def reestimate(self, network: MaskedNetwork, data: BiasedDataset, rows: Tensor) -> None:
        """Re-estimate the statistics of all batch norms on samples."""
        for norm in network.norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain mean over the batches
        network.let_norms_follow(True)
        for part in rows.split(100):
            self.outputs(network, data, part)
        network.let_norms_follow(False)


Found = tuple[float, MaskSet, float]  # share of the cost, masks, CPU seconds


class Method:
    """A way to close channels.

    Args:
        run: function from the arena and the shares to the masks of each share.
        shares: shares of the cost at which it takes part; 1 = no budget.
    """

    def __init__(self, run: Callable[[Arena, Sequence[float]], Any], shares: Sequence[float]) -> None:
        self.run, self.shares = run, shares


def _searched(config: Mapping[str, Any]) -> Callable[[Arena, Sequence[float]], Any]:
    """A method that searches with the given settings, with a budget below a share of 1."""

    def found(arena: Arena, shares: Sequence[float]) -> Any:
        session = arena.session
        for share in shares:
            start = time.process_time()
            budget = None if share == 1 else Budget(share=share)
            settings = SearchConfig(**config, budget=budget, placement=arena.settings.placement)
            loaders = (session.search_loader(), session.val_loader())
            if not settings.is_gradual:
                loaders = (session.train_loader(), BatchLoader(arena.val, 256))
            result = search(session.dense, loaders[0], settings, loaders[1], aligned=session.aligned)
            yield share, result.masks, time.process_time() - start

    return found


def _dense(arena: Arena, shares: Sequence[float]) -> Any:
    """All channels open."""
    ones = MaskSet({site.name: torch.ones(site.num_channels) for site in arena.sites})
    for share in shares:
        yield share, ones, 0.0


def _taylor(with_statistics: bool) -> Callable[[Arena, Sequence[float]], Any]:
    """Re-estimated Taylor scores: the budgets are passed on one way down."""

    def found(arena: Arena, shares: Sequence[float]) -> Any:
        start, lowest = time.process_time(), min(BUDGETS)
        # One way for all budgets, whichever of them are asked for, so that a resumed contest has the same figures.
        way = {1 - (1 - lowest) * step / _STEPS for step in range(1, _STEPS)} | set(BUDGETS)
        closed = torch.zeros(sum(arena.sizes), dtype=torch.bool)
        masks = next(iter(_dense(arena, [1.0])))[1]
        for number, share in enumerate(sorted(way, reverse=True)):
            model = arena.masked(masks)
            data = arena.learned
            if with_statistics:
                arena.reestimate(model, data, arena.drawn(data, 500, number))
            rows = arena.drawn(data, 1_000, number)
            features = arena.outputs(model, data, rows)[1]
            head = refitted_head(features, data.target[rows], arena.session.num_classes)
            slopes = _slopes(arena, model, data.subset(arena.drawn(data, _SAMPLE, 100 + number)), head)
            scores = torch.where(closed, -1.0, slopes.abs())
            masks = arena.masks_of(scores, share)
            closed = arena.scores_of(masks) < 0
            if share in shares:
                yield share, masks, time.process_time() - start

    return found


def _slopes(arena: Arena, network: MaskedNetwork, data: BiasedDataset, head: Tensor) -> Tensor:
    """Mean of dL/dgate over samples, under a head, shape (M,)."""
    total = torch.zeros(sum(arena.sizes))
    for part in torch.arange(len(data)).split(50):
        batch, gates = data.batch(part), network.gates.values.requires_grad_()
        _, features = network.forward(gates.split(arena.sizes), network.placed(batch))
        loss = cross_entropy(linear(features, head[:, :-1], head[:, -1]), batch.target, reduction="sum")
        total += torch.autograd.grad(loss, gates)[0]
    return total / len(data)


def _scored_once(scores: Callable[[Arena], MaskSet]) -> Callable[[Arena, Sequence[float]], Any]:
    """A method that closes the channels of lowest score at once."""

    def found(arena: Arena, shares: Sequence[float]) -> Any:
        start = time.process_time()
        ranked = arena.scores_of(scores(arena))
        for share in shares:
            yield share, arena.masks_of(ranked, share), time.process_time() - start

    return found


METHODS = {
    "dense": Method(_dense, [1.0]),
    "gradual": Method(_searched({}), [1.0, *BUDGETS]),
    "gradual, head": Method(_searched({"refit": "head"}), BUDGETS),
    "taylor, statistics": Method(_taylor(True), BUDGETS),
    "taylor": Method(_taylor(False), BUDGETS),
    "paper": Method(_searched({"method": "paper", "anneal_every": 1, "head_epochs": 10}), [1.0, *BUDGETS]),
    "magnitude": Method(_scored_once(lambda a: magnitude_masks(a.session.dense, a.session.example)), BUDGETS),
    "random": Method(_scored_once(lambda a: random_masks(a.session.dense, a.session.example)), BUDGETS),
}
