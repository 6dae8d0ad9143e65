"""Networks with a single logit, whose sigmoid is the probability of the second of two classes."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..data.batch import Input
from ..errors import ModelError
from ..gates.bottleneck import head_name
from ..tracing import logits_of, run, trace

ONE_LOGIT = "the network's single logit z is read as the logits 0 and z of two classes, which the slim network returns"


def with_two_logits(model: nn.Module, example: Input) -> nn.Module:
    """A copy of a network with one logit z that returns the logits 0 and z: its last layer gets a row of zeros.

    The softmax of these is the sigmoid of z.

    Args:
        model: the network; never changed.
        example: input of two samples.

    Raises:
        ModelError: the network does not end in a linear layer with one output, or takes its single logit apart.
    """
    copied = copy.deepcopy(model)
    hint = "single-logit networks are read if they end in a linear layer; otherwise give the network two outputs"
    try:
        layer = copied.get_submodule(head_name(copied, trace(copied, example)))
    except ModelError as error:
        raise ModelError(f"the network has a single logit: {error}; {hint}") from error
    assert isinstance(layer, nn.Linear)
    if layer.out_features != 1:
        raise ModelError(f"the network has a single logit, but its last layer {layer.out_features} outputs; {hint}")
    with torch.no_grad():
        layer.weight = nn.Parameter(torch.cat([torch.zeros_like(layer.weight), layer.weight]))
        if layer.bias is not None:
            layer.bias = nn.Parameter(torch.cat([torch.zeros_like(layer.bias), layer.bias]))
        layer.out_features = 2
        one, two = logits_of(run(model, example)), logits_of(run(copied, example))
    expected = torch.stack([torch.zeros_like(one.reshape(-1)), one.reshape(-1)], 1)
    if two.shape != expected.shape or not torch.allclose(two, expected, rtol=1e-4, atol=1e-5):
        raise ModelError(f"the network has a single logit, which its forward pass takes apart; {hint}")
    return copied
