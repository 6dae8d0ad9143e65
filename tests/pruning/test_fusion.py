"""Batch norms are fused exactly, where they can be."""

import copy

import pytest
import torch
from awkward import error_of, masks_for, pictures
from cases import NETWORKS, Net, images, network, random_masks, randomise, torchvision_network
from oracles import largest_error
from torch import nn

from bise_prune import fuse_batchnorm, prune
from bise_prune.channels.edited_model import RewiredModel


@pytest.mark.parametrize("name", list(NETWORKS))
def test_fusion_is_exact(name):
    model, inputs = network(name).double(), images().double()
    fused = fuse_batchnorm(model, inputs)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in fused.modules())
    assert torch.allclose(fused(inputs), model(inputs), rtol=0, atol=1e-12)


def test_norms_over_another_dimension_or_without_statistics_stay():
    tokens = Net(
        lambda s, x: s.head(s.norm(s.a(x)).flatten(1)), a=nn.Linear(5, 6), norm=nn.BatchNorm1d(6), head=nn.Linear(36, 3)
    )
    plain = Net(
        lambda s, x: s.head(s.norm(s.a(x)).mean((2, 3))),
        a=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4, track_running_stats=False), head=nn.Linear(4, 3),
    )  # fmt: skip
    for model, inputs in ((tokens, torch.randn(2, 6, 5)), (plain, images())):
        randomise(tokens, 0)
        model.eval()
        fused = fuse_batchnorm(model, inputs)
        assert isinstance(fused.norm, nn.modules.batchnorm._BatchNorm)
        assert torch.equal(fused(inputs), model(inputs))


def test_fusion_after_pruning():
    model, inputs = network("resnet"), images()
    result = prune(model, random_masks(model, inputs, "paper"), inputs, joins="expand")
    fused = fuse_batchnorm(result.model, inputs)
    assert isinstance(fused, RewiredModel)
    assert largest_error(result.model, fused, inputs) < 1e-5  # float32 weights
    assert (
        largest_error(fuse_batchnorm(copy.deepcopy(result.model).double(), inputs.double()), result.model, inputs)
        < 1e-9
    )


class Shared(nn.Module):
    """Norms that must stay: one behind a layer that something else reads too, one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.b, self.norm_b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.c, self.norm_c = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x):
        h = self.a(x)
        h = h + self.norm_a(h)
        h = self.norm_b(torch.relu(self.norm_b(self.b(h))))
        return self.head(torch.relu(self.norm_c(self.c(h.mean((2, 3))))))


def test_only_norms_that_alone_read_a_layer_are_fused():
    model = Shared()
    randomise(model, 0)
    model = model.eval().double()
    inputs = images().double()
    fused = fuse_batchnorm(model, inputs)
    kept = [name for name, module in fused.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert kept == ["norm_a", "norm_b"]
    assert torch.allclose(fused(inputs), model(inputs), rtol=0, atol=1e-12)


def test_norms_after_transposed_and_grouped_layers_are_fused():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 49, 5), nn.BatchNorm1d(5),
    )  # fmt: skip
    randomise(model, 0)
    model.eval().double()
    fused = fuse_batchnorm(model, pictures())
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in fused.modules())
    assert error_of(model, fused, pictures()) < 1e-12


def test_norms_that_are_rearranged_on_their_way_keep_their_edits_when_others_are_fused():
    model, inputs = torchvision_network("densenet121").double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    result = prune(model, masks_for(model, inputs, "paper", 0, 0.5), inputs, joins="expand")
    assert any(edit.function == "batch_norm" for edit in result.model.edits)
    fused = fuse_batchnorm(result.model, inputs)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (result.model, fused)]
    assert norms[1] < norms[0]
    assert error_of(result.model, fused, inputs) < 1e-12
