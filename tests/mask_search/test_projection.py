"""Projection keeps a network within a share of its cost."""

import pytest
import torch
from cases import images, network

from bise_prune import gate_sites
from bise_prune.config import Rounding
from bise_prune.gates.ranking import least_open
from bise_prune.mask_search.gate_cost import GateCost
from bise_prune.mask_search.projection import Projection
from bise_prune.pruning.planner import Planner
from bise_prune.tracing import trace


def projection(name="simple_convnet", floor=0.05, multiple=1):
    model = network(name)
    sites = gate_sites(model, images())
    cost = GateCost(trace(model, images()), model, sites, multiple=multiple)
    return Projection(cost, [site.num_channels for site in sites], floor), model, sites


@pytest.mark.parametrize("share", [0.9, 0.5, 0.25])
@pytest.mark.parametrize("name", ["simple_convnet", "mlp", "resnet"])
def test_it_closes_the_lowest_channels_and_no_more_than_needed(name, share):
    project, _, _ = projection(name)
    worth = torch.randn(sum(project.sizes), generator=torch.Generator().manual_seed(1))
    kept = project.kept(worth, share)
    assert project.cost(kept.float()) <= share
    start = 0
    protected = torch.zeros_like(kept)
    for size in project.sizes:
        part = slice(start, start + size)
        protected[part][worth[part].topk(least_open(size, 0.05)).indices] = True
        start += size
    assert kept[protected].all()
    free = ~protected
    assert worth[free & ~kept].max() < worth[free & kept].min()  # the lowest ones are closed
    last = torch.where(free & ~kept, worth, -torch.inf).argmax()
    wider = kept.clone()
    wider[last] = True
    assert project.cost(wider.float()) > share or wider.sum() - kept.sum() > 1  # one more would not fit


def test_the_channels_without_room_are_worth_least_for_what_they_cost():
    project, model, sites = projection()
    generator = torch.Generator().manual_seed(2)
    worth = torch.rand(sum(project.sizes), generator=generator)
    closed = torch.arange(len(worth)) % 7 == 0
    out = project.without_room(worth, closed, 0.4)
    kept = ~closed & ~out
    assert bool(out.any()) and not bool((out & closed).any()) and project.cost(kept.float()) <= 0.4
    per_cost = worth / project.savings((~closed).float())
    protected = project.protected(torch.where(closed, -torch.inf, per_cost))
    assert per_cost[out].max() < per_cost[kept & ~protected].min()
    keep = dict(zip((site.name for site in sites), kept.split(project.sizes), strict=True))
    plan = Planner(model, sites, images()).propose(keep, "expand").plan
    assert plan.macs[1] / plan.macs[0] == pytest.approx(project.cost(kept.float()), abs=0.02)  # as after the removal


@pytest.mark.parametrize("name", ["mlp", "resnet"])
def test_widths_are_whole_multiples_and_hold_the_best_channels(name):
    project, model, sites = projection(name, multiple=4)
    for seed in range(5):
        worth = torch.randn(sum(project.sizes), generator=torch.Generator().manual_seed(seed))
        kept = project.kept(worth, 0.5)
        keep = dict(zip((site.name for site in sites), kept.split(project.sizes), strict=True))
        plan = Planner(model, sites, images(), rounding=Rounding(multiple=4)).propose(keep, "expand").plan
        assert plan.macs[1] / plan.macs[0] <= 0.5
        for own, part in zip(kept.split(project.sizes), worth.split(project.sizes), strict=True):
            assert int(own.sum()) in (*range(4, len(own), 4), len(own))
            assert part[own].min() > part[~own].max() if not bool(own.all()) else True


def test_channels_that_always_stay_open_have_their_widths_filled():
    project, _, _ = projection("simple_convnet", multiple=4)
    kept = project.kept(torch.randn(sum(project.sizes)), 0.1)
    assert [int(part.sum()) for part in kept.split(project.sizes)] == [4, 4, 4]
    assert not project.reaches(0.1) and project.reaches(project.cost(kept.float()))


def test_rounded_widths_are_not_filled_with_channels_that_were_closed():
    project, _, _ = projection("mlp", multiple=4)
    worth = torch.rand(sum(project.sizes), generator=torch.Generator().manual_seed(3))
    closed = torch.arange(len(worth)) % 3 == 0
    out = project.without_room(worth, closed, 0.5)
    assert bool(out.any()) and not bool((out & closed).any())
    assert project.cost((~closed & ~out).float()) <= 0.5


def test_a_network_that_fits_has_room_for_all_its_channels():
    project, _, _ = projection()
    worth, closed = torch.linspace(-1, 1, sum(project.sizes)), torch.arange(sum(project.sizes)) % 2 == 0
    assert not project.without_room(worth, closed, 1.0).any()
    assert not project.without_room(worth, closed, project.cost((~closed).float())).any()


def test_savings_are_what_closing_one_channel_saves():
    project, _, _ = projection("mlp")
    ones = torch.ones(sum(project.sizes))
    savings = project.savings(ones)
    for channel in range(0, len(ones), 5):
        without = ones.clone()
        without[channel] = 0
        assert savings[channel] == pytest.approx(project.cost(ones) - project.cost(without), rel=0.2)


def test_a_layer_floor_stays_open_even_if_it_costs_more():
    project, _, _ = projection(floor=0.9)
    kept = project.kept(torch.randn(sum(project.sizes)), 0.1)
    assert [int(part.sum()) for part in kept.split(project.sizes)] == [least_open(n, 0.9) for n in project.sizes]
