"""What is done to a vanilla network: one function a run, rows of figures from each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from bise_prune import MaskSet, SearchConfig, measure
from bise_prune.app.halves import halved
from bise_prune.baselines.magnitude import magnitude_masks
from bise_prune.baselines.random_scores import random_masks
from bise_prune.config import OF_THE_PAPER, STRONG, Budget, Refit
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.data.noise import noisy_bias_labels
from bise_prune.diagnostics.probe import probe_bias
from bise_prune.diagnostics.sweep import threshold_sweep
from bise_prune.errors import PruningError
from bise_prune.tuning.finetuning import finetune
from bise_prune.tuning.ladder import Ladder, Rung
from bise_prune.tuning.pseudo_labels import pseudo_bias_labels, with_pseudo_labels

from . import finetunings, peers
from .cases import Case, Figures, Found, timed
from .shifts import shifted_test_sets

Rows = dict[str, Figures]
Run = Callable[[Case], Rows]

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of Fig. 3b
SHARES = (0.5, 0.33, 0.2)  # FLOPs left, where searches are compared
RE_ESTIMATED = "taylor, re-estimated"
BUDGETS = (0.3, 0.1, 0.03)  # FLOPs left, where finetuning is looked at
SHORT = (1, 5)  # epochs of that finetuning


def vanilla(case: Case) -> Rows:
    """The dense network, and what it is before vanilla training where that starts from other weights."""
    rows = {"vanilla": case.figures(case.vanilla, latency=True, cpu_seconds_per_epoch=case.epoch_cpu_seconds)}
    if case.setting.name == "corrupted_cifar10":
        rows["starting weights"] = case.figures(case.untrained().eval())
    return rows


def bise(case: Case) -> Rows:
    """The search as the setting has it: best epoch where there is a validation set, and last."""
    found = case.found()
    more = {"epochs_searched": found.epochs, "silent_share": found.silent_share, "best_epoch": found.best_epoch}
    rows = {}
    for row, masks in (("last", found.last), ("best", found.best))[: 1 if case.val is None else 2]:
        pruned = case.pruned(masks)
        rows[row] = case.figures(
            pruned.model, found.cpu_seconds, latency=row == case.setting.rule,
            max_abs_error=pruned.verification.max_abs_error, closed=masks.num_closed / masks.num_channels, **more,
        )  # fmt: skip
    return rows


def rounded(case: Case) -> Rows:
    """The same masks with kept channels rounded up to multiples that runtimes are fast at; the function stays."""
    pruned = case.pruned(round_to="auto")
    return {"rounded": case.figures(pruned.model, case.found().cpu_seconds, latency=True)}


def finetuned(case: Case) -> Rows:
    """The extracted network finetuned with the search's sample weights; the dense one likewise."""
    pruned = case.pruned()
    tuned, seconds = case.tuned(pruned.model)
    dense, dense_seconds = case.tuned(case.vanilla)
    return {
        "finetuned": case.figures(tuned, case.found().cpu_seconds + seconds, latency=True),
        "dense, finetuned": case.figures(dense, dense_seconds, latency=True),
    }


def variant(name: str, **changes: Any) -> Run:
    """The search with other settings: best and last."""

    def run(case: Case) -> Rows:
        return _best_and_last(case, case.found(name, **changes))

    return run


def _best_and_last(case: Case, found: Found, **more: float | None) -> Rows:
    rows = {"last": case.masked_figures(found.last, found.cpu_seconds, **more)}
    if case.val is not None:
        rows["best"] = case.masked_figures(found.best, found.cpu_seconds, **more)
    return rows


def unsupervised(epochs: int = 1) -> Run:
    """Pseudo bias labels for training and validation from a network of the same architecture, trained briefly."""

    def run(case: Case) -> Rows:
        others = [] if case.val is None else [case.val]
        case.vanilla  # noqa: B018  # trained outside the time that is taken
        pseudo, seconds = timed(
            lambda: pseudo_bias_labels(case.untrained(), case.train, *others, epochs=epochs, seed=case.seed)
        )
        sets = [
            with_pseudo_labels(data, labels) for data, labels in zip([case.train, *others], pseudo.labels, strict=True)
        ]
        found = case.found(f"unsupervised-{epochs}", *sets)
        found = dataclasses.replace(found, cpu_seconds=found.cpu_seconds + seconds)
        more = {"precision": pseudo.precision, "recall": pseudo.recall}
        return _best_and_last(case, found, **more)

    return run


def noisy(share: float) -> Run:
    """A share of the training set's bias labels replaced by wrong ones (App. L)."""

    def run(case: Case) -> Rows:
        generator = torch.Generator().manual_seed(case.seed)
        train = case.train.with_bias(noisy_bias_labels(case.train.bias, share, generator))
        return _best_and_last(case, case.found(f"noise-{share:g}", train))

    return run


def gradual(case: Case) -> Rows:
    """The default search without a target and at shares of the FLOPs, with its own settings.

    Masks are learned on half of the validation set, if there is one, and selected on the other half.
    """
    rows = {}
    for share in (1.0, *SHARES):
        found = _gradual(case, share)
        rows[f"{share:g}"] = case.masked_figures(_selected(case, found), found.cpu_seconds)
    return rows


def _gradual(case: Case, share: float, refit: Refit = "none", start: MaskSet | None = None) -> Found:
    """Masks by the default search at a share of the FLOPs; 1 = without a target.

    Args:
        case: the case.
        share: the share.
        refit: what masks are judged with.
        start: norm layers that were trained before; None if none were.
    """
    learned, selecting = _halves(case)
    own = {name: getattr(SearchConfig(), name) for name in (*OF_THE_PAPER, "placement")}
    own |= {"method": "gradual", "refit": refit, "budget": None if share == 1 else Budget(share=share)}
    name = "gradual" if refit == "none" else f"refit-{refit}"
    name += "" if start is None else "-trained"
    return case.found(f"{name}-{share:g}", learned, selecting, aligned=case.aligned, start=start, **own)


def _trained_start(case: Case, rung: Rung) -> MaskSet | None:
    """The norm layers that are trained before the search if a rung is to be delivered; None if that does not help."""
    changed = Ladder(case.vanilla, *_halves(case), case.aligned).changed_norms(rung)
    return MaskSet.for_start(changed) if changed else None


def _halves(case: Case) -> tuple[BiasedDataset, BiasedDataset | None]:
    """Samples to learn masks on, and others to select them on, as by default."""
    return (case.train, None) if case.val is None else halved(case.val)


def _selected(case: Case, found: Found) -> MaskSet:
    """The masks that count."""
    return found.last if case.val is None else found.best


def rungs(case: Case) -> Rows:
    """The ladder of the dense network and of the slim ones by the default search: what each may be worth.

    The lower rungs and the finetuning of ``--tune all`` as in a run of the command with its own settings.
    """
    networks = {"dense": case.vanilla}
    for share in (1.0, *SHARES):
        networks[f"{share:g}"] = case.pruned(_selected(case, _gradual(case, share))).model
    rows, teacher = {}, None
    for name, network in networks.items():
        more, start = _climbed(case, name, network, teacher)
        rows, teacher = rows | more, teacher or start
    return rows


def rungs_clean(case: Case) -> Rows:
    """The same from the weights that vanilla training starts from, dense and with the masks of the search at half.

    It says what starting from a network that has learned the bias costs.
    """
    clean = case.untrained().eval()
    slim = case.pruned(_selected(case, _gradual(case, 0.5)), clean).model
    rows, teacher = _climbed(case, "dense", clean)
    return rows | _climbed(case, "0.5", slim, teacher)[0]


def _climbed(case: Case, name: str, network: nn.Module, teacher: nn.Module | None = None) -> tuple[Rows, nn.Module]:
    """A network at each rung and finetuned, and the refitted one that the finetuning starts from.

    Args:
        case: the case.
        name: of the network, in the rows.
        network: the network.
        teacher: of the finetuning; None for what it starts from.
    """
    learned, selecting = _halves(case)
    rows = {}
    ladder = Ladder(network, learned, selecting, case.aligned, again=case.val)
    for rung in Rung:
        rows[f"{name}, {rung.value}"] = case.figures(ladder.model(rung), num_changed=ladder.num_changed(rung))
    start = Ladder(network, learned, selecting, case.aligned).model(Rung.HEAD)
    loader = None if selecting is None else BatchLoader(selecting, 500)
    more = None if selecting is None else learned
    train = partial(finetune, start, case.loader(), STRONG, loader, aligned=case.aligned, more=more)
    tuned, seconds = timed(partial(train, teacher=teacher or start))
    rows[f"{name}, all"] = case.figures(tuned.model, seconds, epoch=tuned.epoch)
    return rows, start


def rungs_tuned(rung: Rung) -> Run:
    """The slim networks by the search of ``--tune norms`` or ``--tune head``, with what this may change.

    It starts from the network with trained norm layers, and for a head judges masks by a refitted one.
    """

    def run(case: Case) -> Rows:
        learned, selecting = _halves(case)
        rows, start = {}, _trained_start(case, rung)
        for share in (1.0, *SHARES):
            found = _gradual(case, share, "head" if rung is Rung.HEAD else "none", start)
            masks = _selected(case, found)
            slim = case.pruned(masks).model
            plain = case.pruned(masks.alone()).model
            before = slim if masks.trained_before else None
            ladder = Ladder(plain, learned, selecting, case.aligned, again=case.val, start=before)
            rows[f"{share:g}, {rung.value}"] = case.figures(ladder.model(rung), found.cpu_seconds)
        return rows

    return run


def rungs_criteria(case: Case) -> Rows:
    """Torch-Pruning's criteria at shares of the FLOPs, with the same rungs on the same samples as our networks have.

    Re-estimated Taylor scores refit statistics and head on their way; so there is only their rung with a refitted head.
    """
    learned, selecting = _halves(case)
    dense = measure(case.vanilla, case.example).flops
    rows = {}
    for name in peers.CRITERIA:
        for share in SHARES:
            network, _ = peers.pruned_to(case, name, int(share * dense))
            ladder = Ladder(network, learned, selecting, case.aligned, again=case.val)
            rows |= {f"{name} {share:g}, {rung.value}": case.figures(ladder.model(rung)) for rung in Rung}
    for share, network in peers.pruned_on_the_way_down(case, learned, SHARES):
        ladder = Ladder(network, learned, selecting, case.aligned, again=case.val)
        rows[f"{RE_ESTIMATED} {share:g}, head"] = case.figures(ladder.model(Rung.HEAD))
    return rows


def budgets(case: Case) -> Rows:
    """The search as the setting has it at shares of the FLOPs, with the penalty for a target."""
    rows = {}
    for share in SHARES:
        found = case.found(f"budget-{share:g}", budget=Budget(share=share))
        rows[f"{share:g}"] = case.masked_figures(_selected(case, found), found.cpu_seconds)
    return rows


def sweep(case: Case) -> Rows:
    """The threshold zeta on sigma(m) (Fig. J.1)."""
    points = threshold_sweep(
        case.vanilla, case.found().best, BatchLoader(case.test, 500), case.aligned, case.example,
        [i / 20 for i in range(21)],
    )  # fmt: skip
    return {
        f"{point.zeta:g}": {
            "unbiased": point.evaluation.unbiased_accuracy, "sparsity": point.sparsity, "flops_left": point.flops,
        }
        for point in points
    }  # fmt: skip


def rankings(case: Case) -> Rows:
    """Channels ranked by m, by the norm of their filters and at random, cut at each sparsity (Fig. 3b)."""
    scores = {
        "m": case.found().best,
        "magnitude": _magnitude(case),
        "random": random_masks(case.vanilla, case.example, case.seed),
    }
    rows: Rows = {}
    for name, masks in scores.items():
        for sparsity in SPARSITIES:
            try:
                pruned = case.pruned(masks, target_sparsity=sparsity, layer_floor=0.0)
            except PruningError:  # a layer would be emptied: no figure
                continue
            found = case.evaluation(pruned.model)
            rows[f"{name} {sparsity:g}"] = {"unbiased": found.unbiased_accuracy, "sparsity": pruned.plan.sparsity}
    return rows


def _magnitude(case: Case) -> MaskSet:
    """Norms of filters over the mean of their layer, since layers of few inputs have small ones."""
    masks = magnitude_masks(case.vanilla, case.example)
    return MaskSet({name: norms / norms.mean() for name, norms in masks.logits.items()})


def probe(case: Case) -> Rows:
    """How much of the bias a linear head reads off the bottleneck, learned on unbiased data (App. M)."""
    assert case.data.unbiased is not None
    train, test = BatchLoader(case.data.unbiased, 500), BatchLoader(case.test, 500)
    rows: Rows = {}
    for name, model in (("vanilla", case.vanilla), ("BISE", case.pruned().model)):
        found = probe_bias(model, train, test, seed=case.seed)
        rows[name] = {"bias_read": found.accuracy[0], "majority": found.majority[0]}
    return rows


def transfer(case: Case) -> Rows:
    """The masks as found, on test sets that the search and the vanilla training have not seen the like of."""
    slim = case.pruned().model
    rows: Rows = {}
    for name, data in shifted_test_sets(case).items():
        for label, model in (("vanilla", case.vanilla), ("BISE", slim)):
            found = case.evaluation(model, data)
            rows[f"{name}, {label}"] = {"accuracy": found.accuracy, "n": float(found.n)}
    return rows


def after_finetuning(case: Case) -> Rows:
    """Whether the criterion matters after finetuning: equal FLOPs, few epochs, little left."""
    scores = {
        "magnitude": _magnitude(case),
        "random": random_masks(case.vanilla, case.example, case.seed),
    }
    rows: Rows = {}
    start = case.found().best
    for budget in BUDGETS:
        found = case.found(f"budget-{budget:g}", start=start, budget=Budget(share=budget, descent=0.0))
        start = found.best
        for name, masks in {"BISE": found.best, **scores}.items():
            pruned = case.pruned(masks, target_flops=budget, layer_floor=0.05)
            left = {"flops_left": pruned.plan.macs[1] / pruned.plan.macs[0]}
            rows[f"{name} {budget:g}, 0"] = {"unbiased": case.evaluation(pruned.model).unbiased_accuracy, **left}
            for epochs in SHORT:
                tuned, _ = case.tuned(pruned.model, epochs=epochs)
                rows[f"{name} {budget:g}, {epochs}"] = {"unbiased": case.evaluation(tuned).unbiased_accuracy, **left}
    return rows


METHODS: dict[str, Run] = {
    "vanilla": vanilla,
    "bise": bise,
    "rounded": rounded,
    "finetuned": finetuned,
    "unsupervised": unsupervised(),
    "unsupervised-3": unsupervised(3),
    "loss-plain": variant("loss-plain", weighting="none", mi_weight=0.0),
    "loss-reweighted": variant("loss-reweighted", mi_weight=0.0),
    "loss-information": variant("loss-information", weighting="none"),
    **{f"gamma-{value:g}": variant(f"gamma-{value:g}", mi_weight=value) for value in (0.1, 3.0, 10.0)},
    **{f"head-epochs-{value}": variant(f"head-epochs-{value}", head_epochs=value) for value in (1, 5, 10, 20, 50)},
    **{f"kappa-{value:g}": variant(f"kappa-{value:g}", anneal_factor=value) for value in (0.1, 0.8)},
    **{f"upsilon-{value}": variant(f"upsilon-{value}", anneal_every=value) for value in (1, 5, 10, 20, 50)},
    **{f"tau-min-{value:g}": variant(f"tau-min-{value:g}", min_temperature=value) for value in (0.1, 0.01, 1e-4)},
    "batchnorm-statistics": variant("batchnorm-statistics", batchnorm="statistics"),
    "batchnorm-affine": variant("batchnorm-affine", batchnorm="affine"),
    **{f"noise-{share:g}": noisy(share) for share in (0.1, 0.3, 0.5, 0.8)},
    "placement-tied": variant("placement-tied", placement="tied"),
    "gradual": gradual,
    "budgets": budgets,
    "rungs": rungs,
    "rungs-clean": rungs_clean,
    "rungs-norms": rungs_tuned(Rung.NORMS),
    "rungs-head": rungs_tuned(Rung.HEAD),
    "rungs-criteria": rungs_criteria,
    "sweep": sweep,
    "rankings": rankings,
    "probe": probe,
    "transfer": transfer,
    "after-finetuning": after_finetuning,
    **{f"finetuned-{name}": finetunings.finetuned(way) for name, way in finetunings.WAYS.items()},
    **peers.PEERS,
}
