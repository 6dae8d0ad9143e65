"""Taylor scores against the change of the loss."""

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import biased_loader, images

from bise_prune import gate_sites
from bise_prune.baselines.taylor import taylor_masks


def test_taylor_scores_estimate_what_closing_a_channel_does(trained):
    """Against the change of the loss when one gate is lowered a little."""
    loader = biased_loader(n=60)
    trained.zero_grad()
    scores = taylor_masks(trained, loader)
    sites = gate_sites(trained, images())
    inputs, target = loader.data.inputs.double(), loader.data.target
    model = copy.deepcopy(trained).double()

    def loss(name, channel, value):
        keep = {site.name: torch.ones(site.num_channels) for site in sites}
        keep[name][channel] = value
        from bise_prune.gates.gated_model import constant_gates

        with torch.no_grad():
            return float(F.cross_entropy(constant_gates(model, sites, keep)(inputs), target))

    for site in sites:
        for channel in (0, site.num_channels - 1):
            slope = (loss(site.name, channel, 1 + 1e-4) - loss(site.name, channel, 1 - 1e-4)) / 2e-4
            assert scores.logits[site.name][channel].item() == pytest.approx(abs(slope), rel=1e-3, abs=1e-6)
    assert all(parameter.grad is None for parameter in trained.parameters())
