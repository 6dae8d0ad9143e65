"""An independent engine agrees where it is right."""

import copy

import pytest
import torch
from awkward import error_of, masks_for
from cases import slow, torchvision_network
from torch import nn

from bise_prune import gate_sites, prune


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*slow("vgg11_bn"), "resnet18"])
def test_simplify_agrees_where_it_is_right(name):
    simplify = pytest.importorskip("simplify").simplify
    model, inputs = torchvision_network(name).double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    sites = gate_sites(model, inputs, "tied")
    masks = masks_for(model, inputs, "tied", 0, 0.5)
    result = prune(model, masks, inputs)
    zeroed = copy.deepcopy(model)
    modules = dict(zeroed.named_modules())
    names = list(modules)
    with torch.no_grad():
        for site in sites:
            layers = [call.layer for call in site.calls]
            layers += [
                x.replace("conv2", "downsample.0") for x in layers if x.replace("conv2", "downsample.0") in names
            ]
            for layer in dict.fromkeys(layers):
                following = modules[names[names.index(layer) + 1]]
                for module in (modules[layer], following):
                    if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
                        module.weight[~masks.keep[site.name]] = 0
                        if module.bias is not None:
                            module.bias[~masks.keep[site.name]] = 0
    assert error_of(zeroed, result.masked, inputs) == 0
    theirs = simplify(zeroed, torch.zeros(1, 3, 32, 32, dtype=torch.float64), fuse_bn=False)
    assert error_of(theirs, result.model, inputs) < 1e-12
    assert result.plan.params[1] <= sum(parameter.numel() for parameter in theirs.parameters())
