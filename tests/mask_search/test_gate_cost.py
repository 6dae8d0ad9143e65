"""The cost of a gated network against what removal leaves of it."""

import pytest
import torch
from cases import NETWORKS, images, network, random_masks, torchvision_network

from bise_prune import gate_sites
from bise_prune.config import Rounding
from bise_prune.mask_search.gate_cost import GateCost
from bise_prune.pruning.planner import Planner
from bise_prune.tracing import trace


def both(model, inputs, masks, placement, joins, of, multiple=1):
    """The cost as a function of the gates, and what the planner counts."""
    sites = gate_sites(model, inputs, placement)
    cost = GateCost(trace(model, inputs), model, sites, of, joins, multiple)
    plan = Planner(model, sites, inputs, rounding=Rounding(multiple=multiple)).propose(masks.keep, joins).plan
    gates = [masks.keep[site.name].double() for site in sites]
    counted = plan.macs if of == "flops" else plan.params
    return float(cost(gates)), counted[1] / counted[0]


@pytest.mark.parametrize("of", ["flops", "params"])
@pytest.mark.parametrize("joins", ["expand", "intersection"])
@pytest.mark.parametrize("placement", ["tied", "paper"])
@pytest.mark.parametrize("name", ["simple_convnet", "mlp", "resnet"])
def test_cost_is_what_removal_leaves(name, placement, joins, of):
    model, inputs = network(name), images()
    for seed in range(5):
        masks = random_masks(model, inputs, placement, seed)
        ours, planned = both(model, inputs, masks, placement, joins, of)
        assert ours == pytest.approx(planned, abs=0.02 if of == "params" else 1e-9)  # carriers and biases apart


@pytest.mark.parametrize("multiple", [2, 4, 8])
@pytest.mark.parametrize("of", ["flops", "params"])
@pytest.mark.parametrize("joins", ["expand", "intersection"])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_widths_are_counted_as_they_are_rounded_up(name, joins, of, multiple):
    model, inputs = network(name), images()
    for seed in range(3):
        masks = random_masks(model, inputs, "tied", seed)
        ours, planned = both(model, inputs, masks, "tied", joins, of, multiple)
        assert ours == pytest.approx(planned, abs=0.03 if of == "params" else 1e-9)


def test_a_rounded_cost_has_the_slopes_of_single_channels():
    model, inputs = network("mlp"), images()
    sites = gate_sites(model, inputs)
    slopes = []
    for multiple in (1, 1000):
        cost = GateCost(trace(model, inputs), model, sites, multiple=multiple)
        ones = [torch.ones(site.num_channels, dtype=torch.float64, requires_grad=True) for site in sites]
        slopes.append(torch.cat(torch.autograd.grad(cost(ones), ones)))
    assert torch.allclose(*slopes)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_cost_is_near_what_removal_leaves_of_unusual_networks(name):
    model, inputs = network(name), images()
    masks = random_masks(model, inputs, "paper", 1)
    ours, planned = both(model, inputs, masks, "paper", "expand", "flops")
    assert ours == pytest.approx(planned, abs=0.08)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121", "efficientnet_b0", "vgg11_bn"])
def test_cost_of_torchvision_networks(name):
    model, inputs = torchvision_network(name), images(size=64)
    masks = random_masks(model, inputs, "tied", 2)
    ours, planned = both(model, inputs, masks, "tied", "expand", "flops")
    assert ours == pytest.approx(planned, abs=0.02)


def test_the_dense_network_costs_one_and_every_channel_something():
    model, inputs = network("resnet"), images()
    sites = gate_sites(model, inputs, "paper")
    cost = GateCost(trace(model, inputs), model, sites)
    gates = [torch.ones(site.num_channels, dtype=torch.float64, requires_grad=True) for site in sites]
    value = cost(gates)
    assert float(value.detach()) == 1.0
    slopes = torch.autograd.grad(value, gates)
    assert all(bool((slope > 0).all()) for slope in slopes)


def test_the_slope_is_what_closing_a_channel_saves():
    """Exact in a chain, where the cost is linear in each gate."""
    model, inputs = network("simple_convnet"), images()
    sites = gate_sites(model, inputs, "tied")
    cost = GateCost(trace(model, inputs), model, sites)
    gates = [torch.ones(site.num_channels, dtype=torch.float64, requires_grad=True) for site in sites]
    (slope,) = torch.autograd.grad(cost(gates), gates[1:2])
    closed = [gate.detach().clone() for gate in gates]
    closed[1][2] = 0
    assert float(slope[2]) == pytest.approx(1 - float(cost(closed)), rel=1e-9)


def test_latency_falls_with_the_widths():
    model, inputs = network("simple_convnet"), images(n=4)
    sites = gate_sites(model, inputs, "tied")
    cost = GateCost(trace(model, inputs), model, sites, "latency")
    ones = [torch.ones(site.num_channels, dtype=torch.float64, requires_grad=True) for site in sites]
    assert float(cost(ones).detach()) == pytest.approx(1.0)
    half = [torch.arange(site.num_channels).double() % 2 for site in sites]
    assert 0 < float(cost(half))
    assert all(slope.isfinite().all() for slope in torch.autograd.grad(cost(ones), ones))
