"""A search meets its budget."""

import pytest
import torch
from cases import biased_data, images, slow

from bise_prune import SearchConfig, gate_sites, search
from bise_prune.config import Budget
from bise_prune.data import BatchLoader
from bise_prune.errors import ConfigError
from bise_prune.models.simple_convnet import SimpleConvNet
from bise_prune.pruning.planner import Planner
from bise_prune.tuning.vanilla import train_vanilla


@pytest.mark.parametrize("of", ["flops", *slow("params")])
@pytest.mark.parametrize("share", [0.3, *slow(0.6)])
def test_a_search_meets_its_budget(share, of):
    torch.manual_seed(0)
    model = SimpleConvNet(3, widths=(24, 32, 40), kernel_size=3)
    loader = BatchLoader(biased_data(n=240), 20, shuffle=True)
    train_vanilla(model, loader, torch.optim.Adam(model.parameters(), lr=0.01), epochs=3)
    config = SearchConfig(
        anneal_every=2, min_temperature=0.02, head_epochs=2, mask_lr=0.1, budget=Budget(share=share, of=of)
    )
    found = search(model, loader, config)
    sites = gate_sites(model, images())
    plan = Planner(model, sites, images()).propose(found.last.keep, "expand").plan
    dense, slim = plan.macs if of == "flops" else plan.params
    assert slim / dense == pytest.approx(found.history[-1].cost, abs=0.02)
    assert found.history[-1].cost <= share + 0.03
    assert all(int(mask.sum()) >= 1 for mask in found.last.keep.values())
    free = search(model, loader, SearchConfig(anneal_every=2, min_temperature=0.02, head_epochs=2, mask_lr=0.1))
    assert free.history[-1].cost is None


def test_a_budget_may_come_down_during_the_search():
    torch.manual_seed(0)
    model = SimpleConvNet(3, widths=(24, 32, 40), kernel_size=3)
    loader = BatchLoader(biased_data(n=240), 20, shuffle=True)
    options = dict(anneal_every=2, min_temperature=0.02, head_epochs=2, mask_lr=0.1, initial_logit=0.02)
    at_once, slowly = (
        search(model, loader, SearchConfig(**options, budget=Budget(share=0.3, descent=descent)))
        for descent in (0.0, 0.5)
    )
    epochs = 12
    assert len(slowly.history) > epochs / 2  # it does not stop on the way
    for record in slowly.history[: epochs // 2]:
        assert record.cost > 1 - 0.7 * record.epoch / (epochs / 2) - 0.3  # not far below what is allowed then
    assert slowly.history[1].cost > at_once.history[1].cost
    assert slowly.history[-1].cost <= 0.33
    with pytest.raises(ConfigError, match="budget descent"):
        Budget(share=0.3, descent=1.0)
