"""Learned mask logits, the outputs that they gate, and the mask file."""

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
_STATE = "state/"  # prefix of the names of tensors other than mask logits
_BEFORE = "norms_trained_before"  # note that tells where these come from


@dataclass(frozen=True)
class GateCall:
    """One gated output: which call of the forward pass it is, and where its channels lie.

    Attributes:
        function: canonical name of the function: a nonlinearity, "linear", "layer_norm", or one that merges the heads
            of attention. A gated layer norm computes its statistics over open channels only and passes closed ones
            unchanged, unless ``multiplies``.
        count: number of counted calls of that name before this call in a forward pass.
        dim: the channel dimension of the output.
        layer: name of the layer that produces these channels; None if there are several (after a concatenation).
        entries: for each channel of the output the entry of the mask that gates it, -1 = it is not gated; None = there
            is one entry per channel, in order.
        multiplies: whether a gate on a layer norm multiplies its output, as any other gate does.
    """

    function: str
    count: int
    dim: int
    layer: str | None
    entries: tuple[int, ...] | None = None
    multiplies: bool = False

    def spread(self, mask: Tensor, ungated: float) -> Tensor:
        """Return one number per channel of the output.

        Args:
            mask: one number per entry of the mask, of shape (..., entries).
            ungated: the number for channels that are not gated.

        Returns:
            Tensor of shape (..., channels).
        """
        if self.entries is None:
            return mask
        places = torch.tensor(self.entries, device=mask.device)
        spread = mask[..., places.clamp(min=0)]
        return torch.where(places >= 0, spread, torch.full_like(spread, ungated))

    @property
    def key(self) -> tuple[str, int]:
        """Function name and count, by which a forward pass finds the call; see :attr:`bise_prune.tracing.Call.key`."""
        return self.function, self.count

    @property
    def is_layer_norm(self) -> bool:
        """Whether the gate changes the statistics of a layer norm instead of multiplying an output."""
        return self.function == "layer_norm" and not self.multiplies


@dataclass(frozen=True)
class GateSite:
    """All gates that share one mask, with one mask logit per channel.

    Attributes:
        name: name of the layer whose output channels are gated; ``"first+N"`` if N further gated outputs share the
            mask, ``"layer@N"`` for the N-th further mask on outputs of the same layer.
        num_channels: length of the mask.
        calls: the gated outputs.
        as_exported: whether the calls are those of a network that runs as exporters see it; see
            :attr:`bise_prune.tracing.Trace.as_exported`.
    """

    name: str
    num_channels: int
    calls: tuple[GateCall, ...]
    as_exported: bool = False

    @property
    def is_stream(self) -> bool:
        """Whether this gates a residual stream."""
        return "@stream" in self.name or "@zeros" in self.name


def site_layer(name: str) -> str:
    """Return the first layer whose channels the site ``name`` gates.

    >>> site_layer("layer1.0.conv2"), site_layer("conv1+2"), site_layer("conv1@1")
    ('layer1.0.conv2', 'conv1', 'conv1')
    """
    return name.partition("+")[0].partition("@")[0]


def gates_a_layer(name: str) -> bool:
    """Return whether a site gates the outputs of layers, and not heads, values or pairs inside attention or halves.

    >>> gates_a_layer("conv1+2"), gates_a_layer("conv1@1"), gates_a_layer("blocks.0.attn@heads")
    (True, True, False)
    """
    return not part_gated(name)


def part_gated(name: str) -> str:
    """Return which part of a layer, or what around it, the site ``name`` gates; "" for the outputs of layers.

    >>> part_gated("conv1@1"), part_gated("blocks.0.attn@heads.2"), part_gated("conv1@groups+1")
    ('', 'heads', 'groups')
    """
    part = name.partition("+")[0].partition("@")[2].partition(".")[0]
    return "" if part.isdigit() else part


@dataclass(frozen=True)
class MaskSet:
    """Learned mask logits m of all gate sites; a channel is closed where m < 0 (Eq. 2: sigma(m / tau) < .5).

    Attributes:
        logits: site name -> mask logits, floating-point tensor of shape (channels,), finite.
        metadata: notes on where the mask logits come from, saved with them.
        state: other parameters and buffers with which they were learned, by their name in the network's state dict: of
            batch norms, if the search was told to change them, or of norm layers that were trained before it.

    Raises:
        ModelError: mask logits are not a 1-D floating-point tensor of finite values.
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
    def trained_before(self) -> bool:
        """Whether ``state`` is of norm layers that were trained, or estimated again, before the search."""
        return bool(self.state) and self.metadata.get(_BEFORE) == "true"

    @classmethod
    def for_start(cls, state: Mapping[str, Tensor]) -> MaskSet:
        """What a search starts from if norm layers were trained before it: their tensors, and no mask logits yet.

        Args:
            state: parameters and buffers that differ, by their name in the network's state dict.
        """
        return cls({}, {_BEFORE: "true"}, state)

    def alone(self) -> MaskSet:
        """The masks without the tensors of norm layers that were trained before the search."""
        notes = {key: value for key, value in self.metadata.items() if key != _BEFORE}
        return MaskSet(self.logits, notes) if self.trained_before else self

    @property
    def keep(self) -> dict[str, Tensor]:
        """The masks: site name -> bool tensor of shape (channels,), True where the channel is kept."""
        return {name: logits >= 0 for name, logits in self.logits.items()}

    @property
    def num_channels(self) -> int:
        """Number of channels of all sites, which is the number of mask logits."""
        return sum(len(logits) for logits in self.logits.values())

    @property
    def num_closed(self) -> int:
        """Number of closed channels of all sites."""
        return sum(int((logits < 0).sum()) for logits in self.logits.values())

    def save(self, path: str | Path) -> None:
        """Write the mask logits, metadata and state to one safetensors file."""
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
        """Read a mask file that :meth:`save` wrote.

        Raises:
            ModelError: the file is missing, is no readable safetensors file, or holds no masks of this format version.
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
                names = json.loads(metadata["sites"])
                if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                    raise TypeError("the names of its sites are no list of texts")
                logits = {name: file.get_tensor(name) for name in names}
                state = {
                    name.removeprefix(_STATE): file.get_tensor(name) for name in file.keys() if name.startswith(_STATE)
                }
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} is no readable safetensors file: {error}") from error
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            raise ModelError(f"{path} is damaged ({type(error).__name__}: {error})") from error
        reserved = ("format", "version", "sites")
        return cls(logits, {key: value for key, value in metadata.items() if key not in reserved}, state)
