"""A network with a single logit is one with two."""

import pytest
import torch
from cases import images
from torch import nn

from bise_prune.app.one_logit import with_two_logits
from bise_prune.errors import ModelError


def _network(*tail):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 1), *tail)


def test_its_softmax_is_the_sigmoid_of_the_logit():
    model, inputs = _network().eval(), images(size=8)
    two = with_two_logits(model, inputs)
    assert torch.allclose(two(inputs).softmax(1)[:, 1:], model(inputs).sigmoid(), atol=1e-6)
    assert model[4].out_features == 1 and two[4].out_features == 2
    model[4].bias = None
    assert with_two_logits(model, inputs)(inputs).shape == (len(inputs), 2)


class Squeezed(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x)[:, 0]


@pytest.mark.parametrize("model", [_network(nn.Sigmoid()), Squeezed(_network())])
def test_what_takes_the_logit_apart_says_what_to_do(model):
    with pytest.raises(ModelError, match=r"the network has a single logit.*give the network two outputs"):
        with_two_logits(model.eval(), images(size=8))
