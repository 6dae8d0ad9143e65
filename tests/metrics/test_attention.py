"""FLOPs of attention, in measurements, plans and budgets, against torch's own counter."""

import pytest
import torch
from cases import slow, torchvision_network
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bise_prune import MaskSet, gate_sites, measure, prune
from bise_prune.mask_search.gate_cost import GateCost
from bise_prune.tracing import trace

WIDTH, HEADS, LENGTH = 12, 3, 5


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def written_out(q, k, v):
    return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v


def by_einsum(q, k, v):
    weights = torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1)
    return torch.einsum("bhqk,bhkd->bhqd", weights, v)


def by_batched_products(q, k, v):
    q, k, v = (tensor.flatten(0, 1) for tensor in (q, k, v))
    weights = torch.baddbmm(torch.zeros(1, 1, 1), q, k.transpose(1, 2)).softmax(-1)
    return torch.bmm(weights, v).unflatten(0, (-1, HEADS))


class Encoder(nn.Module):
    """Attention, written in some way, and two linear layers whose channels can go."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.first, self.second, self.head = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, x):
        q, k, v = self.qkv(x).view(len(x), LENGTH, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        x = x + self.out(self.attend(q, k, v).transpose(1, 2).reshape(x.shape))
        return self.head((x + self.second(F.relu(self.first(x)))).mean(1))


class Module(nn.Module):
    """One of torch's own modules of attention, and a head."""

    def __init__(self, inner, *, alone=True):
        super().__init__()
        self.inner, self.alone = inner, alone
        self.first, self.head = nn.Linear(WIDTH, 16), nn.Linear(16, 2)

    def forward(self, x):
        x = self.inner(x) if self.alone else self.inner(x, x, x)[0]
        return self.head(F.relu(self.first(x)).mean(1))


NETWORKS = {
    "fused": lambda: Encoder(fused),
    "written out": lambda: Encoder(written_out),
    "einsum": lambda: Encoder(by_einsum),
    "batched products": lambda: Encoder(by_batched_products),
    "MultiheadAttention": lambda: Module(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), alone=False),
    "TransformerEncoderLayer": lambda: Module(nn.TransformerEncoderLayer(WIDTH, HEADS, 24, batch_first=True)),
}


def by_torch(model, inputs):
    """Multiply-accumulates of one sample as torch counts them, without fused kernels."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(inputs[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    return counter.get_total_flops() // 2


def norms(model, inputs):
    """What fvcore counts beside multiply-accumulates."""
    figures = measure(model, inputs)
    return sum(
        figures.flops_by_layer.get(name, 0)
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm)
    )


def halved(sites):
    return MaskSet({site.name: torch.arange(site.num_channels) % 2 - 0.5 for site in sites})


@pytest.mark.parametrize("name", NETWORKS)
def test_every_way_to_write_attention_counts(name):
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]().eval(), torch.randn(2, LENGTH, WIDTH)
    sites = gate_sites(model, inputs, "paper")
    result = prune(model, halved(sites), inputs, joins="intersection")
    for network, planned in zip((model, result.model), result.plan.macs, strict=True):
        expected = by_torch(network, inputs)
        assert planned == expected
        assert measure(network, inputs).flops == expected + norms(network, inputs)
    assert torch.backends.mha.get_fastpath_enabled()
    cost = GateCost(trace(model, inputs), model, sites, joins="intersection")
    share = cost([(site_mask >= 0).double() for site_mask in halved(sites).logits.values()])
    assert float(share) == pytest.approx(result.plan.macs[1] / result.plan.macs[0], abs=1e-12)
    assert (
        not {"aten::scaled_dot_product_attention", "aten::baddbmm"}
        & measure(model, inputs).unsupported_operators.keys()
    )


def test_a_budget_counts_what_no_gate_changes():
    """Depthwise convolutions shrink with their channels; products without a layer stay."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(32, 2)
    ).eval()
    inputs = torch.randn(2, 3, 4, 4)
    sites = gate_sites(model, inputs, "tied")
    masks = halved(sites)
    macs = prune(model, masks, inputs).plan.macs
    cost = GateCost(trace(model, inputs), model, sites)
    assert float(cost([(m >= 0).double() for m in masks.logits.values()])) == pytest.approx(macs[1] / macs[0])


@pytest.mark.parametrize("name", slow("vit_b_32", "swin_t", "maxvit_t"))
def test_transformers_of_torchvision(name):
    model, inputs = torchvision_network(name), torch.randn(1, 3, 224, 224)
    expected = by_torch(model, inputs)
    figures = measure(model, inputs)
    sites = gate_sites(model, inputs, "paper")
    plan = prune(model, MaskSet({site.name: torch.ones(site.num_channels) for site in sites}), inputs).plan
    assert plan.macs == (expected, expected)
    assert expected <= figures.flops <= 1.03 * expected  # fvcore counts norms and pooling as well
