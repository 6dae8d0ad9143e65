"""The plan of a removal, which says which channels stay in which layer, and the plan file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from ..channels import Edit, Merge, Regather, Split
from ..config import Target, TargetKind
from ..digests import state_tensors, tensors_digest
from ..errors import PruningError
from ..files import write_json
from ..gates.masks import MaskSet
from ..tracing import Reason

PLAN_FORMAT = "bise-prune plan"
PLAN_VERSION = 1


@dataclass(frozen=True)
class LayerPlan:
    """The channels that stay in one layer, as ascending indices of its channels in the dense network.

    Attributes:
        outputs: output channels that stay; empty if the layer is not used any more.
        num_outputs: number of output channels in the dense network.
        inputs: input channels that stay; None for a layer that works channel by channel or needs all its inputs.
        num_inputs: number of input channels in the dense network; None where ``inputs`` is.
    """

    outputs: tuple[int, ...]
    num_outputs: int
    inputs: tuple[int, ...] | None = None
    num_inputs: int | None = None


@dataclass(frozen=True)
class PruningPlan:
    """Which channels are removed and which function calls change, decided before any layer is changed.

    Attributes:
        keep: site name -> bool mask of shape (channels,), True = keep; the slim network computes this masked network.
        layers: layer name -> its channels that stay, for every layer whose width changes.
        params: numbers of parameters of the dense and of the slim network.
        macs: multiply-accumulates of convolutions, linear layers and attention for one sample, dense and slim; zeros
            for engine "torch-pruning".
        joins: lowering: "intersection" or "expand"; "dense" if no tensors of different widths meet, so that both are
            the same, and for engine "torch-pruning".
        edits: the changed function calls, in words.
        reasons: site name -> reason why closed channels stay -> these channels.
        not_followed: what stays at full width: function calls that are not understood, modules that do not run.
        costs_ms: lowering -> median latency in milliseconds, if the lowering was chosen by measurement; otherwise
            empty.
        target: kind of target, and the shares that were to be removed and were removed; empty without a target.
        rounding: multiple, and parameters and multiply-accumulates that rounding up costs; empty without rounding.
        fingerprint: SHA-256 of the dense network's weights; empty for a plan that has not been carried out.
        edits_digest: SHA-256 of the edits; empty for plans of version 0.1.0, and without edits.
    """

    keep: Mapping[str, Tensor]
    layers: Mapping[str, LayerPlan]
    params: tuple[int, int]
    macs: tuple[int, int]
    joins: str
    edits: tuple[str, ...] = ()
    reasons: Mapping[str, Mapping[Reason, tuple[int, ...]]] = field(default_factory=dict)
    not_followed: tuple[Reason, ...] = ()
    costs_ms: Mapping[str, float] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    rounding: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    edits_digest: str = ""

    @property
    def masks(self) -> MaskSet:
        """Mask logits of 1 and -1 with exactly the channels open that the plan keeps open."""
        return MaskSet({name: kept.float() * 2 - 1 for name, kept in self.keep.items()})

    @property
    def sparsity(self) -> float:
        """Share of the dense network's parameters that is gone (the paper's S)."""
        return 1 - self.params[1] / self.params[0]

    @property
    def removed(self) -> dict[str, tuple[int, ...]]:
        """Layer name -> output channels that are removed."""
        gone = {name: sorted(set(range(plan.num_outputs)) - set(plan.outputs)) for name, plan in self.layers.items()}
        return {name: tuple(channels) for name, channels in gone.items() if channels}

    @property
    def closed_but_kept(self) -> dict[str, str]:
        """Site name -> why closed channels stay in the network, in words."""
        return {name: "; ".join(causes) for name, causes in self.reasons.items()}

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON values, as :meth:`save` writes them."""
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
            "edits_digest": self.edits_digest,
            "not_followed": list(self.not_followed),
            "closed_but_kept": {
                name: {why: list(channels) for why, channels in causes.items()} for name, causes in self.reasons.items()
            },
            "reasons": {
                name: [why.as_dict() for why in causes]
                for name, causes in self.reasons.items()  # in the order of "closed_but_kept"
            },
        }

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file."""
        write_json(Path(path), self.as_dict())

    @classmethod
    def load(cls, path: str | Path) -> PruningPlan:
        """Read a plan file that :meth:`save` wrote.

        Raises:
            PruningError: the file is missing, or holds no plan of this format version.
        """
        path = Path(path)
        try:
            if path.exists() and not path.is_file():  # reading a pipe would wait for ever
                raise OSError(0, "it is no file")
            about = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise PruningError(f"cannot read the plan {path}: {error.strerror}") from error
        except (RecursionError, ValueError) as error:
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
                not_followed=tuple(Reason.recorded(text) for text in about["not_followed"]),
                reasons=_reasons(about),
                costs_ms=dict(about["costs_ms"]),
                target=_target(about["target"]),
                rounding=dict(about["rounding"]),
                fingerprint=str(about["fingerprint"]),
                edits_digest=str(about.get("edits_digest", "")),
            )
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise PruningError(f"{path}: the plan is damaged ({type(error).__name__}: {error})") from error


def _reasons(about: Mapping[str, Any]) -> dict[str, dict[Reason, tuple[int, ...]]]:
    """Return why closed channels stay, and which; plan files of version 0.1.0 hold only the text of a reason."""
    found = {}
    for name, causes in about["closed_but_kept"].items():
        told = about.get("reasons", {}).get(name)
        whys = [Reason.from_dict(why) for why in told] if told is not None else map(Reason.recorded, causes)
        found[name] = {why: tuple(channels) for why, channels in zip(whys, causes.values(), strict=True)}
    return found


def _target(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outcome of a target with its kind, which plan files of version 0.1.0 do not hold."""
    names = {Target(kind, 0.5).name: kind for kind in get_args(TargetKind)}
    found = {"kind": names[about["of"]], **about} if about else {}
    if found and (
        found["kind"] not in names.values() or not all(_is_share(found[key]) for key in ("asked", "reached"))
    ):
        raise ValueError(f"the target is {str(about)[:80]}")
    return found


def _is_share(value: object) -> bool:
    """Whether a value is a number in [-1, 1]; a network that grew has lost a negative share."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1 <= value <= 1


def digest(edits: Sequence[Edit]) -> str:
    """Return the SHA-256 of what edits do to which channels; an empty string for no edits.

    The values of constants are left out, since their last bits depend on the processor. So are properties that an edit
    does not have, so that a digest stays when later versions know more of them.
    """
    if not edits:
        return ""
    without_values = [
        {
            **{key: value for key, value in edit.as_dict().items() if value is not None},
            "operands": {str(k): _structure(change) for k, change in edit.operands.items()},
            "results": [None if change is None else _structure(change) for change in edit.results],
            "fixed": {str(k): shape for k, (shape, _) in edit.fixed.items()},
        }
        for edit in edits
    ]
    return hashlib.sha256(json.dumps(without_values, sort_keys=True).encode()).hexdigest()


def _structure(change: Regather | Split | Merge) -> list[Any]:
    """Return a rearrangement without the values of its constants."""
    if not isinstance(change, Regather):
        return [change.dim, change.index, change.order, getattr(change, "heads", 0)]
    return [change.dim, change.index, change.present, len(change.constants)]


def fingerprint(model: nn.Module) -> str:
    """Return the SHA-256 of the names, shapes, dtypes and bytes of a model's parameters and buffers."""
    return tensors_digest(state_tensors(model))
