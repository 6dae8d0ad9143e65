"""What becomes of a network some of whose calls were edited."""

import copy

import pytest
import torch
from awkward import masks_for
from cases import torchvision_network
from torch import nn
from torch.utils.checkpoint import checkpoint

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


class Checkpointed(nn.Module):
    """Blocks that run again for their gradients, if they are told so."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 3)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 20), nn.GELU(), nn.Linear(20, 16)) for _ in range(2)
        )
        self.again = None

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + (block(x) if self.again is None else checkpoint(block, x, use_reentrant=self.again))
        return self.head(self.norm(x).mean(1))


@pytest.mark.filterwarnings("ignore:None of the inputs")
@pytest.mark.parametrize("again", [True, False])
def test_gradient_checkpointing_inside_a_slim_network_is_an_error(again):
    torch.manual_seed(0)
    model, x = Checkpointed().double(), torch.randn(3, 4, 6, dtype=torch.float64)
    slim = prune(model.eval(), masks_for(model, x, "all", 0, 0.5), x, tolerance=1e-10).model
    slim(x).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in slim.parameters()]
    slim.zero_grad()
    checkpoint(slim, x.requires_grad_(), use_reentrant=again).square().sum().backward()  # around the whole network
    assert all(torch.allclose(p.grad, g) for p, g in zip(slim.parameters(), expected, strict=True))
    slim.model.again = again
    with torch.no_grad():
        assert torch.equal(slim(x), slim(x))
    with pytest.raises(ModelError, match=r"under torch\.utils\.checkpoint.*switch gradient checkpointing off"):
        slim(x)


def test_a_forward_pass_that_takes_another_path_is_an_error(rewired):
    slim, _ = rewired
    other = copy.deepcopy(slim)
    other.model.conv1 = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.ReLU())
    with pytest.raises((ModelError, RuntimeError)):
        other(torch.randn(2, 3, 64, 64))
