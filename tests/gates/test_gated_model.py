"""Gated networks against hooks, and open gates against the plain network."""

import copy

import pytest
import torch
from cases import NETWORKS, TinyResNet, images, network, random_masks
from oracles import masked_by_hooks

from bise_prune import MaskSet, apply_masks, gate_sites
from bise_prune.errors import ModelError


@pytest.mark.parametrize("placement", ["paper", "tied"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_open_gates_change_nothing(name, placement):
    model, inputs = network(name).double(), images().double()
    sites = gate_sites(model, inputs, placement)
    masks = MaskSet({site.name: torch.zeros(site.num_channels) for site in sites})  # m = 0 keeps
    assert torch.equal(apply_masks(model, masks, inputs)(inputs), model(inputs))


def test_closed_gates_are_the_hooks_of_a_plain_chain():
    model, inputs = network("simple_convnet").double(), images().double()
    masks = random_masks(model, inputs, "paper")
    by_name = {f"blocks.{i}.2": logits >= 0 for i, logits in enumerate(masks.logits.values())}
    expected = masked_by_hooks(model, by_name)(inputs)
    assert torch.equal(apply_masks(model, masks, inputs)(inputs), expected)


def test_a_module_called_twice_has_a_gate_per_call():
    model, inputs = TinyResNet().eval().double(), images().double()
    sites = gate_sites(model, inputs, "paper")
    masks = {site.name: torch.ones(site.num_channels) for site in sites}
    masks["blocks.1.conv1"][:] = -1  # the whole branch: block 1 becomes relu(bn2(conv2(0)) + x)
    block = model.blocks[1]
    h = model.blocks[0](model.stem(inputs))
    constant = block.bn2(block.conv2(torch.zeros_like(h)))
    expected = model.head(model.blocks[3](model.blocks[2](torch.relu(constant + h))).mean((2, 3)))
    assert torch.allclose(apply_masks(model, MaskSet(masks), inputs)(inputs), expected, rtol=0, atol=1e-12)


def test_the_callers_model_is_not_changed():
    model, inputs = network("resnet").train(), images()
    before = copy.deepcopy(model.state_dict())
    masks = random_masks(model, inputs, "paper")
    apply_masks(model, masks, inputs)(inputs)
    gate_sites(model, inputs, "tied")
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_masks_of_another_network_are_refused():
    masks = random_masks(network("mlp"), images(), "paper")
    with pytest.raises(ModelError, match="do not belong to this network"):
        apply_masks(network("resnet"), masks, images())
