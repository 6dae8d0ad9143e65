"""What decides the masks of a search, by which a saved state is recognised."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..data.loader import BatchLoader
from ..digests import tensors_digest
from ..distributed import world
from ..version import __version__
from .assembly import Search
from .training_data import TrainingData

_LONGEST = 120  # characters of a value that a message shows


def identity_of(search: Search) -> dict[str, str]:
    """Everything that decides the masks of a search: what it is called -> its value, or a digest of it.

    Of a loader that is no :class:`bise_prune.data.BatchLoader`, whose inputs may be changed at random, only the labels
    are told apart, and of such a validation loader whether there is one.
    """
    network, data = search.network, search.data
    settings = {field.name: repr(getattr(search.config, field.name)) for field in dataclasses.fields(search.config)}
    batches = data.in_memory
    return {
        **settings,
        "the network's weights": search.weights,
        "the network's forward pass": network.trace.fingerprint,
        "the masks it starts from": search.state.started_at,
        "the training data": _training_data(data, search.labels.known.target, search.labels.known.bias),
        "the batches": ""
        if batches is None
        else repr((batches.batch_size, batches.shuffle, batches.seed, batches.stratified)),
        "the validation data": _validation_data(search),
        "the aligned bias values": repr(search.labels.aligned.tolist()),
        "the number of processes": repr(world()[1]),
        "the version of torch": str(torch.__version__),
        "the version of bise-prune": __version__,
    }


def differences(saved: Mapping[str, str], present: Mapping[str, str]) -> list[str]:
    """What differs between the identities of two searches, with the values where these are short."""
    found = []
    for name in [*present, *(name for name in saved if name not in present)]:
        one, other = saved.get(name, "nothing"), present.get(name, "nothing")
        if one != other:
            found.append(f"{name} ({one} there, {other} here)" if _is_shown(one) and _is_shown(other) else name)
    return found


def _is_shown(value: str) -> bool:
    """Whether a message shows a value: not if it is long or a digest."""
    return len(value) <= _LONGEST and not re.fullmatch(r"[0-9a-f]{32,}", value)


def _training_data(data: TrainingData, target: Tensor, bias: Tensor) -> str:
    """Digest of the training data."""
    if data.in_memory is not None:
        return data.in_memory.data.fingerprint
    rows, counts = torch.cat([target[:, None], bias], 1).cpu().unique(dim=0, return_counts=True)
    return tensors_digest({"labels": rows, "counts": counts})


def _validation_data(search: Search) -> str:
    """Digest of the validation data."""
    if search.validation is None:
        return "none"
    loader = search.validation.loader
    return loader.data.fingerprint if isinstance(loader, BatchLoader) else "some"
