"""Denormal weights are flushed and counted."""

import torch
from torch import nn

from bise_prune.export.denormals import flush_denormals


def test_denormal_weights_are_flushed_and_counted():
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[0, :3] = 1e-38
        model.weight[1, 0] = -1e-31
        model.weight[2, 0] = 0
    assert flush_denormals(model) == 4
    assert model.weight[0, :3].tolist() == [0, 0, 0] and flush_denormals(model) == 0
