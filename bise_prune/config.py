"""Settings with their ranges, checked on construction; nothing here imports torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import ConfigError

Placement = Literal["tied", "paper"]
Weighting = Literal["auto", "subgroup", "alignment", "none"]
TargetSparsity = float | Literal["auto"]

JoinsChoice = Literal["auto", "intersection", "expand"]
Engine = Literal["exact", "torch-pruning"]
RoundTo = int | Literal["auto"]
RoundFill = Literal["zero", "best"]

JOINS = ("auto", "intersection", "expand")
ENGINES = ("exact", "torch-pruning")
ROUND_FILLS = ("zero", "best")
PLACEMENTS: tuple[Placement, ...] = ("tied", "paper")
WEIGHTINGS = ("auto", "subgroup", "alignment", "none")


def _require(condition: bool, name: str, value: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{name} = {value!r} is out of range: expected {expected}")


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
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self.placement in PLACEMENTS, "placement", self.placement, f"one of {', '.join(PLACEMENTS)}")
        _require(self.weighting in WEIGHTINGS, "weighting", self.weighting, f"one of {', '.join(WEIGHTINGS)}")
        _require(self.anneal_every >= 1, "anneal_every", self.anneal_every, "an integer >= 1")
        _require(0 < self.anneal_factor < 1, "anneal_factor", self.anneal_factor, "a number in (0, 1)")
        _require(0 < self.min_temperature < 1, "min_temperature", self.min_temperature, "a number in (0, 1)")
        _require(self.head_epochs >= 0, "head_epochs", self.head_epochs, "an integer >= 0")
        for name in ("initial_logit", "mi_weight", "mask_weight_decay", "head_weight_decay"):
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
        _require(self.fill in ROUND_FILLS, "round_fill", self.fill, f"one of {', '.join(ROUND_FILLS)}")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run of the whole pipeline, from a checkpoint to a verified slim model.

    Attributes:
        checkpoint: the dense model's weights.
        output: folder for the results; it must not hold other results.
        data: data specification (see :func:`bise_prune.data.load_data`); None = what the checkpoint names.
        target_sparsity: "auto" (what the search closed) or the share of parameters to remove, in (0, 1).
        arch: architecture; None = what the checkpoint names or its weights tell.
        target_flops: share of the FLOPs that may stay, in (0, 1), instead of a target sparsity.
        target_latency: share of the latency that may stay, in (0, 1), instead; measured on ``device``.
        joins: lowering where gates disagree; see :func:`bise_prune.prune`.
        round_to: multiple that kept channels are rounded up to, or "auto".
        round_fill: see :class:`Rounding`.
        fuse: fold batch norms into the exported programs; slim.safetensors keeps them, for finetuning.
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
    arch: str | None = None
    masks: Path | None = None
    plan: Path | None = None
    device: str = "auto"
    batch_size: int = 100
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        target = self.target_sparsity
        _require(target == "auto" or 0 < float(target) < 1, "target_sparsity", target, "'auto' or a number in (0, 1)")
        for name in ("target_flops", "target_latency"):
            value = getattr(self, name)
            _require(value is None or 0 < value < 1, name, value, "a number in (0, 1)")
        given = [target != "auto", self.target_flops is not None, self.target_latency is not None]
        if sum(given) > 1:
            raise ConfigError("give one target: target_sparsity, target_flops or target_latency")
        chosen = any(given) or self.masks is not None or self.joins != "auto" or self.round_to != 1
        if self.plan is not None and chosen:
            raise ConfigError("a plan holds its masks and widths: give no masks, target, joins or rounding beside it")
        _require(self.joins in JOINS, "joins", self.joins, f"one of {', '.join(JOINS)}")
        if self.round_to != "auto":
            Rounding(multiple=self.round_to, fill=self.round_fill)
        _require(self.round_fill in ROUND_FILLS, "round_fill", self.round_fill, f"one of {', '.join(ROUND_FILLS)}")
        _require(self.batch_size >= 1, "batch_size", self.batch_size, "an integer >= 1")
        _require(self.device.split(":")[0] in ("auto", "cpu", "cuda"), "device", self.device, "auto, cpu or cuda[:N]")

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values; paths by name only, so that records carry no machine's folders."""
        values = {**dataclasses.asdict(self), "data": portable(self.data) if self.data else None}
        return {key: value.name if isinstance(value, Path) else value for key, value in values.items()}


def portable(data: str) -> str:
    """A data specification without the place of its folder.

    >>> portable("biased_mnist:/data/mnist,rho=0.99"), portable("/data/birds/")
    ('biased_mnist:mnist,rho=0.99', 'birds')
    """
    head, comma, options = data.partition(",")
    name, colon, root = head.partition(":")
    return f"{name}:{Path(root).name}{comma}{options}" if colon else f"{Path(head).name}{comma}{options}"
