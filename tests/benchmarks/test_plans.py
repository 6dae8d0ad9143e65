"""Plans name runs and settings that exist, and the full settings are the paper's."""

from pathlib import Path

import pytest
import torch
from tables import methods
from tables.paper import TABLES
from tables.plans import PLANS
from tables.settings import setting_of


def test_plans_name_runs_and_settings_that_exist():
    for plan in PLANS.values():
        assert set(plan.methods) <= set(methods.METHODS)
        assert set(plan.full_only) <= set(plan.methods)
        assert plan.rhos("full" if plan.name == "multi_color_mnist" else "small")
    assert PLANS["1"].rhos("full") == (0.99, 0.995, 0.997, 0.999) and PLANS["K"].rhos("full") == (0.99, 0.995, 0.997)
    wanted = {(row.method, row.rho) for table in TABLES if table.setting == "biased_mnist" for row in table.rows}
    planned = {
        (method, rho) for plan in PLANS.values() if plan.name == "biased_mnist" for method in plan.runs("full")
        for rho in plan.rhos("full")
    }  # fmt: skip
    assert wanted <= planned


@pytest.mark.parametrize("rho", [0.99, 0.999])
def test_the_full_settings_are_the_papers(rho):
    setting = setting_of("biased_mnist", "full").at(setting_of("biased_mnist", "full"), rho)
    assert sum(p.numel() for p in setting.network(Path(), Path()).parameters()) == 531_210
    assert (setting.search.head_epochs, setting.search.anneal_every, setting.finetune.epochs) == (50, 10, 50)
    assert setting.search.rho == setting.finetune.rho == (rho,)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = setting.recipe.optimizer([parameter])
    scheduler, rates = setting.recipe.scheduler(optimizer), []
    for _ in range(setting.recipe.epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    cuts = [epoch for epoch in range(1, len(rates)) if rates[epoch] < rates[epoch - 1]]
    assert (len(rates), cuts, rates[0]) == ((80, [40, 60], 0.1) if rho < 0.997 else (100, [80, 90], 0.1))
