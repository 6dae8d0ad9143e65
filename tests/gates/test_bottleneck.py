"""The bottleneck and the heads of networks that do more than a linear layer at their end."""

import pytest
import torch
from cases import SHORT, biased_data, biased_loader
from torch import nn
from torch.nn import functional as F

from bise_prune import MaskSet, SearchConfig, gate_sites, prune, search
from bise_prune.data import BatchLoader
from bise_prune.errors import ConfigError, ModelError
from bise_prune.gates import CapturedInputs, head_name, readout_of
from bise_prune.mask_search.network import MaskedNetwork
from bise_prune.tracing import trace

CLASSES = 3


def tokens(f):
    return f.flatten(2).transpose(1, 2)


def last_of(net, f):
    found = net.head(tokens(f))
    return found[torch.arange(len(found)), torch.full((len(found),), 2)]


def mean(f):
    return f.mean((2, 3))


# name -> (the end of the forward pass, its bottleneck, its layers)
ENDS = {
    "linear": (lambda net, f: net.head(mean(f)), mean, ["head"]),
    "log_softmax": (lambda net, f: net.head(mean(f)).log_softmax(1), mean, ["head"]),
    "softmax": (lambda net, f: net.head(mean(f)).softmax(-1), mean, ["head"]),
    "scaled": (lambda net, f: net.head(mean(f)) / 2.5, mean, ["head"]),
    "shifted": (lambda net, f: net.head(mean(f)) - 1.0, mean, ["head"]),
    "two heads averaged": (
        lambda net, f: (net.head(mean(f)) + net.other(f.amax((2, 3)))) / 2,
        lambda f: torch.cat([mean(f), f.amax((2, 3))], 1),
        ["head", "other"],
    ),
    "two heads stacked": (
        lambda net, f: torch.stack([net.head(mean(f)), net.other(mean(f))]).mean(0),
        lambda f: torch.cat([mean(f), mean(f)], 1),
        ["head", "other"],
    ),
    "pooled 1x1": (lambda net, f: F.adaptive_avg_pool2d(net.conv(f), 1).flatten(1), mean, ["conv"]),
    "rectified and pooled": (lambda net, f: net.conv(f).relu().mean((2, 3)), mean, ["conv"]),
    "mean of tokens": (lambda net, f: net.head(tokens(f)).mean(1), mean, ["head"]),
    "last token": (last_of, mean, ["head"]),
}


class Net(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.end = end
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU())
        self.head, self.other, self.conv = nn.Linear(8, CLASSES), nn.Linear(8, CLASSES), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x):
        return ENDS[self.end][0](self, self.features(x))


@pytest.mark.parametrize("end", ENDS)
def test_the_bottleneck_follows_from_the_graph(end):
    model, x = Net(end).double().eval(), torch.randn(4, 3, 8, 8, dtype=torch.float64)
    record = trace(model, x)
    readout = readout_of(model, record)
    _, bottleneck, layers = ENDS[end]
    assert list(readout.layers) == layers
    assert readout.is_plain == (end == "linear") and readout.is_softmax == (end == "softmax")
    with torch.no_grad(), CapturedInputs(model, *readout.layers) as captured:
        output = model(x)
    assert torch.allclose(captured.taken(), bottleneck(model.features(x)), atol=1e-12)
    assert not captured.inputs
    expected = output.log() if end == "softmax" else output
    assert torch.equal(readout.logits(output), expected)
    if end == "linear":
        assert head_name(model, record) == "head"
    else:
        with pytest.raises(ModelError, match="does more with its outputs"):
            head_name(model, record)


@pytest.mark.parametrize("end", ENDS)
def test_classes_are_never_gated_and_the_rest_is_removed(end):
    model, x = Net(end).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    sites = gate_sites(model, x)
    assert [site.name for site in sites] == ["features.0", "features.2"]
    masks = MaskSet({site.name: torch.arange(site.num_channels) % 2 - 0.5 for site in sites})
    result = prune(model, masks, x)
    assert result.verification.max_abs_error < 1e-12
    for layer in ENDS[end][2]:
        weight = result.model.get_submodule(layer).weight
        assert weight.shape[:2] == (CLASSES, 4)


@pytest.mark.parametrize("options", [SHORT, {"steps": 24}])
@pytest.mark.parametrize("end", ENDS)
def test_searches_read_it(end, options):
    """That of a softmax finds what that of its logarithm does."""
    found = {}
    for name in (end, *(["log_softmax"] if end == "softmax" else [])):
        torch.manual_seed(0)
        model, val = Net(name).double().eval(), biased_loader(n=60, rho=0.4, seed=3)
        data = [BatchLoader(d.data.__class__(d.data.inputs.double(), d.data.target, d.data.bias), 20)
                for d in (BatchLoader(biased_data(), 20), val)]  # fmt: skip
        found[name] = search(model, data[0], SearchConfig(**options), data[1])
    for one, two in zip(found.values(), list(found.values())[1:], strict=False):
        for name, logits in one.last.logits.items():
            assert torch.allclose(logits, two.last.logits[name], atol=1e-9)
    assert len(found[end].history) and found[end].history[-1].cross_entropy > 0


def test_a_layer_that_runs_twice_is_no_head():
    class Twice(Net):
        def forward(self, x):
            return self.head(mean(self.features(x))) + self.head(mean(self.features(-x)))

    model, x = Twice("linear").eval(), torch.randn(2, 3, 8, 8)
    with pytest.raises(ModelError, match="called once"):
        readout_of(model, trace(model, x))


def test_a_refitted_head_needs_a_linear_one():
    config = SearchConfig(steps=24, refit="head")
    with pytest.raises(ConfigError, match="does not end in a linear one"):
        search(Net("pooled 1x1").eval(), biased_loader(), config, biased_loader(n=60, rho=0.4, seed=3))


def test_the_number_of_classes_is_that_of_the_heads():
    for end in ("pooled 1x1", "two heads averaged"):
        network = MaskedNetwork(Net(end).eval(), torch.randn(2, 3, 8, 8), SearchConfig(), None)
        assert network.num_classes == CLASSES


class Picking(Net):
    """Reads the logits at the place where the input is largest, as decoders read those of the last token."""

    def __init__(self, by):
        super().__init__("linear")
        self.by = by

    def forward(self, x):
        found, rows = self.head(tokens(self.features(x))), torch.arange(len(x))
        place = x[..., :4, :4].flatten(2).mean(1).argmax(1)
        return (
            found[rows, place] if self.by == "place" else found.transpose(1, 2)[rows[:, None], :, place[:, None]][:, 0]
        )


@pytest.mark.parametrize("by", ["place", "place, behind the classes"])
def test_a_token_may_depend_on_the_input(by):
    model, x = Picking(by).double().eval(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert list(readout_of(model, trace(model, x)).layers) == ["head"]
    sites = gate_sites(model, x, "tied")
    assert [site.name for site in sites] == ["features.0", "features.2"]
    masks = MaskSet({site.name: torch.arange(site.num_channels) % 2 - 0.5 for site in sites})
    assert prune(model, masks, x).plan.layers["head"].inputs == (1, 3, 5, 7)


def test_a_channel_that_depends_on_the_input_is_not_followed():
    class Routed(Net):
        def forward(self, x):
            f = self.features(x).mean((2, 3))
            return self.head(f[torch.arange(len(f))[:, None], f.argsort(1)])

    model, x = Routed("linear").double().eval(), torch.randn(3, 3, 8, 8, dtype=torch.float64)
    assert [site.name for site in gate_sites(model, x, "tied")] == ["features.0"]
