"""What becomes of a network some of whose calls were edited."""

import copy

import pytest
import torch
from awkward import masks_for
from cases import torchvision_network
from torch import nn

from bise_prune import prune
from bise_prune.errors import ModelError


@pytest.mark.slow
def test_it_is_copied_compiled_and_moved(rewired):
    slim, inputs = rewired
    expected = slim(inputs)
    assert torch.equal(copy.deepcopy(slim)(inputs), expected)
    assert torch.allclose(slim.double()(inputs.double()).float(), expected, rtol=0, atol=1e-5)
    slim.float()
    torch.compiler.reset()
    assert torch.equal(torch.compile(slim, backend="eager", fullgraph=True)(inputs), expected)


def test_stochastic_depth_does_not_disturb_the_count():
    model, inputs = torchvision_network("efficientnet_b0"), torch.randn(2, 3, 64, 64)
    result = prune(model, masks_for(model, inputs, "paper", 0, 0.5), inputs, joins="expand")
    slim = result.model.train()
    for module in slim.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert torch.allclose(slim(inputs), result.masked(inputs), rtol=0, atol=1e-3)
    assert slim.training and slim.model.training


def test_a_forward_pass_that_takes_another_path_is_an_error(rewired):
    slim, _ = rewired
    other = copy.deepcopy(slim)
    other.model.conv1 = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.ReLU())
    with pytest.raises((ModelError, RuntimeError)):
        other(torch.randn(2, 3, 64, 64))
