"""Whether gradients reach the gates of a network, without which no mask can be learned."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..data.batch import Input
from ..errors import ModelError
from ..gates.gated_model import GatedModel
from ..gates.masks import GateSite
from ..tracing import logits_of, run


def check_gradients(model: nn.Module, sites: Sequence[GateSite], example: Input) -> None:
    """Check that every gate that changes the logits gets a gradient from them.

    Args:
        model: network in eval mode; never changed.
        sites: its gate sites.
        example: its input.

    Raises:
        ModelError: some gates get none, or the backward pass fails.
    """
    gated = GatedModel(copy.deepcopy(model).requires_grad_(False), sites, nn.Identity())
    gates = [torch.ones(site.num_channels, requires_grad=True) for site in sites]
    logits = _logits(gated, gates, example)
    if logits.requires_grad:
        try:
            logits.float().logsumexp(1).sum().backward()
        except RuntimeError as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"the network's backward pass fails ({reason}): switch gradient checkpointing off, which runs parts of "
                "it again without gates"
            ) from error
    for k, site in enumerate(sites):
        if gates[k].grad is None:
            others = [gate.detach() / (1 + (i == k)) for i, gate in enumerate(gates)]
            if not torch.equal(_logits(gated, others, example), logits):
                raise ModelError(
                    f"no gradient reaches the gates of '{site.name}', so no mask can be learned: take torch.no_grad, "
                    "torch.inference_mode, detach and gradient checkpointing out of the forward pass"
                )


def _logits(gated: GatedModel, gates: Sequence[Tensor], example: Input) -> Tensor:
    """The logits under some gates."""
    with gated.gating(gates):
        return logits_of(run(gated.model, example))
