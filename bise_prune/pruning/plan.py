"""The plan of a removal: which channels stay in which layer, and its file."""

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

from ..channels import Edit, Regather
from ..config import Target, TargetKind
from ..errors import PruningError
from ..files import write_json
from ..tracing import Reason

PLAN_FORMAT = "bise-prune plan"
PLAN_VERSION = 1


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
        target: for a ranking, its kind, what was asked for and reached, as shares that are gone; empty without one.
        rounding: what rounding widths up gave back; empty without it.
        fingerprint: of the dense model's weights; empty for plans that were never tied to a file.
        edits_digest: SHA-256 of the edits in full; empty for plans of version 0.1.0, and where nothing is edited.
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
            "edits_digest": self.edits_digest,
            "not_followed": list(self.not_followed),
            "closed_but_kept": {
                name: {why: list(channels) for why, channels in causes.items()} for name, causes in self.reasons.items()
            },
            "reasons": {
                name: [why.as_dict() for why in causes]
                for name, causes in self.reasons.items()  # in the same order
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
    """Why closed channels stay, and which; version 0.1.0 wrote the words alone."""
    found = {}
    for name, causes in about["closed_but_kept"].items():
        told = about.get("reasons", {}).get(name)
        whys = [Reason.from_dict(why) for why in told] if told is not None else map(Reason.recorded, causes)
        found[name] = {why: tuple(channels) for why, channels in zip(whys, causes.values(), strict=True)}
    return found


def _target(about: Mapping[str, Any]) -> dict[str, Any]:
    """A target's outcome with its kind, which version 0.1.0 did not write."""
    names = {Target(kind, 0.5).name: kind for kind in get_args(TargetKind)}
    return {"kind": names[about["of"]], **about} if about else {}


def digest(edits: Sequence[Edit]) -> str:
    """SHA-256 of what edits do to which channels; empty for none.

    The values of constants are left out: their last bits depend on the processor.
    """
    if not edits:
        return ""
    without_values = [
        {
            **edit.as_dict(),
            "operands": {str(k): _structure(change) for k, change in edit.operands.items()},
            "results": [None if change is None else _structure(change) for change in edit.results],
            "fixed": {str(k): shape for k, (shape, _) in edit.fixed.items()},
        }
        for edit in edits
    ]
    return hashlib.sha256(json.dumps(without_values, sort_keys=True).encode()).hexdigest()


def _structure(change: Regather) -> list[Any]:
    return [change.dim, change.index, change.present, len(change.constants)]


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the names, shapes and bytes of a model's weights."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            continue
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
