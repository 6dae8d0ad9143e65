"""The cached prefix gives the same logits and masks."""

import pytest
import torch
import torch.nn.functional as F
from cases import NETWORKS, SHORT, biased_data, biased_loader, in_double, network, random_masks
from torch import nn

from bise_prune import SearchConfig, apply_masks, gate_sites, search
from bise_prune.data import BatchLoader
from bise_prune.mask_search.speed.cached_prefix import cached_prefix
from bise_prune.tracing import trace


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("placement", ["tied", "paper"])
def test_the_cached_prefix_gives_the_same_logits(name, placement):
    model, loader = network(name).double(), BatchLoader(in_double(biased_data(n=30)), 8, shuffle=True)
    inputs = loader.data.example()
    record, sites = trace(model, inputs), gate_sites(model, inputs, placement)
    cache = cached_prefix(model, record, sites, loader, torch.device("cpu"), 2**30)
    masks = random_masks(model, inputs, placement)
    masked = apply_masks(model, masks, inputs)
    rows = torch.tensor([7, 0, 29])
    expected = masked(loader.data.inputs[rows])
    if cache is None:  # too little is in front of the first gate
        saved = name in ("simple_convnet", "mlp")
        assert not saved
        return
    with torch.no_grad(), cache.replaying(rows):
        assert torch.allclose(masked(cache.placeholder(3)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "simple_convnet", "resnet"])
def test_the_cache_changes_no_mask(name):
    model = network(name).double()

    def loader():
        return BatchLoader(in_double(biased_data()), 20, shuffle=True, seed=2)

    cached, plain = (search(model, loader(), SearchConfig(**SHORT, cache_bytes=size)) for size in (2**30, 0))
    for site in cached.last.logits:
        assert torch.allclose(cached.last.logits[site], plain.last.logits[site], rtol=0, atol=1e-10)


def test_a_cache_that_does_not_fit_is_not_made():
    model, loader = network("mlp"), biased_loader()
    inputs = loader.data.example()
    record, sites = trace(model, inputs), gate_sites(model, inputs)
    assert cached_prefix(model, record, sites, loader, torch.device("cpu"), 1000) is None
    assert cached_prefix(model, record, sites, loader, torch.device("cpu"), 2**20) is not None


def test_a_network_that_looks_at_its_activations_has_no_cache():
    class Looks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(192, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x):
            x = self.a(x.flatten(1))
            if float(x.sum()) > 1e9:
                x = -x
            return self.head(F.relu(self.b(F.relu(x))))

    torch.manual_seed(0)
    model, loader = Looks().eval(), biased_loader()
    sites = gate_sites(model, loader.data.example())
    record = trace(model, loader.data.example())
    assert cached_prefix(model, record, sites, loader, torch.device("cpu"), 2**30) is None
    assert len(search(model, loader, SearchConfig(**SHORT)).history) == 6


def test_batch_norms_behind_the_prefix_are_counted():
    """A downsampling branch whose batch norm comes after gated ones, and is no part of the cached prefix's end."""
    from torchvision.models.resnet import Bottleneck, ResNet

    torch.manual_seed(0)
    model, data = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=3).eval(), biased_data(n=40)
    options = dict(anneal_every=1, min_temperature=0.6, head_epochs=1, placement="paper")
    cached, plain = (search(model, BatchLoader(data, 20), SearchConfig(**options, cache_bytes=n)) for n in (2**30, 0))
    assert all(torch.allclose(cached.last.logits[n], plain.last.logits[n], atol=1e-5) for n in plain.last.logits)
