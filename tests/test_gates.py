import copy

import pytest
import torch
from cases import NETWORKS, TinyResNet, images, network, random_masks, torchvision_network
from oracles import masked_by_hooks
from torch import nn

from bise_prune import MaskSet, apply_masks, gate_sites
from bise_prune.errors import ConfigError, ModelError
from bise_prune.gates.step import step_gate
from bise_prune.models import build_model


def num_gates(model, inputs, placement):
    return sum(site.num_channels for site in gate_sites(model, inputs, placement))


@pytest.mark.parametrize(
    ("arch", "classes", "shape", "gates"),
    [
        ("simple_convnet", 10, (3, 28, 28), 240),
        ("mlp", 10, (3, 28, 28), 300),
        ("resnet18", 2, (3, 224, 224), 3840),
        ("resnet18", 10, (3, 32, 32), 3840),
    ],
)
def test_gate_counts_of_the_paper(arch, classes, shape, gates):
    assert num_gates(build_model(arch, classes), torch.randn(1, *shape), "paper") == gates


def test_resnet18_has_two_gates_a_block_and_none_on_the_stem():
    sites = gate_sites(build_model("resnet18", 10), images(size=32), "paper")
    assert [site.name for site in sites] == [
        f"layer{i}.{j}.conv{k}" for i in range(1, 5) for j in range(2) for k in (1, 2)
    ]


def test_tied_sites_of_resnet18_are_its_dependency_groups():
    sites = gate_sites(build_model("resnet18", 10), images(size=32), "tied")
    assert sorted(site.num_channels for site in sites) == sorted([64] * 3 + [128] * 3 + [256] * 3 + [512] * 3)
    stem = sites[0]
    assert stem.name == "conv1+2"
    assert [call.layer for call in stem.calls] == ["conv1", "layer1.0.conv2", "layer1.1.conv2"]


def test_sites_are_found_for_functions_and_methods_as_for_modules():
    sites = gate_sites(network("functional"), images(), "paper")
    assert [(site.name, site.num_channels) for site in sites] == [("a", 5), ("b", 4), ("c", 9)]


def test_sigmoids_that_scale_are_no_sites():
    names = [site.name for site in gate_sites(network("separable"), images(), "paper")]
    assert "excite" not in names
    assert "squeeze" in names


def test_channels_last_networks_are_gated_on_their_last_dimension():
    (site,) = gate_sites(network("token_mixer"), images(), "paper")
    assert (site.name, site.num_channels, site.calls[0].dim) == ("up", 16, 2)


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


def test_frozen_weights_are_tied_as_well():
    model = network("resnet").requires_grad_(False)
    assert len(gate_sites(model, images(), "tied")) == 6
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_step_gate_is_the_step_with_the_sigmoids_slope():
    logits = torch.tensor([-2.0, -1e-30, 0.0, 0.5], dtype=torch.float64, requires_grad=True)
    gate = step_gate(logits, 0.25)
    assert gate.tolist() == [0, 0, 1, 1]
    gate.sum().backward()
    expected = torch.autograd.functional.jacobian(lambda m: torch.sigmoid(m / 0.25), logits.detach()).diagonal()
    assert torch.allclose(logits.grad, expected)


@pytest.mark.parametrize(("temperature", "slope"), [(1.0, 0.25), (2.0**-10, 256.0)])
def test_slope_at_zero(temperature, slope):
    logits = torch.zeros(1, requires_grad=True)
    step_gate(logits, temperature).sum().backward()
    assert logits.grad.item() == slope


def test_masks_of_another_network_are_refused():
    masks = random_masks(network("mlp"), images(), "paper")
    with pytest.raises(ModelError, match="do not belong to this network"):
        apply_masks(network("resnet"), masks, images())


def test_a_network_may_end_in_a_convolution():
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    (site,) = gate_sites(nn.Sequential(*layers), images())
    assert site.name == "0"  # not the classifier's own channels


def test_a_network_without_a_classifier_is_refused():
    with pytest.raises(ModelError, match="not the channels of one linear or convolutional layer"):
        gate_sites(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Softmax(1)), images())


def test_a_network_without_nonlinearities_is_refused():
    with pytest.raises(ModelError, match="nothing to gate"):
        gate_sites(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), images())


def test_functions_called_by_keyword_are_followed():
    class Keywords(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = nn.Conv2d(3, 4, 3), nn.Linear(8, 3)

        def forward(self, x):
            h = nn.functional.relu(input=nn.functional.conv2d(input=x, weight=self.a.weight, bias=self.a.bias))
            h = torch.cat(tensors=[h, h], dim=1).mean(dim=[2, 3])
            return nn.functional.linear(input=h, weight=self.head.weight, bias=self.head.bias)

    (site,) = gate_sites(Keywords(), images(), "paper")
    assert (site.name, site.num_channels) == ("a", 4)


def test_unknown_placement():
    with pytest.raises(ConfigError, match="choose one of tied, paper"):
        gate_sites(network("mlp"), images(), "everywhere")


@pytest.mark.parametrize(("name", "paper", "tied"), [("mobilenet_v2", 34, 18), ("densenet121", 120, 58)])
def test_other_architectures_have_sites(name, paper, tied):
    model = torchvision_network(name)
    assert len(gate_sites(model, images(size=32), "paper")) == paper
    assert len(gate_sites(model, images(size=32), "tied")) >= tied
