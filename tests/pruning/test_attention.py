"""Exact removal inside attention: heads, channels of values, pairs of a query with a key channel."""

import onnxruntime
import pytest
import torch
import torch_pruning as tp
from awkward import masks_for
from cases import slow, torchvision_network
from torch import nn
from torch.nn import functional as F
from torchvision.models import swin_transformer as swin
from transformers_at_random import RandomTransformer

from bise_prune import MaskSet, PruningPlan, apply_masks, export_onnx, gate_sites, load_slim, prune, save_slim
from bise_prune.baselines.magnitude import magnitude_masks
from bise_prune.baselines.random_scores import random_masks
from bise_prune.baselines.taylor import taylor_masks
from bise_prune.data import BatchLoader, BiasedDataset
from bise_prune.errors import PruningError
from bise_prune.gates.sites import sites_in
from bise_prune.mask_search.gate_cost import GateCost
from bise_prune.pruning.planner import Planner
from bise_prune.torch_pruning.importance import BISEImportance
from bise_prune.tracing import trace


def tokens(count, length, seed=0):
    return torch.randn(count, length, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(seed):
    return RandomTransformer(seed).eval().double()


@pytest.mark.parametrize("seed", [*range(60), *slow(*range(60, 300))])
def test_the_slim_network_is_the_masked_one(seed):
    model, inputs = network(seed), tokens(2, 4)
    masks = masks_for(model, inputs, "tied", seed, (0.3, 0.5, 0.7)[seed % 3])
    result = prune(model, masks, inputs, tolerance=1e-10)
    masked = apply_masks(model, masks, inputs)
    for count, length in ((1, 4), (3, 6), (7, 2)):
        batch = tokens(count, length, seed)
        with torch.no_grad():
            assert torch.allclose(result.model(batch), masked(batch), rtol=0, atol=1e-10)
    assert sum(parameter.numel() for parameter in result.model.parameters()) == result.plan.params[1]


def test_attention_is_followed_in_nearly_all_of_them():
    found = [len(trace(network(seed), tokens(2, 4)).attentions) / len(network(seed).blocks) for seed in range(60)]
    assert sum(share == 1 for share in found) >= 56


class Plain(nn.Module):
    """One attention, whose masked function the tests write out by hand."""

    def __init__(self, width=12, heads=3):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.first, self.head = nn.Linear(width, 7), nn.Linear(7, 2)

    def heads_of(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x):
        merged = F.scaled_dot_product_attention(
            self.heads_of(self.q(x)), self.heads_of(self.k(x)), self.heads_of(self.v(x))
        )
        return self.head(torch.relu(self.first(self.out(merged.transpose(1, 2).flatten(2)))).mean(1))


def plain(seed=0):
    torch.manual_seed(seed)
    return Plain().eval().double(), torch.randn(3, 5, 12, dtype=torch.float64)


def by_hand(model, x, heads, values, pairs):
    q, k, v = (model.heads_of(layer(x)) for layer in (model.q, model.k, model.v))
    q = q * pairs.view(3, 1, 4)
    shares = (q @ k.transpose(-2, -1) / 2).softmax(-1)  # a head is four channels wide: the root of four
    merged = shares @ (v * values.view(3, 1, 4) * heads.view(3, 1, 1))
    return model.head(torch.relu(model.first(model.out(merged.transpose(1, 2).flatten(2)))).mean(1))


def test_closed_entries_are_what_their_names_say():
    model, x = plain()
    sites = {site.name: site.num_channels for site in gate_sites(model, x, "tied")}
    assert sites == {"first": 7, "attention@heads": 3, "attention@values": 12, "attention@pairs": 12}
    masks = masks_for(model, x, "tied", 3, 0.5)
    masks.logits["first"][:] = 1
    kept = [masks.keep[f"attention@{kind}"].double() for kind in ("heads", "values", "pairs")]
    with torch.no_grad():
        assert torch.allclose(apply_masks(model, masks, x)(x), by_hand(model, x, *kept), rtol=0, atol=1e-12)


def even_masks(model, x, *, heads=(1, -1, 1)):
    """Masks that leave as many channels in every head."""
    masks = {site.name: torch.ones(site.num_channels) for site in gate_sites(model, x, "tied")}
    masks["attention@heads"] = torch.tensor([float(head) for head in heads])
    masks["attention@values"] = torch.tensor([1.0, -1, 1, 1] * 3)
    masks["attention@pairs"] = torch.tensor([-1.0, -1, 1, -1] * 3)
    return MaskSet(masks)


def test_layers_become_as_narrow_as_the_masks_say():
    model, x = plain()
    result = prune(model, even_masks(model, x), x)
    slim = result.model.model  # inside the edits of function calls
    shapes = {name: tuple(getattr(slim, name).weight.shape) for name in ("q", "k", "v", "out")}
    assert shapes == {"q": (2, 12), "k": (2, 12), "v": (6, 12), "out": (12, 6)}
    assert not result.plan.closed_but_kept


def test_uneven_heads_are_filled_up_and_the_plan_says_so():
    model, x = plain()
    masks = even_masks(model, x, heads=(1, 1, 1))
    masks.logits["attention@values"] = torch.tensor([1.0, -1, -1, -1, 1, 1, 1, -1, 1, 1, -1, -1])
    result = prune(model, masks, x)
    assert result.model.model.v.out_features == 9
    assert result.plan.closed_but_kept["attention@values"] == "all heads need as many channels"


def test_a_dead_attention_is_a_constant():
    model, x = plain()
    result = prune(model, even_masks(model, x, heads=(-1, -1, 1)), x)
    assert result.model.model.v.out_features == 3
    model.norm = nn.Identity()
    whole = Residual().eval().double()
    masks = even_masks(whole, x, heads=(-1, -1, -1))
    slim = prune(whole, masks, x)
    kept = sum(parameter.numel() for parameter in slim.model.parameters())
    assert kept == slim.plan.params[1] < sum(p.numel() for p in whole.first.parameters()) + 100


class Residual(Plain):
    """The same, beside a stream."""

    def forward(self, x):
        merged = F.scaled_dot_product_attention(
            self.heads_of(self.q(x)), self.heads_of(self.k(x)), self.heads_of(self.v(x))
        )
        return self.head(torch.relu(self.first(x + self.out(merged.transpose(1, 2).flatten(2)))).mean(1))


@pytest.mark.parametrize("uneven", [False, True])
def test_costs_of_gates_are_those_of_the_plan(uneven):
    model, x = plain()
    masks = masks_for(model, x, "tied", 5, 0.5) if uneven else even_masks(model, x)
    plan = prune(model, masks, x).plan
    record, sites = trace(model, x), gate_sites(model, x, "tied")
    gates = [masks.keep[site.name].double() for site in sites]
    assert float(GateCost(record, model, sites)(gates)) == pytest.approx(plan.macs[1] / plan.macs[0], abs=1e-12)
    params = GateCost(record, model, sites, "params")
    assert float(params(gates)) == pytest.approx(plan.params[1] / plan.params[0], abs=1e-12)


def test_a_saved_plan_is_carried_out_again(tmp_path):
    model, x = plain()
    first = prune(model, even_masks(model, x), x)
    assert first.plan.edits[-3].endswith(": scores scaled as for heads of full width")
    first.plan.save(tmp_path / "plan.json")
    again = prune(model, PruningPlan.load(tmp_path / "plan.json"), x)
    with torch.no_grad():
        assert torch.equal(first.model(x), again.model(x))
    assert again.plan.edits_digest == first.plan.edits_digest


def test_networks_without_attention_have_the_same_sites():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(2, 4)
    assert gate_sites(model, x, "feed-forward") == gate_sites(model, x, "tied")


def test_norms_of_filters_inside_attention():
    model, x = plain()
    scores = magnitude_masks(model, x).logits
    rows = model.v.weight.detach().square().sum(1)
    assert torch.allclose(scores["attention@values"].double(), rows.sqrt(), atol=1e-6)
    assert torch.allclose(scores["attention@heads"].double(), rows.view(3, 4).sum(1).sqrt(), atol=1e-6)
    assert torch.allclose(scores["attention@pairs"].double(), model.q.weight.detach().norm(dim=1), atol=1e-6)


@pytest.mark.parametrize("seed", [0, *range(2, 8)])  # others have too few heads to come near the target
def test_every_criterion_ranks_what_is_inside_attention(seed):
    model, x = network(seed), tokens(8, 4)
    loader = BatchLoader(BiasedDataset(x, torch.arange(8) % 3, torch.arange(8)[:, None] % 2), 4)
    for masks in (magnitude_masks(model, x), random_masks(model, x), taylor_masks(model, loader)):
        result = prune(model, masks, x, target_flops=0.6)
        assert result.plan.target["reached"] == pytest.approx(0.4, abs=0.06)


def test_torch_prunings_pruners_leave_attention_alone():
    model, x = plain()
    model, x = model.float(), x.float()
    importance = BISEImportance(magnitude_masks(model, x))
    pruner = tp.pruner.BasePruner(model, x, importance, pruning_ratio=0.5, ignored_layers=[model.head])
    pruner.step()
    assert model.first.out_features == 3 and model.v.out_features == 12


def test_torch_prunings_engine_says_which_placement_it_takes():
    model, x = plain()
    with pytest.raises(PruningError, match="--placement feed-forward"):
        prune(model, even_masks(model, x), x, engine="torch-pruning")


def test_what_was_removed_is_saved_and_exported(tmp_path):
    model, x = plain()
    slim = prune(model, even_masks(model, x), x).model.float()
    x = x.float()
    export_onnx(slim, tmp_path / "slim.onnx", x)
    (found,) = onnxruntime.InferenceSession(tmp_path / "slim.onnx").run(None, {"input": x[:1].numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), slim(x[:1]), atol=1e-5)
        save_slim(tmp_path / "slim.safetensors", slim)
        again = load_slim(tmp_path / "slim.safetensors", plain()[0].float())
        assert torch.equal(again(x), slim(x))


@pytest.mark.parametrize("seed", range(4))
def test_watching_draws_no_random_numbers(seed):
    model, x = network(seed), tokens(2, 4)
    before = torch.get_rng_state()
    prune(model, masks_for(model, x, "tied", seed, 0.5), x)
    assert torch.equal(torch.get_rng_state(), before)


class OverHeads(Plain):
    """Shares that add up to one over the heads, not over the tokens: no head can go without changing the others."""

    def forward(self, x):
        q, k, v = (self.heads_of(layer(x)) for layer in (self.q, self.k, self.v))
        merged = (q @ k.transpose(-2, -1)).softmax(1) @ v
        return self.head(torch.relu(self.first(self.out(merged.transpose(1, 2).flatten(2)))).mean(1))


def test_attention_over_heads_is_not_followed():
    model, x = OverHeads().eval().double(), plain()[1]
    assert [site.name for site in gate_sites(model, x)] == ["first"]


class Alone(nn.Module):
    """Nothing but attention."""

    def __init__(self):
        super().__init__()
        self.mix, self.head = nn.MultiheadAttention(12, 3, batch_first=True), nn.Linear(12, 2)

    def forward(self, x):
        return self.head(self.mix(x, x, x)[0].mean(1))


def test_attention_alone_is_gated():
    model, x = Alone().eval().double(), plain()[1]
    assert [site.name for site in gate_sites(model, x)] == ["mix@heads", "mix@values", "mix@pairs"]
    assert prune(model, masks_for(model, x, "tied", 1, 0.5), x).plan.sparsity > 0.2


def test_channels_side_by_side_are_read_without_a_copy():
    fused, x = Alone().eval().double(), plain()[1]
    slim = prune(fused, masks_for(fused, x, "tied", 1, 0.5), x).model
    splits = [module for module in slim.modules() if getattr(module, "is_slice", None) is not None]
    assert splits and all(module.is_slice for module in splits if module.index is not None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("vit_b_16", [("all", 0.2, 0.3), ("tied", 0.35, 0.5), ("feed-forward", 0.65, 0.7), ("streams", 0.2, 0.3)]),
        ("convnext_tiny", [("all", 0.2, 0.3), ("tied", 0.5, 0.6), ("streams", 0.2, 0.3)]),
    ],
)
def test_half_of_a_large_network_with_layer_norms(name, shares):
    """As a plan alone: the multiply-accumulates that are left, by placement."""
    model, x = torchvision_network(name), torch.randn(1, 3, 224, 224)
    record = trace(model, x)
    for placement, least, most in shares:
        sites, draw = sites_in(record, model, placement), torch.Generator().manual_seed(0)
        keep = {s.name: torch.randperm(s.num_channels, generator=draw) < s.num_channels // 2 for s in sites}
        macs = Planner(model, sites, x, record=record).propose(keep, "expand").plan.macs
        assert least < macs[1] / macs[0] < most


@pytest.mark.parametrize("seed", [2, 3, 5, 8])
def test_rounding_reaches_the_widths_of_heads(seed):
    model, x = network(seed), tokens(2, 4)
    result = prune(model, masks_for(model, x, "tied", seed, 0.5), x, round_to=2, tolerance=1e-10)
    attentions = trace(result.model, x).attentions
    assert attentions
    for attention in attentions:
        sides = [side for side in (*attention.sources, attention.results) if side is not None]
        assert all(side.channels.shape[1] % 2 == 0 for side in sides)


def windows(version):
    """A small network of torchvision with attention in windows, shifted ones among them."""
    block, merging = (
        (swin.SwinTransformerBlock, swin.PatchMerging) if version == 1 else
        (swin.SwinTransformerBlockV2, swin.PatchMergingV2)
    )  # fmt: skip
    torch.manual_seed(0)
    return swin.SwinTransformer(
        [4, 4], 12, [2, 2], [2, 4], [4, 4], num_classes=3, block=block, downsample_layer=merging
    ).eval().double()  # fmt: skip


@pytest.mark.parametrize("placement", ["tied", "streams"])
@pytest.mark.parametrize("version", [1, 2])
def test_shifted_windows_are_followed(version, placement):
    model, x = windows(version), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    sites = [site.name for site in gate_sites(model, x, placement)]
    inside = [f"features.{stage}.{block}.attn" for stage in (1, 3) for block in (0, 1)]
    assert all(f"{name}@values" in sites for name in inside)
    shifted = [name for name in sites if name.endswith("@heads") and ".1.attn" in name]
    assert not shifted  # their code counts the heads between the scores and the shares
    masks = masks_for(model, x, placement, 0, 0.5)
    for logits in masks.logits.values():
        logits[0] = 1.0  # no attention is closed altogether
    result = prune(model, masks, x, tolerance=1e-10)
    assert result.plan.macs[1] / result.plan.macs[0] < {"tied": 0.65, "streams": 0.45}[placement]
    other = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(result.model(other), result.masked(other), rtol=0, atol=1e-10)
