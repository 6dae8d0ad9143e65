"""A benchmark of seconds: digits, a small network, two epochs."""

import dataclasses
from pathlib import Path

import torch
from tables import cases
from tables.settings import Data, Recipe, Setting

from bise_prune import SearchConfig
from bise_prune.config import FinetuneConfig
from bise_prune.data import load_data
from bise_prune.models import build_model

NETWORK = {"kernel_size": 3, "widths": [8, 8], "strides": [2, 2]}


def load(root, rho, seed):
    splits = load_data(f"digits,samples=1000,rho={rho},seed={seed}")
    parts = {
        name: data.subset(torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:300])
        for name, data in splits.by_name.items()
    }
    return Data(parts["train"], dataclasses.replace(splits, **parts))


def tiny(**changes):
    setting = Setting(
        "digits",
        "small",
        "a test",
        load,
        lambda root, work: build_model("simple_convnet", 10, NETWORK),
        Recipe(lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9), 2, 50),
        SearchConfig(anneal_every=1, head_epochs=1, min_temperature=0.4),
        FinetuneConfig(epochs=1),
        rhos=(0.9,),
        ffw_epochs=1,
    )
    return dataclasses.replace(setting, **changes)


def case_in(folder, clock=None, **changes):
    return cases.Case(tiny(**changes), 0.9, 0, Path(), folder, "cpu", clock or cases.Clock())


class Steps(cases.Clock):
    """Time is over after so many questions."""

    def __init__(self, count):
        super().__init__(1.0)
        self.count = count

    def is_over(self):
        self.count -= 1
        return self.count < 0
