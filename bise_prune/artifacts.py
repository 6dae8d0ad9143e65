"""What passes between stages: gate sites, masks, plans, verifications and measurements."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import ModelError, PruningError
from .files import atomic_path, write_json

MASK_FORMAT = "bise-prune masks"
MASK_VERSION = "1"
_STATE = "state/"  # in front of the names of tensors that are no mask logits
PLAN_FORMAT = "bise-prune plan"
PLAN_VERSION = 1


@dataclass(frozen=True)
class GateCall:
    """One gated output: which call of the forward pass it is, and where its channels lie.

    Attributes:
        index: position among the calls of its kind in a forward pass, from 0.
        dim: the channel dimension of the output.
        layer: the layer that produces these channels; None where several do (after a concatenation).
        kind: what is gated: the output of a nonlinearity, that of a linear layer, or a layer norm, which then takes
            its statistics over open channels only and lets closed ones pass as they are.
    """

    index: int
    dim: int
    layer: str | None
    kind: Literal["nonlinearity", "linear", "layer_norm"] = "nonlinearity"


@dataclass(frozen=True)
class GateSite:
    """One mask of the search: the outputs that it gates, one logit per channel.

    Attributes:
        name: the layer whose output channels are gated; ``"first+N"`` where N more layers share the mask.
        num_channels: length of the mask.
        calls: the gated outputs.
    """

    name: str
    num_channels: int
    calls: tuple[GateCall, ...]


def site_layer(name: str) -> str:
    """The first layer whose channels the site ``name`` gates.

    >>> site_layer("layer1.0.conv2"), site_layer("conv1+2"), site_layer("conv1@1")
    ('layer1.0.conv2', 'conv1', 'conv1')
    """
    return name.partition("+")[0].partition("@")[0]


@dataclass(frozen=True)
class MaskSet:
    """Learned mask logits m per gate site; a channel is closed where m < 0 (Eq. 2: sigma(m / tau) < .5).

    Attributes:
        logits: site name -> float tensor of shape (channels,).
        metadata: text about their origin, saved with them.
        state: parameters and buffers of the network that the search changed besides (batch norms, if it was told to),
            by their name in its state dict.
    """

    logits: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, logits in self.logits.items():
            if logits.ndim != 1 or not logits.is_floating_point() or not bool(torch.isfinite(logits).all()):
                raise ModelError(
                    f"masks of '{name}' must be a 1-D float tensor of finite values, "
                    f"got shape {tuple(logits.shape)}, {logits.dtype}"
                )

    @property
    def keep(self) -> dict[str, Tensor]:
        """Site name -> bool tensor, True where the channel stays."""
        return {name: logits >= 0 for name, logits in self.logits.items()}

    @property
    def num_channels(self) -> int:
        """Number of mask logits."""
        return sum(len(logits) for logits in self.logits.values())

    @property
    def num_closed(self) -> int:
        """Number of closed channels."""
        return sum(int((logits < 0).sum()) for logits in self.logits.values())

    def save(self, path: str | Path) -> None:
        """Write the logits and metadata as one safetensors file."""
        named = {**self.logits, **{_STATE + name: tensor for name, tensor in self.state.items()}}
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in named.items()}
        metadata = {
            **self.metadata,
            "format": MASK_FORMAT,
            "version": MASK_VERSION,
            "sites": json.dumps(list(self.logits)),
        }
        with atomic_path(Path(path)) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> MaskSet:
        """Read masks written by :meth:`save`.

        Raises:
            ModelError: the file is missing, is no safetensors file or holds no masks.
        """
        path = Path(path)
        if not path.is_file():
            raise ModelError(f"no mask file at {path}")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != MASK_FORMAT:
                    raise ModelError(f"{path} holds no masks; expected a masks.safetensors written by bise-prune")
                if metadata.get("version") != MASK_VERSION:
                    raise ModelError(f"{path} is of mask format {metadata.get('version')}, this is {MASK_VERSION}")
                logits = {name: file.get_tensor(name) for name in json.loads(metadata["sites"])}
                state = {
                    name.removeprefix(_STATE): file.get_tensor(name) for name in file.keys() if name.startswith(_STATE)
                }
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is no readable safetensors file: {error}") from error
        reserved = ("format", "version", "sites")
        return cls(logits, {key: value for key, value in metadata.items() if key not in reserved}, state)


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one layer: indices into its dense channels, ascending.

    Attributes:
        outputs: output channels that stay; none if the layer is bypassed.
        num_outputs: how many there were.
        inputs: input channels that stay; None where they are not told apart (a layer that works channel by channel).
        num_inputs: how many there were.
    """

    outputs: tuple[int, ...]
    num_outputs: int
    inputs: tuple[int, ...] | None = None
    num_inputs: int | None = None


@dataclass(frozen=True)
class PruningPlan:
    """Which channels go and how those that disagree are joined, decided before anything is touched.

    Attributes:
        keep: site name -> bool mask of the function that the slim model computes.
        layers: every layer whose width changes.
        params: parameters of the dense and of the slim model.
        macs: multiply-accumulates of convolutions and linear layers for one sample, dense and slim.
        joins: "intersection", "expand", or "dense" where all sides agree, so that there is nothing to choose.
        edits: the changed function calls, in words.
        reasons: site name -> why closed channels stay -> which.
        not_followed: what is left at full width: function calls that are not understood, modules that do not run.
        costs_ms: where the lowering was chosen by measurement, the median time of each candidate.
        target: for a ranking, what was asked for and reached, as shares that are gone; empty without one.
        rounding: what rounding widths up gave back; empty without it.
        fingerprint: of the dense model's weights; empty for plans that were never tied to a file.
    """

    keep: Mapping[str, Tensor]
    layers: Mapping[str, LayerPlan]
    params: tuple[int, int]
    macs: tuple[int, int]
    joins: str
    edits: tuple[str, ...] = ()
    reasons: Mapping[str, Mapping[str, tuple[int, ...]]] = field(default_factory=dict)
    not_followed: tuple[str, ...] = ()
    costs_ms: Mapping[str, float] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    rounding: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""

    @property
    def sparsity(self) -> float:
        """Share of the dense model's parameters that is gone (the paper's S)."""
        return 1 - self.params[1] / self.params[0]

    @property
    def removed(self) -> dict[str, tuple[int, ...]]:
        """Layer name -> output channels that are gone."""
        gone = {name: sorted(set(range(plan.num_outputs)) - set(plan.outputs)) for name, plan in self.layers.items()}
        return {name: tuple(channels) for name, channels in gone.items() if channels}

    @property
    def closed_but_kept(self) -> dict[str, str]:
        """Site name -> why closed channels stay in the network."""
        return {name: "; ".join(causes) for name, causes in self.reasons.items()}

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values, for people and for :meth:`load`."""
        return {
            "format": PLAN_FORMAT,
            "version": PLAN_VERSION,
            "fingerprint": self.fingerprint,
            "params": {"dense": self.params[0], "slim": self.params[1]},
            "macs": {"dense": self.macs[0], "slim": self.macs[1]},
            "joins": self.joins,
            "costs_ms": dict(self.costs_ms),
            "target": dict(self.target),
            "rounding": dict(self.rounding),
            "sites": {
                name: {"kept": mask.nonzero().flatten().tolist(), "of": len(mask)} for name, mask in self.keep.items()
            },
            "layers": {name: dataclasses.asdict(layer) for name, layer in self.layers.items()},
            "edits": list(self.edits),
            "not_followed": list(self.not_followed),
            "closed_but_kept": {
                name: {why: list(channels) for why, channels in causes.items()} for name, causes in self.reasons.items()
            },
        }

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        write_json(Path(path), self.as_dict())

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Read a plan written by :meth:`save`.

        Raises:
            PruningError: the file is missing or holds no plan.
        """
        path = Path(path)
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise PruningError(f"cannot read the plan {path}: {error.strerror}") from error
        except ValueError as error:
            raise PruningError(f"{path} is no JSON file: {error}") from error
        if not isinstance(about, dict) or about.get("format") != PLAN_FORMAT:
            raise PruningError(f"{path} holds no pruning plan; expected a plan.json written by bise-prune")
        if about.get("version") != PLAN_VERSION:
            raise PruningError(f"{path} is of plan format {about.get('version')}, this is {PLAN_VERSION}")
        try:
            keep = {}
            for name, site in about["sites"].items():
                keep[name] = torch.zeros(site["of"], dtype=torch.bool)
                keep[name][torch.tensor(site["kept"], dtype=torch.int64)] = True
            layers = {
                name: LayerPlan(
                    tuple(layer["outputs"]),
                    layer["num_outputs"],
                    None if layer["inputs"] is None else tuple(layer["inputs"]),
                    layer["num_inputs"],
                )
                for name, layer in about["layers"].items()
            }
            return cls(
                keep=keep,
                layers=layers,
                params=(about["params"]["dense"], about["params"]["slim"]),
                macs=(about["macs"]["dense"], about["macs"]["slim"]),
                joins=about["joins"],
                edits=tuple(about["edits"]),
                not_followed=tuple(about["not_followed"]),
                reasons={
                    name: {why: tuple(channels) for why, channels in causes.items()}
                    for name, causes in about["closed_but_kept"].items()
                },
                costs_ms=dict(about["costs_ms"]),
                target=dict(about["target"]),
                rounding=dict(about["rounding"]),
                fingerprint=str(about["fingerprint"]),
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise PruningError(f"{path}: the plan is damaged ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class Verification:
    """How far two models that must agree are apart.

    Attributes:
        max_abs_error: largest absolute difference of two logits.
        max_abs_logit: largest absolute logit of the reference, for scale.
        tolerance: largest error that passes.
        batch_sizes: the batches compared.
        dtype: precision of the comparison.
    """

    max_abs_error: float
    max_abs_logit: float
    tolerance: float
    batch_sizes: tuple[int, ...]
    dtype: str

    @property
    def passed(self) -> bool:
        """Whether the error is a number within the tolerance."""
        return self.max_abs_error <= self.tolerance


@dataclass(frozen=True)
class Latency:
    """Wall time of one forward pass, in milliseconds.

    Attributes:
        median_ms: median over the timed runs.
        p10_ms: 10th percentile.
        p90_ms: 90th percentile.
        runs: timed runs, after warm-up.
        batch_size: samples per run.
        device: where it ran, in words.
        threads: CPU threads of torch or onnxruntime (0 = the runtime's own choice).
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    batch_size: int
    device: str
    threads: int


@dataclass(frozen=True)
class Measurement:
    """Size and cost of one model.

    Attributes:
        params: number of parameters.
        size_bytes: bytes of parameters and buffers.
        flops: fvcore's count for one sample, 1 multiply-accumulate = 1 FLOP (the paper's convention).
        flops_by_layer: module name -> flops; modules without any are left out.
        unsupported_operators: operators that fvcore does not count -> occurrences.
        latency: None where it was not asked for.
    """

    params: int
    size_bytes: int
    flops: int
    flops_by_layer: Mapping[str, int]
    unsupported_operators: Mapping[str, int]
    latency: Latency | None = None
