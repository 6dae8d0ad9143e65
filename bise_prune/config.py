"""Settings of the search, of finetuning and of a whole run; their ranges are checked on construction, without torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import ConfigError

Placement = Literal["all", "tied", "feed-forward", "streams", "paper"]
Weighting = Literal["auto", "subgroup", "alignment", "none"]
TargetSparsity = float | Literal["auto"]
Select = Literal["auto", "best", "worst-group", "accuracy", "worst-class", "last"]
BatchNorm = Literal["frozen", "statistics", "affine"]
Precision = Literal["float32", "tf32", "bfloat16"]
CostUnit = Literal["flops", "params", "latency"]
Refit = Literal["none", "head"]
SearchMethod = Literal["auto", "gradual", "paper"]
Criterion = Literal["learned", "random", "magnitude", "taylor"]
SearchOn = Literal["auto", "training", "validation"]
Tune = Literal["none", "shift", "norms", "head", "all"]
Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine"]
Sampling = Literal["weighted", "balanced"]
Augment = Literal["none", "auto", "flip", "crop", "crop-flip"]

JoinsChoice = Literal["auto", "intersection", "expand"]
Engine = Literal["exact", "torch-pruning"]
RoundTo = int | Literal["auto"]
Epochs = int | Literal["auto"]
RoundFill = Literal["zero", "best"]

TargetKind = Literal["sparsity", "flops", "latency"]

JOINS: tuple[JoinsChoice, ...] = get_args(JoinsChoice)
ENGINES: tuple[Engine, ...] = get_args(Engine)
ROUND_FILLS: tuple[RoundFill, ...] = get_args(RoundFill)
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)
SELECTS: tuple[Select, ...] = get_args(Select)
BATCHNORMS: tuple[BatchNorm, ...] = get_args(BatchNorm)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
METHODS: tuple[SearchMethod, ...] = get_args(SearchMethod)
REFITS: tuple[Refit, ...] = get_args(Refit)
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
SEARCH_ON: tuple[SearchOn, ...] = get_args(SearchOn)
TUNE: tuple[Tune, ...] = get_args(Tune)
COST_UNITS: tuple[CostUnit, ...] = get_args(CostUnit)
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)
SAMPLINGS: tuple[Sampling, ...] = get_args(Sampling)
AUGMENTS: tuple[Augment, ...] = get_args(Augment)


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    """Raise a ConfigError that names the setting, its value and the expected range, unless ``condition`` holds."""
    if not condition:
        raise ConfigError(f"{name} = {value!r} is out of range: expected {expected}")


def _require_finite(config: Any) -> None:
    """Check that no number of a configuration is NaN or infinite."""
    for field_ in dataclasses.fields(config):
        value = getattr(config, field_.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float):
                _require(math.isfinite(number), field_.name, number, "a finite number")


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that a setting has one of its allowed values.

    Args:
        name: name of the setting, for the message.
        value: value of the setting.
        choices: the allowed values.

    Raises:
        ConfigError: ``value`` is none of the choices.
    """
    _require(value in choices, name, value, f"one of {', '.join(choices)}")


# Largest distance between the reached and the requested share of a target that is a warning and not an error.
FARTHEST = 0.05


@dataclass(frozen=True)
class Target:
    """A size or cost that the slim network is to reach.

    Attributes:
        kind: quantity that is counted: parameters ("sparsity"), FLOPs ("flops"), or measured latency ("latency").
        share: number in (0, 1): for "sparsity" the share of the dense network's parameters to remove, otherwise the
            share of the dense network's cost that may stay.
    """

    kind: TargetKind
    share: float

    @classmethod
    def of(
        cls,
        target_sparsity: TargetSparsity = "auto",
        target_flops: float | None = None,
        target_latency: float | None = None,
    ) -> Target | None:
        """Make a target from three settings, of which at most one may be given.

        Args:
            target_sparsity: share of the parameters to remove, in (0, 1), or "auto" for no target.
            target_flops: share of the FLOPs that may stay, in (0, 1).
            target_latency: share of the latency that may stay, in (0, 1).

        Returns:
            The target; None if no setting gives one, which means to remove what the masks close.

        Raises:
            ConfigError: a share is out of range, or more than one target is given.
        """
        given: list[Target] = []
        if target_sparsity != "auto":
            _require(_is_share(target_sparsity), "target_sparsity", target_sparsity, "'auto' or a number in (0, 1)")
            given.append(cls("sparsity", float(target_sparsity)))
        kinds: tuple[tuple[TargetKind, float | None], ...] = (("flops", target_flops), ("latency", target_latency))
        for kind, value in kinds:
            if value is not None:
                _require(_is_share(value), f"target_{kind}", value, "a number in (0, 1)")
                given.append(cls(kind, float(value)))
        if len(given) > 1:
            raise ConfigError("give one target: target_sparsity, target_flops, target_latency or targets")
        return given[0] if given else None

    @property
    def removed(self) -> float:
        """Share of the dense network's size or cost to remove, in (0, 1)."""
        return self.share if self.kind == "sparsity" else 1 - self.share

    @property
    def left(self) -> float:
        """Share of the dense network's size or cost that may stay, in (0, 1)."""
        return 1 - self.removed

    @property
    def tolerance(self) -> float:
        """Largest accepted distance between the reached and the requested share: 0.05 for latency, otherwise 0.01."""
        return 0.05 if self.kind == "latency" else 0.01

    @property
    def unit(self) -> CostUnit:
        """Quantity that is counted: "params", "flops" or "latency"."""
        return "params" if self.kind == "sparsity" else self.kind

    @property
    def name(self) -> str:
        """Name of the removed share in messages, such as "sparsity" or "removal of FLOPs"."""
        return {"sparsity": "sparsity", "flops": "removal of FLOPs", "latency": "removal of latency"}[self.kind]


def lowering_of(joins: str) -> Literal["intersection", "expand"]:
    """The lowering by which sizes are counted before one is chosen: "expand" unless "intersection" is asked for."""
    return "intersection" if joins == "intersection" else "expand"


def _is_share(value: object) -> bool:
    """Whether a value is a float in (0, 1)."""
    return isinstance(value, float) and 0 < value < 1


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Cost that a search comes down to.

    A gradual search closes channels so that the cost stays within a share that comes down to the budget. In the paper's
    search, the objective gets the additional term lambda relu(cost(gates) - limit).

    Attributes:
        share: share of the dense network's cost that may stay at the end of the search, in (0, 1).
        of: quantity that is counted as cost: "flops", "params" or "latency".
        weight: weight of the term in the objective (lambda), > 0; of the paper's search.
        descent: share of the search's epochs over which the limit decreases from 1 to ``share``, in [0, 1); use 0 for
            searches that start from masks close to the budget. Of the paper's search.
        layer_floor: share of each mask's channels, those that are worth most, that stay open whatever they cost, in
            [0, 1), so that no layer is emptied on the way; at least one channel stays open.
        joins: lowering that the cost is counted for, where masks that meet disagree; see :func:`bise_prune.prune`.
        multiple: multiple that the widths of layers are rounded up to where the cost is counted, >= 1; if the network
            would cost more than ``share`` at any such widths, every channel is counted. Of a gradual search.
    """

    share: float
    of: CostUnit = "flops"
    weight: float = 20.0
    descent: float = 0.5
    layer_floor: float = 0.05
    joins: Literal["intersection", "expand"] = "expand"
    multiple: int = 1

    def __post_init__(self) -> None:
        _require_finite(self)
        require_choice("budget joins", self.joins, ("intersection", "expand"))
        _require(0 < self.share < 1, "budget share", self.share, "a number in (0, 1)")
        require_choice("budget of", self.of, COST_UNITS)
        _require(self.weight > 0, "budget weight", self.weight, "a number > 0")
        _require(0 <= self.descent < 1, "budget descent", self.descent, "a number in [0, 1)")
        _require(0 <= self.layer_floor < 1, "budget layer_floor", self.layer_floor, "a number in [0, 1)")
        _require(
            isinstance(self.multiple, int) and self.multiple >= 1, "budget multiple", self.multiple, "an integer >= 1"
        )

    def is_met(self, cost: float) -> bool:
        """Whether a cost, as a share of the dense network's, is at most one percentage point above the budget."""
        return cost <= self.share + 0.01


# Settings that only the paper's search has.
OF_THE_PAPER = (
    "anneal_every", "anneal_factor", "min_temperature", "head_epochs", "initial_logit", "mask_lr", "mask_momentum",
    "mask_weight_decay", "batchnorm", "mi_pool", "early_stop",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Settings of the mask search, with the paper's symbols.

    Attributes:
        method: "gradual" = the network starts open and is closed step by step, by what each channel is worth
            (:mod:`bise_prune.mask_search.gradual`); "paper" = Algorithm 1 of BISE.
            "auto" = "paper" if a setting that only the paper's search has (those named in :data:`OF_THE_PAPER`) differs
            from its default, otherwise "gradual".
        steps: number of steps of a gradual search, >= 12, rounded up to a multiple of its 12 rounds; None = 240.
        refit: what will be refitted after the removal. "head" = the last layer: a gradual search then judges rounds and
            trades by a refitted one (:mod:`bise_prune.mask_search.judge`), and the network as it is may be at chance.
        placement: which outputs share one mask; see :func:`bise_prune.gate_sites`.
        anneal_every: epochs between two temperature cuts, >= 1 (the paper's upsilon).
        anneal_factor: factor by which a cut multiplies the temperature, in (0, 1) (the paper's kappa).
        min_temperature: temperature below which the search ends, in (0, 1) (the paper's tau_min).
        mi_weight: weight of the mutual information in Eq. (5), >= 0 (the paper's gamma).
        head_epochs: training epochs of the auxiliary head before the search and after each temperature cut, >= 0 (the
            paper's E).
        initial_logit: mask logits m before the first step, >= 0. The paper starts at 0, where the first step closes
            about half of the channels at once; some networks do not recover from that.
        mask_lr: learning rate of the mask logits (SGD).
        mask_momentum: momentum of the mask logits, in [0, 1).
        mask_weight_decay: weight decay of the mask logits.
        head_lr: learning rate of the auxiliary head (SGD).
        head_momentum: momentum of the auxiliary head, in [0, 1).
        head_weight_decay: weight decay of the auxiliary head.
        weighting: sample weights of the cross-entropy. "subgroup" = inverse subgroup frequency (B.8 in general),
            "alignment" = by the share of bias-aligned samples (Eq. 4; B.9 for several biases), "none" = 1; "auto" =
            "subgroup" for one bias, "alignment" for several.
        rho: nominal share of bias-aligned samples, one number in (0, 1) per bias, for the weighting "alignment";
            measured on the training data if it is None.
        select: rule that selects the epoch whose masks are the result. "best" = highest unbiased accuracy on the
            validation data (the paper's rule), "worst-group" = highest worst-group accuracy; "accuracy" and
            "worst-class" need no bias labels on the validation data; "last" = the last epoch. "auto" = "best" if the
            validation data have bias labels, "worst-class" if they have none, "last" without validation data. Of equal
            epochs, the later one is selected.
        batchnorm: what happens to batch norms during the search. "frozen" = they do not change (the paper's main
            results). Variants of App. I: "statistics" = batches are normalised by their own statistics, and the running
            statistics are updated; "affine" = in addition, weights and additive biases of batch norms are trained with
            the mask optimiser's settings.
        mi_pool: (experimental) number of samples of past batches over which the mutual information is estimated besides
            the present batch: a running joint distribution, of which only the batch's part carries a gradient; 0 = the
            present batch alone (the paper).
        budget: cost limit during the search; None = no limit (the paper).
        precision: arithmetic of the network's forward and backward passes; mask logits, auxiliary heads and losses keep
            their own precision.
        channels_last: whether image networks run on tensors in channels-last memory format.
        compile: whether the network is compiled by torch.compile, which needs a C++ or CUDA tool chain.
        cuda_graphs: (experimental) whether the network is compiled and replayed as CUDA graphs, which saves small
            networks kernel launches.
        early_stop: whether the search ends as soon as no mask can change any more, judged by a bound on future
            gradients (:func:`bise_prune.mask_search.stopping.none_can_flip`).
        cache_bytes: memory limit, in bytes, for each of the three caches of the search: activations in front of the
            first gate, bottleneck features, and per-sample results that are kept while no mask flips; 0 = no caches.
        seed: random seed of the auxiliary head's initialisation and of its batches.
    """

    method: SearchMethod = "auto"
    steps: int | None = None
    refit: Refit = "none"
    placement: Placement = "all"
    anneal_every: int = 10
    anneal_factor: float = 0.5
    min_temperature: float = 1e-3
    mi_weight: float = 1.0
    head_epochs: int = 50
    initial_logit: float = 0.0
    mask_lr: float = 1e-2
    mask_momentum: float = 0.9
    mask_weight_decay: float = 1e-4
    head_lr: float = 0.1
    head_momentum: float = 0.9
    head_weight_decay: float = 1e-4
    weighting: Weighting = "auto"
    rho: tuple[float, ...] | None = None
    select: Select = "auto"
    batchnorm: BatchNorm = "frozen"
    mi_pool: int = 0
    budget: Budget | None = None
    precision: Precision = "float32"
    channels_last: bool = False
    compile: bool = False
    cuda_graphs: bool = False
    early_stop: bool = True
    cache_bytes: int = 2**31
    seed: int = 0

    def __post_init__(self) -> None:
        _require_finite(self)
        require_choice("search", self.method, METHODS)
        _require(self.steps is None or self.steps >= 12, "steps", self.steps, "an integer >= 12")
        require_choice("refit", self.refit, REFITS)
        unused = self._of_the_paper() if self.method == "gradual" else []
        if not self.is_gradual and (self.steps is not None or self.refit != "none"):
            unused = ["refit" if self.steps is None else "steps"]
        if unused:
            other = "paper" if self.method == "gradual" else "gradual"
            raise ConfigError(
                f"{unused[0]} is a setting of the search '{other}': choose that, or leave the setting out"
            )
        require_choice("placement", self.placement, PLACEMENTS)
        require_choice("weighting", self.weighting, WEIGHTINGS)
        require_choice("select", self.select, SELECTS)
        require_choice("batchnorm", self.batchnorm, BATCHNORMS)
        require_choice("precision", self.precision, PRECISIONS)
        _require(self.anneal_every >= 1, "anneal_every", self.anneal_every, "an integer >= 1")
        _require(0 < self.anneal_factor < 1, "anneal_factor", self.anneal_factor, "a number in (0, 1)")
        _require(0 < self.min_temperature < 1, "min_temperature", self.min_temperature, "a number in (0, 1)")
        _require(self.head_epochs >= 0, "head_epochs", self.head_epochs, "an integer >= 0")
        for name in (
            "initial_logit", "mi_weight", "mask_weight_decay", "head_weight_decay", "mi_pool", "cache_bytes",
        ):  # fmt: skip
            _require(getattr(self, name) >= 0, name, getattr(self, name), "a number >= 0")
        for name in ("mask_lr", "head_lr"):
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number > 0")
        for name in ("mask_momentum", "head_momentum"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "an integer from 0 to 2**32 - 1")
        for value in self.rho or ():
            _require(0 < value < 1, "rho", value, "a number in (0, 1)")
        _require(
            self.rho is None or self.weighting in ("auto", "alignment"),
            "rho",
            self.rho,
            "weighting='alignment' with it",
        )

    @property
    def is_gradual(self) -> bool:
        """Whether the search is the gradual one; see ``method``."""
        return self.method == "gradual" or (self.method == "auto" and not self._of_the_paper())

    def _of_the_paper(self) -> list[str]:
        """The settings that only the paper's search has and that differ from their default."""
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        changed = [name for name in OF_THE_PAPER if getattr(self, name) != fields[name]]
        if self.budget is not None:
            own = {field.name: field.default for field in dataclasses.fields(Budget)}
            changed += [f"budget_{name}" for name in ("weight", "descent") if getattr(self.budget, name) != own[name]]
        return changed


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Settings for finetuning the slim network (BISE, Sec. 3.5), with the paper's number of epochs and learning rate.

    Attributes:
        epochs: passes over the training set, >= 1.
        optimizer: "sgd", "adam" or "adamw"; the paper uses the optimiser of the vanilla network.
        lr: learning rate of the optimiser, > 0.
        momentum: momentum of the optimiser, in [0, 1); used with "sgd" only.
        weight_decay: weight decay of the optimiser, >= 0.
        schedule: learning rate schedule: "constant", or "cosine" for a decrease to 0.
        sampling: "weighted" = each sample once an epoch, its loss times its weight; "balanced" = samples are drawn by
            their weight.
        augment: random changes of images: "flip" left to right, "crop" = moved by up to an eighth, "crop-flip", "auto"
            = "crop" if the inputs are images, or "none".
        clip_norm: largest norm of the gradient, > 0; longer ones are shortened to it. None = any.
        distill: share of the loss that is the divergence from what a teacher predicts, in [0, 1].
        weighting: sample weights of the cross-entropy; see :class:`SearchConfig`.
        rho: nominal share of bias-aligned samples per bias; see :class:`SearchConfig`.
        select: rule that selects the epoch whose weights are the result; see :class:`SearchConfig`.
    """

    epochs: int = 50
    optimizer: Optimizer = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Schedule = "constant"
    sampling: Sampling = "weighted"
    augment: Augment = "none"
    clip_norm: float | None = None
    distill: float = 0.0
    weighting: Weighting = "auto"
    rho: tuple[float, ...] | None = None
    select: Select = "auto"

    def __post_init__(self) -> None:
        _require_finite(self)
        _require(self.epochs >= 1, "finetuning epochs", self.epochs, "an integer >= 1")
        _require(self.lr > 0, "finetuning lr", self.lr, "a number > 0")
        _require(0 <= self.momentum < 1, "finetuning momentum", self.momentum, "a number in [0, 1)")
        _require(self.weight_decay >= 0, "finetuning weight_decay", self.weight_decay, "a number >= 0")
        require_choice("optimizer", self.optimizer, OPTIMIZERS)
        require_choice("schedule", self.schedule, SCHEDULES)
        require_choice("sampling", self.sampling, SAMPLINGS)
        require_choice("augment", self.augment, AUGMENTS)
        _require(self.clip_norm is None or self.clip_norm > 0, "finetuning clip_norm", self.clip_norm, "a number > 0")
        _require(0 <= self.distill <= 1, "finetuning distill", self.distill, "a share, a number in [0, 1]")
        require_choice("weighting", self.weighting, WEIGHTINGS)
        require_choice("select", self.select, SELECTS)


# Settings of the finetuning by which ``tune`` "all" changes all weights.
STRONG = FinetuneConfig(
    epochs=20, optimizer="adamw", lr=3e-4, schedule="cosine", sampling="balanced", augment="auto", clip_norm=1.0,
    distill=0.5,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Rounding of the number of kept channels per layer up to a multiple, at which inference runtimes are faster.

    Attributes:
        multiple: the multiple, >= 1; 1 = no rounding.
        fill: how the additional channels are filled. "zero" = closed channels stay with zero weights, so that the
            network's function does not change; "best" = the closed channels with the highest mask logits are opened
            again, and only what is still missing is filled with zeros.
    """

    multiple: int = 1
    fill: RoundFill = "zero"

    def __post_init__(self) -> None:
        _require(isinstance(self.multiple, int) and self.multiple >= 1, "round_to", self.multiple, "an integer >= 1")
        require_choice("round_fill", self.fill, ROUND_FILLS)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of one run of the whole pipeline, from a checkpoint to a verified slim network.

    Attributes:
        checkpoint: file or folder with the dense network's weights.
        output: folder for the results; it must not hold the results of another run.
        data: data specification (see :func:`bise_prune.data.load_data`); None = the data that the checkpoint names.
        target_sparsity: share of the parameters to remove, in (0, 1), or "auto" to remove what the search closes.
        arch: architecture, as in :func:`bise_prune.load_model`; None = what the checkpoint names or its weights show.
        trust_pickle: whether to unpickle whatever is in the checkpoint, which can run any code.
        mean: mean per channel on the [0, 1] scale, by which images are normalised; None = what the checkpoint or
            the publisher of its weights says, otherwise ImageNet's.
        std: standard deviation per colour channel on the [0, 1] scale, to be given together with ``mean``.
        size: (height, width) that images are resized to; None = what the checkpoint or the publisher of its weights
            says, otherwise the images' own size.
        crop: share of the resized image's sides that ``size`` is cropped from, in (0, 1]: images are resized so that
            ``size / crop`` fits into them, and cropped from the middle; None = what the publisher of the weights says,
            otherwise images are resized to ``size`` without regard to their shape.
        classes: names of the classes in the order of the network's outputs; () = what the checkpoint says, otherwise
            alphabetical order.
        image_folder: folder that the files in a table are relative to; None = the table's own.
        force: whether to go on with a dense network that does no better than chance, or far worse than its checkpoint
            says.
        label_column: column of the class labels in the user's table; None for this and the next four = the column is
            found by its usual names.
        bias_columns: columns of the bias labels, one per bias.
        split_column: column that says train, val or test.
        file_column: column of the image files.
        text_column: column of the texts.
        skip_bad: whether to continue without images that cannot be read, instead of stopping.
        workers: threads that prepare batches ahead of the search; 0 = batches are prepared when they are needed.
        target_flops: share of the FLOPs that may stay, in (0, 1), instead of a target sparsity.
        target_latency: share of the latency in onnxruntime that may stay, in (0, 1), instead of a target sparsity; the
            geometric mean over batches of 1 and 16.
        joins: lowering where masks that meet disagree; see :func:`bise_prune.prune`.
        round_to: multiple that the number of kept channels is rounded up to, 1 for no rounding, or "auto" to measure
            several multiples in onnxruntime and take the best one (:func:`bise_prune.prune` has another "auto").
        round_fill: how rounding fills additional channels; see :class:`Rounding`.
        fuse: whether to fold batch norms into their layers in the exported programs; slim.safetensors keeps them, for
            finetuning.
        opset: operator set version of the ONNX files; None = the exporter's choice.
        half: whether to write slim.fp16.onnx as well, in half precision.
        int8: whether to write slim.int8.onnx as well, calibrated on training samples that are balanced over the
            subgroups.
        image_input: whether to write slim.images.onnx as well, which takes uint8 images and returns probabilities.
        format_tolerance: largest loss of accuracy, unbiased accuracy or worst-group accuracy that a half or int8 file
            may have, in [0, 1]; a file that loses more is not kept.
        triton: folder of an NVIDIA Triton model repository, to which the dense and the slim network are added as two
            versions of one model; None = none.
        min_worst_group: quality gate: lowest worst-group accuracy of the slim network that passes, in [0, 1].
        max_accuracy_drop: quality gate: largest loss of accuracy against the dense network that passes, in [0, 1].
        min_speedup: quality gate: lowest ratio of the dense to the slim network's latency in onnxruntime at batch 16
            that passes, > 0.
        log: loggers that get the figures: "tensorboard:FOLDER", "mlflow:EXPERIMENT" or "wandb:PROJECT"; the part after
            the colon is optional.
        layer_floor: share of every mask's channels that a target leaves open, in [0, 1); see :func:`bise_prune.prune`.
        targets: several target sparsities in (0, 1), for one result each in one run; every search starts from the masks
            of the one before.
        criterion: what ranks the channels: "learned" masks, or "random", "magnitude" or "taylor" scores without a
            search, which need a target.
        search_on: data on which a search learns masks: "training" = the training set; "validation" = half of the
            validation set, and the other half alone is then the validation set; "auto" = "validation" for a gradual
            search if there are enough bias-conflicting samples there that the dense network gets wrong
            (:mod:`bise_prune.app.halves`), otherwise "training".
        unsupervised: whether to find pseudo bias labels, even if there are bias labels; with neither, a search is
            refused.
        identification_epochs: training epochs of the network that finds pseudo bias labels, >= 1; "auto" = one, as in
            the paper, for the paper's search, otherwise as many as tell most of the bias
            (:func:`bise_prune.tuning.pseudo_labels.pseudo_bias_labels`).
        bias_noise: share of the training set's bias labels that are first replaced by wrong ones, in [0, 1] (App. L).
        stratified: whether every batch of the search gets its share of every subgroup.
        tune: what may change in the slim network: "none", "shift" = one offset per class on the logits, "norms" = the
            norm layers as well (statistics, weights and additive biases), "head" = the last layer as well; see
            :mod:`bise_prune.tuning.ladder`. "all" = all weights: finetuning from the best of these, with the best of
            the dense network as its teacher.
        finetune: settings for finetuning the slim network; None = no finetuning. With ``tune`` "all", None stands for
            :data:`STRONG`.
        budget_weight: weight of the cost limit in a search with a target (lambda), > 0; see :class:`Budget`.
        budget_descent: share of the search's epochs over which the cost limit decreases, in [0, 1); see
            :class:`Budget`.
        sweep: whether to report the curve of accuracy against sparsity (App. J), if there are learned masks.
        probe: whether to report how accurately a linear probe predicts the bias label from the bottleneck, trained on
            the validation data (App. M).
        resume: whether it is an error if the output folder holds no interrupted search to continue; an interrupted
            search that is there is continued without this setting as well.
        masks: file with the masks of an earlier run, which replace the search.
        plan: file with the plan of an earlier run on the same checkpoint, which is carried out again without a search.
        device: "auto", "cpu", "cuda" or "cuda:N".
        batch_size: samples per batch in the search and in evaluations, >= 1.
        search: settings of the search.
    """

    checkpoint: Path
    output: Path
    data: str | None = None
    target_sparsity: TargetSparsity = "auto"
    target_flops: float | None = None
    target_latency: float | None = None
    joins: JoinsChoice = "auto"
    round_to: RoundTo = "auto"
    round_fill: RoundFill = "zero"
    fuse: bool = True
    opset: int | None = None
    half: bool = False
    int8: bool = False
    image_input: bool = False
    format_tolerance: float = 0.02
    triton: Path | None = None
    min_worst_group: float | None = None
    max_accuracy_drop: float | None = None
    min_speedup: float | None = None
    log: tuple[str, ...] = ()
    layer_floor: float = 0.05
    targets: tuple[float, ...] = ()
    criterion: Criterion = "learned"
    search_on: SearchOn = "auto"
    unsupervised: bool = False
    identification_epochs: Epochs = "auto"
    bias_noise: float = 0.0
    stratified: bool = False
    tune: Tune = "none"
    finetune: FinetuneConfig | None = None
    budget_weight: float = 20.0
    budget_descent: float = 0.5
    sweep: bool = True
    probe: bool = False
    resume: bool = False
    arch: str | None = None
    trust_pickle: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, ...] | None = None
    crop: float | None = None
    classes: tuple[str, ...] = ()
    image_folder: Path | None = None
    force: bool = False
    label_column: str | None = None
    bias_columns: tuple[str, ...] | None = None
    split_column: str | None = None
    file_column: str | None = None
    text_column: str | None = None
    skip_bad: bool = False
    workers: int = 1
    masks: Path | None = None
    plan: Path | None = None
    device: str = "auto"
    batch_size: int = 100
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        _require_finite(self)
        for value in self.targets:
            _require(0 < value < 1, "targets", value, "numbers in (0, 1)")
        folders = {f"{value:g}" for value in self.targets}  # of which each has its own
        _require(len(folders) == len(self.targets), "targets", self.targets, "numbers that differ in six digits")
        is_targeted = self.target is not None or bool(self.targets)
        if self.target is not None and self.targets:
            raise ConfigError("give one target: target_sparsity, target_flops, target_latency or targets")
        require_choice("criterion", self.criterion, CRITERIA)
        require_choice("search_on", self.search_on, SEARCH_ON)
        if self.search_on != "auto" and self.criterion != "learned":
            raise ConfigError(f"search_on has no use: criterion '{self.criterion}' does not search")
        if self.search_on == "validation" and self.unsupervised:
            raise ConfigError("search_on 'validation' needs true bias labels: leave it or unsupervised out")
        if self.criterion != "learned" and (not is_targeted or self.masks or self.plan):
            raise ConfigError(f"criterion '{self.criterion}' only ranks: give a target with it, and no masks or plan")
        _require(0 <= self.layer_floor < 1, "layer_floor", self.layer_floor, "a number in [0, 1)")
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ConfigError(f"mean {self.mean} and std {self.std} belong together: give both, one number per channel")
        _require(self.mean is None or len(self.mean) > 0, "mean", self.mean, "one number per channel")
        _require(all(1e-6 < value < math.inf for value in self.std or ()), "std", self.std, "numbers > 0.000001")
        _require(all(map(math.isfinite, self.mean or ())), "mean", self.mean, "finite numbers")
        good = self.size is None or (len(self.size) == 2 and min(self.size) >= 1)
        _require(good, "size", self.size, "height and width, integers >= 1")
        _require(self.crop is None or 0.05 <= self.crop <= 1, "crop", self.crop, "a number in [0.05, 1]")
        _require(len(set(self.classes)) == len(self.classes), "classes", self.classes, "names that differ")
        require_choice("tune", self.tune, TUNE)
        if self.tune == "all" and self.finetune is None:
            object.__setattr__(self, "finetune", STRONG)
        if self.tune not in ("none", "all") and self.finetune is not None:
            raise ConfigError(f"finetuning may change all weights already: leave out tune = '{self.tune}', or finetune")
        _require(0 <= self.bias_noise <= 1, "bias_noise", self.bias_noise, "a number in [0, 1]")
        if self.identification_epochs != "auto":
            epochs = self.identification_epochs
            _require(
                isinstance(epochs, int) and epochs >= 1, "identification_epochs", epochs, "an integer >= 1, or 'auto'"
            )
        chosen = is_targeted or self.masks is not None or self.joins != "auto" or self.round_to != "auto"
        if self.plan is not None and chosen:
            raise ConfigError("a plan holds its masks and widths: give no masks, target, joins or rounding beside it")
        require_choice("joins", self.joins, JOINS)
        if self.round_to != "auto":
            Rounding(multiple=self.round_to, fill=self.round_fill)
        require_choice("round_fill", self.round_fill, ROUND_FILLS)
        _require(self.opset is None or self.opset >= 7, "opset", self.opset, "an integer >= 7, which runtimes read")
        _require(0 <= self.format_tolerance <= 1, "format_tolerance", self.format_tolerance, "a number in [0, 1]")
        for name in ("min_worst_group", "max_accuracy_drop"):
            value = getattr(self, name)
            _require(value is None or 0 <= value <= 1, name, value, "a share, a number in [0, 1]")
        _require(self.min_speedup is None or self.min_speedup > 0, "min_speedup", self.min_speedup, "a number > 0")
        if self.triton is not None and self.targets:
            raise ConfigError("triton takes one slim network: give one target with it, not targets")
        _require(self.workers >= 0, "workers", self.workers, "an integer >= 0")
        _require(self.budget_weight > 0, "budget_weight", self.budget_weight, "a number > 0")
        _require(0 <= self.budget_descent < 1, "budget_descent", self.budget_descent, "a number in [0, 1)")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "an integer >= 1")
        _require(self.device.split(":")[0] in ("auto", "cpu", "cuda"), "device", self.device, "auto, cpu or cuda[:N]")

    @property
    def target(self) -> Target | None:
        """The size or cost to reach; None = remove what the masks close, or several sparsities (``targets``)."""
        return Target.of(self.target_sparsity, self.target_flops, self.target_latency)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as plain JSON values.

        Of paths only the last part is kept, so that the report record names no folders of the machine.
        """
        logs = tuple(portable(place) for place in self.log)
        values = {**dataclasses.asdict(self), "data": portable(self.data) if self.data else None, "log": logs}
        return {key: value.name if isinstance(value, Path) else value for key, value in values.items()}


def portable(data: str) -> str:
    """Return a data specification without the path to its folder or file.

    >>> portable("biased_mnist:/data/mnist,rho=0.99"), portable("/data/birds/")
    ('biased_mnist:mnist,rho=0.99', 'birds')
    """
    head, comma, options = data.partition(",")
    name, colon, root = head.partition(":")
    return f"{name}:{Path(root).name}{comma}{options}" if colon else f"{Path(head).name}{comma}{options}"
