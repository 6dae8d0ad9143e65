"""Learned masks and the outputs that they gate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import ModelError
from ..files import atomic_path

MASK_FORMAT = "bise-prune masks"
MASK_VERSION = "1"
_STATE = "state/"  # in front of the names of tensors that are no mask logits


@dataclass(frozen=True)
class GateCall:
    """One gated output: which call of the forward pass it is, and where its channels lie.

    Attributes:
        function: canonical name of the function that is called: a nonlinearity, "linear", or "layer_norm", which then
            takes its statistics over open channels only and lets closed ones pass as they are.
        count: how many counted calls of that name come before it in a forward pass.
        dim: the channel dimension of the output.
        layer: the layer that produces these channels; None where several do (after a concatenation).
    """

    function: str
    count: int
    dim: int
    layer: str | None

    @property
    def key(self) -> tuple[str, int]:
        """What a running forward pass finds the call by; see :attr:`bise_prune.tracing.Call.key`."""
        return self.function, self.count

    @property
    def is_layer_norm(self) -> bool:
        """Whether the gate changes a layer norm's statistics instead of multiplying an output."""
        return self.function == "layer_norm"


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
