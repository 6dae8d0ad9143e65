"""Settings with their ranges, checked on construction; nothing here imports torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from .errors import ConfigError

Placement = Literal["tied", "paper"]
Weighting = Literal["auto", "subgroup", "alignment", "none"]
TargetSparsity = float | Literal["auto"]
Select = Literal["auto", "best", "worst-group", "accuracy", "worst-class", "last"]
BatchNorm = Literal["frozen", "statistics", "affine"]
Precision = Literal["float32", "tf32", "bfloat16"]
CostUnit = Literal["flops", "params", "latency"]
Criterion = Literal["learned", "random", "magnitude", "taylor"]
Optimizer = Literal["sgd", "adam", "adamw"]
Schedule = Literal["constant", "cosine"]

JoinsChoice = Literal["auto", "intersection", "expand"]
Engine = Literal["exact", "torch-pruning"]
RoundTo = int | Literal["auto"]
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
CRITERIA: tuple[Criterion, ...] = get_args(Criterion)
COST_UNITS: tuple[CostUnit, ...] = get_args(CostUnit)
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
SCHEDULES: tuple[Schedule, ...] = get_args(Schedule)


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{name} = {value!r} is out of range: expected {expected}")


def require_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ConfigError: it is not.
    """
    _require(value in choices, name, value, f"one of {', '.join(choices)}")


@dataclass(frozen=True)
class Target:
    """A size that a network is to reach.

    Attributes:
        kind: what is counted: parameters ("sparsity"), FLOPs, or measured latency.
        share: in (0, 1): for "sparsity" the share that is to go, for the others the share that may stay.
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
        """The target among three settings, of which at most one may be given; None = what the masks close.

        Raises:
            ConfigError: a share is out of range, or several are given.
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
        """The share that is to go."""
        return self.share if self.kind == "sparsity" else 1 - self.share

    @property
    def left(self) -> float:
        """The share that may stay."""
        return 1 - self.removed

    @property
    def tolerance(self) -> float:
        """How far off a result may be: one point, or five of what is measured."""
        return 0.05 if self.kind == "latency" else 0.01

    @property
    def unit(self) -> CostUnit:
        """What is counted."""
        return "params" if self.kind == "sparsity" else self.kind

    @property
    def name(self) -> str:
        """Its name in messages, of what is to go."""
        return {"sparsity": "sparsity", "flops": "removal of FLOPs", "latency": "removal of latency"}[self.kind]


def _is_share(value: object) -> bool:
    return isinstance(value, float) and 0 < value < 1


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the network may cost at the end of a search: lambda relu(cost(gates) - share) joins the objective.

    Attributes:
        share: of the dense network's cost that may stay, in (0, 1).
        of: what is counted.
        weight: lambda, > 0.
        descent: part of the schedule over which the budget comes down from the whole network to ``share``, in [0, 1);
            0 for searches that start from masks near it.
        layer_floor: share of each mask's channels, those of highest m, that stay open whatever they cost, so that no
            layer is emptied on the way; one at least.
        joins: the lowering that is counted where gates disagree; see :func:`bise_prune.prune`.
    """

    share: float
    of: CostUnit = "flops"
    weight: float = 20.0
    descent: float = 0.5
    layer_floor: float = 0.05
    joins: Literal["intersection", "expand"] = "expand"

    def __post_init__(self) -> None:
        require_choice("budget joins", self.joins, ("intersection", "expand"))
        _require(0 < self.share < 1, "budget share", self.share, "a number in (0, 1)")
        require_choice("budget of", self.of, COST_UNITS)
        _require(self.weight > 0, "budget weight", self.weight, "a number > 0")
        _require(0 <= self.descent < 1, "budget descent", self.descent, "a number in [0, 1)")
        _require(0 <= self.layer_floor < 1, "budget layer_floor", self.layer_floor, "a number in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Hyper-parameters of the search (BISE, Algorithm 1), with the paper's symbols and defaults.

    Attributes:
        placement: which outputs share a mask; see :func:`bise_prune.gate_sites`.
        anneal_every: epochs between two temperature cuts (the paper's upsilon).
        anneal_factor: factor of a temperature cut, in (0, 1) (kappa).
        min_temperature: the search stops once the temperature is below it, in (0, 1) (tau_min).
        mi_weight: weight of the mutual information in Eq. (5), >= 0 (gamma).
        head_epochs: epochs of the auxiliary head before the search and after each cut (E).
        initial_logit: m before the first step; the paper's is 0, where the first step closes about half of the
            channels at once, which some networks do not survive.
        mask_lr: learning rate of the mask logits (SGD).
        mask_momentum: momentum of the mask logits.
        mask_weight_decay: weight decay of the mask logits.
        head_lr: learning rate of the auxiliary head (SGD).
        head_momentum: momentum of the auxiliary head.
        head_weight_decay: weight decay of the auxiliary head.
        weighting: sample weights of the cross-entropy. "subgroup" = inverse subgroup frequency (B.8 in general),
            "alignment" = by share of bias-aligned samples (Eq. 4; B.9 for several biases), "none" = 1;
            "auto" = "subgroup" for one bias, "alignment" for several.
        rho: nominal share of bias-aligned samples per bias, for "alignment"; measured on the data if not given.
        select: which epoch's masks are the result. "best" = highest unbiased accuracy on the validation data (the
            paper's), "worst-group" = highest worst-group accuracy; "accuracy" and "worst-class" need no bias labels
            there; "last" = the last epoch's. "auto" = "best" where the validation data have bias labels,
            "worst-class" where they have none, "last" without validation data. Of equals, the later epoch.
        batchnorm: batch norms during the search: "frozen" as in the paper's main results, or (App. I) "statistics" =
            batches are normalised by their own statistics and the running ones follow, "affine" = beyond that, their
            weights and biases are trained, with the masks' optimiser settings.
        mi_pool: (experimental) samples over which the mutual information is estimated beyond the batch's own: a running
            joint distribution, of which the batch's part carries the gradient; 0 = the batch alone (the paper).
        budget: a cost to meet; None = the masks close what they close (the paper).
        precision: of the network's forward and backward passes; mask logits, heads and losses stay as they are.
        channels_last: whether image networks run on tensors with channels last.
        compile: whether the network is compiled by torch.compile; needs a C++ or CUDA tool chain.
        cuda_graphs: (experimental) whether it is compiled and replayed as CUDA graphs, which saves small networks
            kernel launches.
        early_stop: whether to stop once no mask can move any more, by a bound on the gradients to come
            (:func:`bise_prune.mask_search.stopping.none_can_flip`).
        cache_bytes: the largest of each thing that is kept to be computed once: activations in front of the first gate,
            features for the heads, per-sample gradients while no mask flips; 0 = nothing.
        seed: seed of the head's initialisation and of its batches.
    """

    placement: Placement = "tied"
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


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """Finetuning of the extracted subnetwork (BISE, Sec. 3.5), with the paper's number of epochs and learning rate.

    Attributes:
        epochs: passes over the training set.
        optimizer: "sgd", "adam" or "adamw"; the paper takes the vanilla model's.
        lr: its learning rate.
        momentum: of SGD.
        weight_decay: of the optimiser.
        schedule: of the learning rate: "constant", or "cosine" down to 0.
        weighting: sample weights; see :class:`SearchConfig`.
        rho: see :class:`SearchConfig`.
        select: which epoch is the result; see :class:`SearchConfig`.
    """

    epochs: int = 50
    optimizer: Optimizer = "sgd"
    lr: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    schedule: Schedule = "constant"
    weighting: Weighting = "auto"
    rho: tuple[float, ...] | None = None
    select: Select = "auto"

    def __post_init__(self) -> None:
        _require(self.epochs >= 1, "finetuning epochs", self.epochs, "an integer >= 1")
        _require(self.lr > 0, "finetuning lr", self.lr, "a number > 0")
        _require(0 <= self.momentum < 1, "finetuning momentum", self.momentum, "a number in [0, 1)")
        _require(self.weight_decay >= 0, "finetuning weight_decay", self.weight_decay, "a number >= 0")
        require_choice("optimizer", self.optimizer, OPTIMIZERS)
        require_choice("schedule", self.schedule, SCHEDULES)
        require_choice("weighting", self.weighting, WEIGHTINGS)
        require_choice("select", self.select, SELECTS)


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """Kept channels per layer rounded up, since runtimes are fast at multiples.

    Attributes:
        multiple: >= 1; 1 rounds nothing.
        fill: what fills up: "zero" = closed channels with zero weights, so that the function stays as it is; "best" =
            the closed channels of highest m are opened again, and only what that leaves is filled with zeros.
    """

    multiple: int = 1
    fill: RoundFill = "zero"

    def __post_init__(self) -> None:
        _require(isinstance(self.multiple, int) and self.multiple >= 1, "round_to", self.multiple, "an integer >= 1")
        require_choice("round_fill", self.fill, ROUND_FILLS)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run of the whole pipeline, from a checkpoint to a verified slim model.

    Attributes:
        checkpoint: the dense model's weights.
        output: folder for the results; it must not hold other results.
        data: data specification (see :func:`bise_prune.data.load_data`); None = what the checkpoint names.
        target_sparsity: "auto" (what the search closed) or the share of parameters to remove, in (0, 1).
        arch: architecture, as in :func:`bise_prune.load_model`; None = what the checkpoint names or its weights tell.
        trust_pickle: unpickle whatever is in the checkpoint, which can run any code.
        mean: per channel, on the [0, 1] scale, to normalise images of a folder with; None = what the checkpoint says.
        std: per channel, likewise.
        size: (height, width) to resize images of a folder to, likewise.
        label_column: of the class labels in a table of the user's; None = found among the usual names, as are the next.
        bias_columns: one per bias.
        split_column: train, val or test.
        file_column: of the images' files.
        text_column: of the texts.
        skip_bad: go on without images that cannot be read.
        workers: threads that prepare batches ahead of the search; 0 = none.
        target_flops: share of the FLOPs that may stay, in (0, 1), instead of a target sparsity.
        target_latency: share of the latency that may stay, in (0, 1), instead; measured on ``device``.
        joins: lowering where gates disagree; see :func:`bise_prune.prune`.
        round_to: multiple that kept channels are rounded up to, or "auto".
        round_fill: see :class:`Rounding`.
        fuse: fold batch norms into the exported programs; slim.safetensors keeps them, for finetuning.
        opset: of the ONNX files; None = the exporter's choice.
        half: write slim.fp16.onnx as well.
        int8: write slim.int8.onnx as well, calibrated on training samples that are balanced over the subgroups.
        image_input: write slim.images.onnx as well: uint8 images in, probabilities out.
        format_tolerance: the most that such a file may lose of accuracy, unbiased or worst-group, in [0, 1].
        triton: folder of a Triton model repository to add dense and slim network to, as versions of one model.
        min_worst_group: quality gate: the least worst-group accuracy of the slim network.
        max_accuracy_drop: quality gate: the most accuracy that it may lose.
        min_speedup: quality gate: the least ratio of latencies, dense to slim.
        log: loggers, "tensorboard:FOLDER", "mlflow:EXPERIMENT" or "wandb:PROJECT"; the place may be left out.
        layer_floor: see :func:`bise_prune.prune`.
        targets: several target sparsities: a frontier in one run, each search starting from the last one's masks.
        criterion: what ranks channels: "learned" masks, or without a search "random", "magnitude" or "taylor".
        unsupervised: find pseudo bias labels, also where there are bias labels; without either there is no search.
        identification_epochs: of the model that finds them.
        bias_noise: share of the training set's bias labels to replace by wrong ones first (App. L).
        stratified: whether every batch of the search gets its share of every subgroup.
        finetune: finetuning of the slim network; None = none.
        budget_weight: lambda, where a search is to meet a target; see :class:`Budget`.
        budget_descent: part of the schedule over which the budget comes down, likewise.
        sweep: whether to report the curve of accuracy against sparsity (App. J), where there are learned masks.
        probe: whether to report what a linear head reads of the bias, trained on the validation data (App. M).
        resume: whether there must be a stopped search to take up; one that is there is taken up anyway.
        masks: masks of an earlier run; the search is skipped.
        plan: plan of an earlier run on the same checkpoint, to be carried out again; the search is skipped.
        device: "auto", "cpu", "cuda" or "cuda:N".
        batch_size: samples per batch in the search and in evaluation.
        search: the search's settings.
    """

    checkpoint: Path
    output: Path
    data: str | None = None
    target_sparsity: TargetSparsity = "auto"
    target_flops: float | None = None
    target_latency: float | None = None
    joins: JoinsChoice = "auto"
    round_to: RoundTo = 1
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
    unsupervised: bool = False
    identification_epochs: int = 1
    bias_noise: float = 0.0
    stratified: bool = False
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
        for value in self.targets:
            _require(0 < value < 1, "targets", value, "numbers in (0, 1)")
        is_targeted = self.target is not None or bool(self.targets)
        if self.target is not None and self.targets:
            raise ConfigError("give one target: target_sparsity, target_flops, target_latency or targets")
        require_choice("criterion", self.criterion, CRITERIA)
        if self.criterion != "learned" and (not is_targeted or self.masks or self.plan):
            raise ConfigError(f"criterion '{self.criterion}' only ranks: give a target with it, and no masks or plan")
        _require(0 <= self.layer_floor < 1, "layer_floor", self.layer_floor, "a number in [0, 1)")
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise ConfigError(f"mean {self.mean} and std {self.std} belong together: give both, one number per channel")
        for name in ("mean", "std"):
            _require(
                len(getattr(self, name) or (0,) * 3) == 3, name, getattr(self, name), "three numbers, e.g. .5,.5,.5"
            )
        _require(all(0 < value < math.inf for value in self.std or ()), "std", self.std, "numbers > 0")
        _require(all(map(math.isfinite, self.mean or ())), "mean", self.mean, "finite numbers")
        good = self.size is None or (len(self.size) == 2 and min(self.size) >= 1)
        _require(good, "size", self.size, "height and width, integers >= 1")
        _require(0 <= self.bias_noise <= 1, "bias_noise", self.bias_noise, "a number in [0, 1]")
        _require(
            self.identification_epochs >= 1, "identification_epochs", self.identification_epochs, "an integer >= 1"
        )
        chosen = is_targeted or self.masks is not None or self.joins != "auto" or self.round_to != 1
        if self.plan is not None and chosen:
            raise ConfigError("a plan holds its masks and widths: give no masks, target, joins or rounding beside it")
        require_choice("joins", self.joins, JOINS)
        if self.round_to != "auto":
            Rounding(multiple=self.round_to, fill=self.round_fill)
        require_choice("round_fill", self.round_fill, ROUND_FILLS)
        _require(self.opset is None or self.opset >= 1, "opset", self.opset, "an integer >= 1")
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
        """The size to reach; None = what the masks close, or several sizes (``targets``)."""
        return Target.of(self.target_sparsity, self.target_flops, self.target_latency)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values; paths by name only, so that records carry no machine's folders."""
        logs = tuple(portable(place) for place in self.log)
        values = {**dataclasses.asdict(self), "data": portable(self.data) if self.data else None, "log": logs}
        return {key: value.name if isinstance(value, Path) else value for key, value in values.items()}


def portable(data: str) -> str:
    """A data specification without the place of its folder.

    >>> portable("biased_mnist:/data/mnist,rho=0.99"), portable("/data/birds/")
    ('biased_mnist:mnist,rho=0.99', 'birds')
    """
    head, comma, options = data.partition(",")
    name, colon, root = head.partition(":")
    return f"{name}:{Path(root).name}{comma}{options}" if colon else f"{Path(head).name}{comma}{options}"
