"""Where gates sit: the paper's counts, ties, and networks without a place for them."""

import pytest
import torch
from cases import NETWORKS, images, network, torchvision_network
from normed_at_random import NormedNetwork
from torch import nn
from transformers_at_random import RandomTransformer

from bise_prune import MaskSet, gate_sites, prune
from bise_prune.config import PLACEMENTS
from bise_prune.errors import ConfigError, ModelError
from bise_prune.gates import sites as finding
from bise_prune.gates import sites_of
from bise_prune.models import build_model
from bise_prune.tracing import trace


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


def test_frozen_weights_are_tied_as_well():
    model = network("resnet").requires_grad_(False)
    assert len(gate_sites(model, images(), "tied")) == 6
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_network_may_end_in_a_convolution():
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    (site,) = gate_sites(nn.Sequential(*layers), images())
    assert site.name == "0"  # not the classifier's own channels


def test_a_network_without_a_classifier_is_refused():
    with pytest.raises(ModelError, match="not the channels of a linear or convolutional layer"):
        gate_sites(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.LayerNorm([4, 6, 6]), nn.Flatten()), images())


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
    with pytest.raises(ConfigError, match="choose one of all, tied, feed-forward, streams, paper"):
        gate_sites(network("mlp"), images(), "everywhere")


@pytest.mark.parametrize(("name", "paper", "tied"), [("mobilenet_v2", 34, 18), ("densenet121", 120, 58)])
def test_other_architectures_have_sites(name, paper, tied):
    model = torchvision_network(name)
    assert len(gate_sites(model, images(size=32), "paper")) == paper
    assert len(gate_sites(model, images(size=32), "tied")) >= tied


@pytest.mark.parametrize("placement", ["tied", "paper"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_gated_calls_are_calls_of_the_trace(name, placement):
    model, inputs = network(name), images()
    record = trace(model, inputs)
    by_key = {call.key: call for call in record.calls}
    assert len(by_key) == len(record.calls)
    gated = [(site, call) for site in gate_sites(model, inputs, placement) for call in site.calls]
    assert gated and len({call.key for _, call in gated}) == len(gated)  # each output has one gate
    for site, call in gated:
        found = by_key[call.key]
        assert (found.function, found.count) == (call.function, call.count) == call.key
        (output,) = found.outputs
        assert record.values[output].shape[call.dim] == site.num_channels
        assert record.values[output].layer == call.layer


class Encoder(nn.Module):
    """Two blocks of a transformer without attention, with layer norms behind or before what they add to."""

    def __init__(self, norm_first, dropout):
        super().__init__()
        self.norm_first = norm_first
        self.first, self.second = (nn.ModuleList([nn.Linear(6, 10), nn.Linear(10, 6)]) for _ in range(2))
        self.norms, self.end = nn.ModuleList([nn.LayerNorm(6), nn.LayerNorm(6)]), nn.LayerNorm(6)
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(6, 3)

    def forward(self, x):
        for (first, second), norm in zip((self.first, self.second), self.norms, strict=True):
            h = norm(x) if self.norm_first else x
            h = self.dropout(second(self.dropout(nn.functional.relu(first(h)))))
            x = x + h if self.norm_first else norm(x + h)
        return self.head((self.end(x) if self.norm_first else x).mean(1))


@pytest.mark.parametrize("norm_first", [False, True])
def test_layer_norms_behind_sums_are_those_of_post_norm_blocks(norm_first):
    """Also with a dropout between. The norm at the end of a pre-norm network would let closed channels through."""
    torch.manual_seed(0)
    model, x = Encoder(norm_first, 0.1).double().eval(), torch.randn(2, 5, 6, dtype=torch.float64)
    sites = gate_sites(model, x, "paper")
    normed = [site.name for site in sites if any(call.is_layer_norm for call in site.calls)]
    assert normed == ([] if norm_first else ["first.1", "second.1"])
    generator = torch.Generator().manual_seed(0)
    masks = MaskSet({site.name: torch.rand(site.num_channels, generator=generator) - 0.5 for site in sites})
    assert prune(model, masks, x).verification.max_abs_error < 1e-12


@pytest.mark.parametrize("norm_first", [False, True])
def test_torchs_own_encoder_layer(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=norm_first)
    model, x = nn.Sequential(layer, nn.LayerNorm(8), nn.Flatten(), nn.Linear(32, 3)).eval(), torch.randn(2, 4, 8)
    normed = [s for s in gate_sites(model, x, "paper") if any(call.is_layer_norm for call in s.calls)]
    assert len(normed) == (0 if norm_first else 1)


_MANY = {
    **{name: lambda name=name: (network(name), images()) for name in NETWORKS},
    **{f"normed {seed}": lambda seed=seed: (NormedNetwork(seed).eval(), _words_or_images(seed)) for seed in range(6)},
    **{
        f"transformer {seed}": lambda seed=seed: (RandomTransformer(seed).eval(), torch.randn(2, 4, 5))
        for seed in range(6)
    },
}


def _words_or_images(seed):
    return torch.zeros(2, 5, dtype=torch.int64) if NormedNetwork(seed).reads == "words" else torch.randn(2, 3, 5, 5)


@pytest.mark.parametrize("name", list(_MANY))
def test_masks_are_matched_as_if_every_placement_were_tried_in_turn(name, monkeypatch):
    model, inputs = _MANY[name]()
    found = {}
    for placement in reversed(PLACEMENTS):
        try:
            found[placement] = gate_sites(model, inputs, placement)
        except ModelError:
            continue
    sites_in, tried = finding.sites_in, []

    def noted(record, model, placement):
        tried.append(placement)
        return sites_in(record, model, placement)

    monkeypatch.setattr(finding, "sites_in", noted)
    for placement, sites in found.items():
        sizes = {site.name: site.num_channels for site in sites}
        tried.clear()
        matched = sites_of(MaskSet({name: torch.ones(size) for name, size in sizes.items()}), model, inputs)
        assert matched == next(s for s in found.values() if {site.name: site.num_channels for site in s} == sizes)
        marked = {"all": "@zeros", "streams": "@stream"}.get(placement)
        assert tried == [placement] or marked is None or not any(marked in name for name in sizes)
