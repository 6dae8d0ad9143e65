"""Exact removal in front of norms over channels: whole groups, means over channels, residual streams."""

import copy

import onnxruntime
import pytest
import torch
from awkward import masks_for
from cases import slow
from normed_at_random import NormedNetwork
from torch import nn
from torch.nn import functional as F
from transformers_at_random import RandomTransformer

from bise_prune import MaskSet, PruningPlan, apply_masks, export_onnx, gate_sites, load_slim, prune, save_slim
from bise_prune.baselines.magnitude import magnitude_masks
from bise_prune.errors import ModelError, PruningError
from bise_prune.mask_search.gate_cost import GateCost
from bise_prune.tracing import trace


def inputs_of(model, count, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    if model.reads == "words":
        return torch.randint(11, (count, size), generator=generator)
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=generator)


def outcome(seed, placement, joins):
    model = NormedNetwork(seed).eval().double()
    inputs = inputs_of(model, 2, 5)
    try:
        masks = masks_for(model, inputs, placement, seed, (0.3, 0.5, 0.7)[seed % 3])
        result = prune(model, masks, inputs, joins=joins, tolerance=1e-10)
    except (ModelError, PruningError) as error:
        assert "no closed channel of this network" in str(error) or "a dead network" in str(error), error
        return "refused"
    masked = apply_masks(model, masks, inputs)
    for count, size in ((1, 5), (3, 7)):
        batch = inputs_of(model, count, size, seed)
        with torch.no_grad():
            assert torch.allclose(result.model(batch), masked(batch), rtol=0, atol=1e-10)
    assert sum(parameter.numel() for parameter in result.model.parameters()) == result.plan.params[1]
    left = result.plan.macs[1] / result.plan.macs[0]
    if placement != "paper":
        sites = gate_sites(model, inputs, placement)
        cost = GateCost(trace(model, inputs), model, sites, joins=joins)
        gates = [masks.keep[site.name].double() for site in sites]
        assert float(cost(gates)) == pytest.approx(left, abs=0.06 if joins == "expand" else 1e-9)
    return left


@pytest.mark.parametrize("joins", ["intersection", "expand"])
@pytest.mark.parametrize("placement", ["tied", "streams", "all", "paper"])
@pytest.mark.parametrize("start", [0, 10, *slow(20, 30, 40, 50, 60, 70, 80, 90)])
def test_the_slim_network_is_the_masked_one(start, placement, joins):
    outcomes = [outcome(seed, placement, joins) for seed in range(start, start + 10)]
    assert outcomes.count("refused") <= 5, outcomes


def tokens(count, length, width=5, seed=0):
    return torch.randn(count, length, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


both_functions = pytest.mark.parametrize(("placement", "mark"), [("streams", "@stream"), ("all", "@zeros")])


@both_functions
@pytest.mark.parametrize("seed", [*range(20), *slow(*range(20, 150))])
def test_transformers_lose_channels_of_their_streams(seed, placement, mark):
    model, inputs = RandomTransformer(seed).eval().double(), tokens(2, 4)
    masks = masks_for(model, inputs, placement, seed, (0.3, 0.5, 0.7)[seed % 3])
    assert any(name.endswith(mark) for name in masks.logits)
    try:
        result = prune(model, masks, inputs, tolerance=1e-10)
    except PruningError as error:
        assert "a dead network" in str(error)
        return
    masked = apply_masks(model, masks, inputs)
    for count, length in ((1, 4), (3, 6)):
        batch = tokens(count, length, seed=seed)
        with torch.no_grad():
            assert torch.allclose(result.model(batch), masked(batch), rtol=0, atol=1e-10)


class Residual(nn.Module):
    """A residual stream between layer norms, behind a class token and positions."""

    def __init__(self, width=12):
        super().__init__()
        self.stem = nn.Linear(5, width)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, width)), nn.Parameter(torch.randn(1, 5, width))
        self.first, self.last = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down, self.head = nn.Linear(width, 16), nn.Linear(16, width), nn.Linear(width, 3)

    def forward(self, x):
        x = torch.cat([self.token.expand(len(x), -1, -1), self.stem(x)], 1) + self.places
        return self.head(self.last(x + self.down(F.gelu(self.up(self.first(x)))))[:, 0])


def residual():
    torch.manual_seed(3)
    model = Residual()
    for norm in (model.first, model.last):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    return model.eval().double(), tokens(2, 4)


def narrow(model, keep):
    """The same network with fewer channels in its stream, cut by hand."""
    slim = Residual(int(keep.sum())).eval().double()
    with torch.no_grad():
        for name, parameter in slim.named_parameters():
            dense = model.get_parameter(name)
            for dim, size in enumerate(dense.shape):
                dense = dense[(slice(None),) * dim + (keep,)] if size == len(keep) else dense
            parameter.copy_(dense)
    return slim


def test_a_closed_channel_of_a_stream_is_as_if_it_had_never_been():
    model, x = residual()
    (hidden, stream) = gate_sites(model, x, "streams")
    assert (hidden.name, stream.name) == ("up", "stem@stream")
    keep = torch.arange(12) % 3 != 1
    masks = MaskSet({"up": torch.ones(16), "stem@stream": torch.where(keep, 1.0, -1.0)})
    expected = narrow(model, keep)
    with torch.no_grad():
        assert torch.allclose(apply_masks(model, masks, x)(x), expected(x), rtol=0, atol=1e-12)
    slim = prune(model, masks, x, joins="intersection").model
    own = slim.model  # the class token is expanded before its channels can be left out
    assert own.stem.out_features == own.down.out_features == own.up.in_features == own.head.in_features == 8
    assert own.first.normalized_shape == own.last.normalized_shape == (8,)
    assert own.places.shape == (1, 5, 8)
    assert (
        prune(model, masks, x).open_norms == 2 and prune(model, masks_for(model, x, "tied", 0, 0.5), x).open_norms == 0
    )


def test_layer_norms_compute_with_zeros_in_a_stream():
    model, x = residual()
    keep = torch.arange(12) % 3 != 1
    masks = MaskSet({"up": torch.ones(16), "stem@zeros": torch.where(keep, 1.0, -1.0)})
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (by_hand.stem.weight, by_hand.stem.bias, by_hand.down.weight, by_hand.down.bias):
            tensor[~keep] = 0
        for tensor in (by_hand.token, by_hand.places, by_hand.first.weight, by_hand.first.bias, by_hand.last.weight,
                       by_hand.last.bias):  # fmt: skip
            tensor[..., ~keep] = 0
        expected = by_hand(x)
        assert torch.allclose(apply_masks(model, masks, x)(x), expected, rtol=0, atol=1e-12)
        result = prune(model, masks, x, joins="intersection")
        assert torch.allclose(result.model(x), expected, rtol=0, atol=1e-12)
    own = result.model.model
    assert own.stem.out_features == own.down.out_features == own.up.in_features == own.head.in_features == 8
    assert len(own.first.weight) == len(own.last.bias) == 8 and own.places.shape == (1, 5, 8)
    norms = [edit for edit in result.plan.edits if edit.startswith("layer_norm")]
    assert len(norms) == 2 and all(edit.endswith("4 channels of zeros put back for the statistics") for edit in norms)
    assert result.open_norms == 0


@pytest.mark.parametrize("affine", [True, False])
def test_rounding_fills_streams_of_zeros_with_zeros(affine):
    torch.manual_seed(0)
    model = TwoNorms(lambda width: nn.LayerNorm(width, elementwise_affine=affine)).eval().double()
    masks = masks_for(model, WORDS, "all", 0, 0.5)
    masks.logits["words@zeros"][:] = torch.arange(16) - 10.5  # five are open
    result = prune(model, masks, WORDS, joins="intersection", round_to=8, tolerance=1e-10)
    assert int(result.plan.keep["words@zeros"].sum()) == 5
    own = result.model.model
    assert own.words.weight.shape[1] == own.up.in_features == 8
    assert not any("multiplied by zero" in edit for edit in result.plan.edits)


def test_magnitude_of_streams_is_that_of_what_writes_into_them():
    model, x = residual()
    scores = [magnitude_masks(model, x, placement).logits for placement in ("streams", "all")]
    assert torch.equal(scores[0]["stem@stream"], scores[1]["stem@zeros"])


def test_magnitude_of_a_stream_behind_batch_norms():
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 12, 1)
            self.before, self.behind = nn.BatchNorm2d(12), nn.BatchNorm2d(12)
            self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 3)

        def forward(self, x):
            x = torch.relu(self.before(self.a(x)))
            return self.head(self.norm((x + self.behind(self.c(torch.relu(self.b(x))))).mean((2, 3))))

    torch.manual_seed(0)
    model, x = Blocks().eval().double(), torch.randn(2, 3, 4, 4).double()
    for norm in (model.before, model.behind):
        nn.init.uniform_(norm.bias), nn.init.uniform_(norm.running_mean)
    squares = sum(layer.weight.flatten(1).square().sum(1) for layer in (model.a, model.c))
    scores = magnitude_masks(model, x)
    assert torch.allclose(scores.logits["a@zeros"].double(), squares.sqrt(), atol=1e-6)
    result = prune(model, scores, x, target_flops=0.5, tolerance=1e-10)
    assert result.plan.macs[1] < 0.6 * result.plan.macs[0]


@pytest.mark.parametrize("stream", ["stem@stream", "stem@zeros"])
def test_gates_on_streams_get_gradients_for_each_sample(stream):
    model, x = residual()
    masks = MaskSet({"up": torch.ones(16), stream: torch.ones(12)})
    gated = apply_masks(model, masks, x)
    for closed in (None, 4):
        gates = [torch.ones(2, 16).double(), torch.ones(2, 12).double()]
        if closed is not None:
            gates[1][1, closed] = 0.0  # in the second sample alone
        with gated.gating(gates), torch.no_grad():
            together = gated.model(x)
        alone = []
        for sample in range(2):
            with gated.gating([gate[sample] for gate in gates]), torch.no_grad():
                alone.append(gated.model(x[sample : sample + 1]))
        assert torch.allclose(together, torch.cat(alone), rtol=0, atol=1e-12)


class Literal(Residual):
    """Code that knows how wide the stream is."""

    def forward(self, x):
        x = self.stem(x).transpose(1, 2).reshape(len(x), 12, -1).transpose(1, 2)
        return self.head(self.last(x + self.down(F.gelu(self.up(self.first(x))))).mean(1))


@both_functions
def test_only_what_asks_for_the_full_width_keeps_it(placement, mark):
    torch.manual_seed(0)
    model, x = Literal().eval().double(), tokens(2, 4)
    masks = masks_for(model, x, placement, 0, 0.5)
    result = prune(model, masks, x, joins="expand", tolerance=1e-10)
    own = result.model.model
    assert own.stem.out_features == 12
    assert own.down.out_features == own.head.in_features < 12 and own.up.out_features < 16


class Groups(nn.Module):
    """Convolutions with group norms."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.n, self.m, self.head = nn.GroupNorm(6, 12), nn.GroupNorm(4, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.relu(self.m(self.b(torch.relu(self.n(self.a(x)))))).mean((2, 3)))


def test_group_norms_lose_whole_groups_and_the_rest_is_as_it_was():
    torch.manual_seed(1)
    model = Groups().eval().double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert [(site.name, site.num_channels) for site in gate_sites(model, x)] == [("a@groups", 6), ("b@groups", 4)]
    masks = MaskSet({"a@groups": torch.tensor([1.0, -1, 1, 1, -1, -1]), "b@groups": torch.tensor([1.0, 1, -1, 1])})
    result = prune(model, masks, x)
    assert isinstance(result.model, Groups) and not result.plan.edits
    assert (result.model.n.num_groups, result.model.n.num_channels, result.model.m.num_groups) == (3, 6, 3)
    assert (result.model.a.out_channels, result.model.b.out_channels, result.model.head.in_features) == (6, 6, 6)
    by_hand = torch.relu(model.n(model.a(x)))
    by_hand[:, [2, 3, 8, 9, 10, 11]] = 0
    by_hand = torch.relu(model.m(model.b(by_hand)))
    by_hand[:, [4, 5]] = 0
    with torch.no_grad():
        assert torch.allclose(result.model(x), model.head(by_hand.mean((2, 3))), rtol=0, atol=1e-12)


@both_functions
@pytest.mark.parametrize("seed", [3, 8, 12, 21])
def test_norms_are_saved_and_exported(seed, placement, mark, tmp_path):
    model = NormedNetwork(seed).eval()
    x = inputs_of(model, 2, 5)
    x = x.float() if x.is_floating_point() else x
    result = prune(model, masks_for(model, x, placement, seed, 0.5), x)
    result.plan.save(tmp_path / "plan.json")
    again = prune(model, PruningPlan.load(tmp_path / "plan.json"), x)
    assert again.plan.edits_digest == result.plan.edits_digest
    export_onnx(result.model, tmp_path / "slim.onnx", x)
    (found,) = onnxruntime.InferenceSession(tmp_path / "slim.onnx").run(None, {"input": x[:1].numpy()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(found), result.model(x[:1]), atol=1e-4)
        save_slim(tmp_path / "slim.safetensors", result.model)
        assert torch.equal(load_slim(tmp_path / "slim.safetensors", NormedNetwork(seed).eval())(x), result.model(x))


def test_a_network_of_layer_norms_alone_is_told_which_placement_helps():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm, self.head = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(torch.relu(self.norm(self.a(x))).mean(1))

    model = Normed().eval()
    with pytest.raises(ModelError, match=r"layer_norm computes with all its channels at once.*--placement all"):
        gate_sites(model, tokens(2, 4).float(), "tied")
    assert [site.name for site in gate_sites(model, tokens(2, 4).float())] == ["a@zeros"]
    assert [site.name for site in gate_sites(model, tokens(2, 4).float(), "streams")] == ["a@stream"]


class OwnLayerNorm(nn.LayerNorm):
    """A subclass that keeps its width under a name of its own."""

    def __init__(self, width):
        super().__init__(width)
        self.width = width

    def forward(self, x):
        return F.layer_norm(x, (self.width,), self.weight, self.bias, self.eps)


class OwnGroupNorm(nn.GroupNorm):
    def __init__(self, groups, width):
        super().__init__(groups, width)
        self.count = groups

    def forward(self, x):
        return F.group_norm(x, num_groups=self.count, weight=self.weight, bias=self.bias)


class TwoNorms(nn.Module):
    """A residual stream behind an embedding, with a norm of some kind before each reader."""

    def __init__(self, norm, width=16):
        super().__init__()
        self.words, self.first, self.last = nn.Embedding(50, width), norm(width), norm(width)
        self.up, self.down, self.head = nn.Linear(width, 12), nn.Linear(12, width), nn.Linear(width, 3)

    def width_of(self, x):
        return x

    def forward(self, x):
        x = self.width_of(self.words(x))
        x = x + self.down(F.gelu(self.up(self.first(x))))
        return self.head(self.last(x)).mean(1)


WORDS = torch.arange(8).view(2, 4) % 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [0.02, 400.0])
@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm, OwnLayerNorm])
@both_functions
def test_norms_of_half_precision_are_as_accurate_as_torchs(norm, size, dtype, placement, mark):
    torch.manual_seed(0)
    model = TwoNorms(norm).eval()
    model.words.weight.data.mul_(size)
    model = model.to(dtype)
    result = prune(model, masks_for(model, WORDS, placement, 0, 0.5), WORDS, joins="intersection")
    with torch.no_grad():
        slim, masked = (network(WORDS).double() for network in (result.model, result.masked))
        expected = result.model.double()(WORDS)
    assert torch.allclose(slim, expected, atol=0.02) and torch.allclose(masked, expected, atol=0.02)


class Asserting(TwoNorms):
    def width_of(self, x):
        assert x.shape[-1] == 16
        return x


class Scaling(TwoNorms):
    def width_of(self, x):
        return x * (x.shape[-1] // 16) ** -0.5


@both_functions
@pytest.mark.parametrize("kind", [Asserting, Scaling])
def test_code_that_knows_the_width_keeps_it(kind, placement, mark):
    torch.manual_seed(0)
    model = kind(nn.LayerNorm).eval().double()
    result = prune(model, masks_for(model, WORDS, placement, 0, 0.5), WORDS, joins="expand", tolerance=1e-10)
    assert result.plan.sparsity > 0.2


def test_subclasses_that_keep_their_widths_themselves():
    torch.manual_seed(0)
    model = TwoNorms(OwnLayerNorm).eval().double()
    result = prune(model, masks_for(model, WORDS, "streams", 0, 0.5), WORDS, tolerance=1e-10)
    assert any("statistics over" in edit for edit in result.plan.edits)
    model = Groups().eval().double()
    model.n, model.m = OwnGroupNorm(6, 12).double(), OwnGroupNorm(4, 8).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    masks = MaskSet({"a@groups": torch.tensor([1.0, 1, 1, -1, -1, -1]), "b@groups": torch.ones(4)})
    assert any(edit.endswith(": 3 groups") for edit in prune(model, masks, x, tolerance=1e-10).plan.edits)


class Direct(TwoNorms):
    def forward(self, x):
        x = self.words(x)
        normed = torch.layer_norm(x, (16,), self.first.weight, self.first.bias, 1e-5, torch.backends.cudnn.enabled)
        x = x + self.down(F.gelu(self.up(normed)))
        return self.head(torch.layer_norm(x, [16], cudnn_enable=False)).mean(1)


@both_functions
def test_torchs_own_layer_norm_function(placement, mark):
    torch.manual_seed(0)
    model = Direct(nn.LayerNorm).eval().double()
    masks = masks_for(model, WORDS, placement, 0, 0.5)
    assert f"words{mark}" in masks.logits
    prune(model, masks, WORDS, tolerance=1e-10)


class Adaptive(nn.Module):
    """Norms whose scale and shift are parts of a layer's result, as in diffusion transformers."""

    def __init__(self):
        super().__init__()
        self.stem, self.change, self.norm = nn.Linear(5, 8), nn.Linear(5, 16), nn.LayerNorm(8, elementwise_affine=False)
        self.up, self.down, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 3)

    def forward(self, x):
        shift, scale = self.change(x).chunk(2, -1)
        y = self.stem(x)
        y = y + self.down(F.gelu(self.up(self.norm(y) * (1 + scale) + shift)))
        return self.head(self.norm(y)).mean(1)


def test_streams_with_parts_of_a_layer_are_left_alone():
    torch.manual_seed(0)
    model, x = Adaptive().eval().double(), tokens(2, 4)
    assert [site.name for site in gate_sites(model, x, "streams")] == ["up"]
    prune(model, masks_for(model, x, "streams", 0, 0.5), x, tolerance=1e-10)


DIVISIONS = {
    "root mean square": lambda x: x / torch.sqrt(x.pow(2).mean(1, keepdim=True) + 0.1),
    "norm and one": lambda x: x / (x.norm(dim=1, keepdim=True) + 1),
    "direction": lambda x: F.normalize(x, dim=(1,)),
    "over places": lambda x: F.normalize(x, dim=(2, 3)),
}


@pytest.mark.parametrize("name", DIVISIONS)
def test_zeros_stay_zeros_whatever_they_are_divided_by(name):
    class Divided(Groups):
        def forward(self, x):
            return self.head(torch.relu(self.b(DIVISIONS[name](torch.relu(self.a(x))))).mean((2, 3)))

    torch.manual_seed(0)
    model, x = Divided().eval().double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    masks = masks_for(model, x, "tied", 0, 0.5)
    slim = prune(model, masks, x, joins="intersection", tolerance=1e-10).model
    own = getattr(slim, "model", slim)
    assert own.a.out_channels == int(masks.keep["a"].sum()) < 12


def test_rounding_with_open_groups_counts_channels():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.n, self.head = nn.Conv2d(3, 32, 3), nn.GroupNorm(8, 32), nn.Linear(32, 3)

        def forward(self, x):
            return self.head(torch.relu(self.n(self.a(x))).mean((2, 3)))

    model, x = Wide().eval().double(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    masks = MaskSet({"a@groups": torch.tensor([1.0, 1, -1, -2, -3, -4, -5, -6])})
    for fill in ("zero", "best"):
        assert prune(model, masks, x, round_to=8, round_fill=fill).model.a.out_channels == 8


class Heads(nn.Module):
    """Attention that takes its width from the stream in front of it."""

    def __init__(self, width=16):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        return self.out(((q @ k.mT * 8**-0.5).softmax(-1) @ v).transpose(1, 2).reshape(n, tokens, width))


@both_functions
def test_a_stream_shrinks_in_front_of_whole_heads(placement, mark):
    class Attending(TwoNorms):
        def width_of(self, x):
            return x + self.attend(self.before(x))

    torch.manual_seed(0)
    model = Attending(nn.LayerNorm)
    model.attend, model.before = Heads(), nn.LayerNorm(16)
    model = model.eval().double()
    sites = gate_sites(model, WORDS, placement)
    masks = {site.name: torch.ones(site.num_channels) for site in sites}
    masks[f"words{mark}"] = 1.0 - 2 * (torch.arange(16) % 2)
    result = prune(model, MaskSet(masks), WORDS, tolerance=1e-10)
    assert not result.plan.reasons and result.model.model.attend.qkv.weight.shape == (48, 8)


def test_rounding_opens_channels_of_streams_again():
    torch.manual_seed(0)
    model = TwoNorms(nn.LayerNorm).eval().double()
    masks = masks_for(model, WORDS, "streams", 0, 0.5)
    masks.logits["words@stream"][:] = torch.arange(16) - 10.5  # five are open
    result = prune(model, masks, WORDS, round_to=8, tolerance=1e-10)
    assert torch.equal(result.plan.keep["words@stream"], torch.arange(16) >= 8) and not result.plan.edits
    assert result.model.first.normalized_shape == (8,) and result.plan.rounding["reopened"] == 3


@pytest.mark.parametrize(
    "act", [lambda x: torch.where(x >= 0, x, torch.exp(x) - 1), lambda x: (x >= 0).to(x.dtype) * x]
)
def test_truth_values_in_a_stream_are_not_gated(act):
    class Choosing(TwoNorms):
        def width_of(self, x):
            return act(x)

    torch.manual_seed(0)
    model = Choosing(nn.LayerNorm).eval().double()
    masks = masks_for(model, WORDS, "streams", 0, 0.5)
    result = prune(model, masks, WORDS, joins="intersection", tolerance=1e-10)
    assert "words@stream" in masks.logits and result.plan.sparsity > 0.3


class ResizedPlaces(TwoNorms):
    """Code that asks how large a table of positions is, which the pass makes of a parameter."""

    def __init__(self, norm):
        super().__init__(norm)
        self.places = nn.Parameter(torch.randn(9, 16))

    def width_of(self, x):
        table = self.places.reshape(3, 3, -1)
        weights = torch.linspace(0, 1, x.shape[1] * len(table) ** 2, dtype=x.dtype).view(x.shape[1], -1)
        return x + (x.mean(-1, keepdim=True) * weights) @ table.reshape(-1, table.shape[-1])


def test_code_that_looks_at_a_weight_while_it_is_made_keeps_it_whole():
    torch.manual_seed(0)
    model = ResizedPlaces(nn.LayerNorm).eval().double()
    result = prune(model, masks_for(model, WORDS, "all", 0, 0.5), WORDS, joins="expand", tolerance=1e-10)
    assert result.plan.sparsity > 0.1 and result.model.model.places.shape == (9, 16)


FILLED = {
    "zeros": lambda y, pad: y.masked_fill(pad, 0.0),
    "in place": lambda y, pad: y.clone().masked_fill_(pad, 0),
    "ones": lambda y, pad: y.masked_fill(pad, 1.0),
    "a tensor": lambda y, pad: y.masked_fill(pad, torch.tensor(0.5, dtype=y.dtype)),
    "channels": lambda y, pad: y.masked_fill(y > 1, 0.0),
    "a choice": lambda y, pad: torch.where(pad, torch.zeros_like(y), y),
}


@pytest.mark.parametrize("filled", FILLED.values(), ids=FILLED)
@pytest.mark.parametrize("joins", ["intersection", "expand"])
def test_places_that_are_filled_do_not_keep_a_stream(filled, joins):
    class Padded(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm, self.head = nn.Linear(5, 16), nn.LayerNorm(16), nn.Linear(16, 3)
            self.up, self.down = nn.Linear(16, 20), nn.Linear(20, 16)

        def forward(self, x):
            pad = x[..., :1] > 1
            y = filled(self.stem(x), pad)
            return self.head((y + self.down(F.gelu(self.up(self.norm(y))).masked_fill(pad, 0.0))).mean(1))

    torch.manual_seed(0)
    model, x = Padded().eval().double(), tokens(3, 6)
    sites = gate_sites(model, x)
    assert [site.name for site in sites] == ["up", "stem@zeros"]
    masks = masks_for(model, x, "all", 0, 0.5)
    result = prune(model, masks, x, joins=joins, tolerance=1e-10)
    left = result.plan.macs[1] / result.plan.macs[0]
    cost = GateCost(trace(model, x), model, sites, joins=joins)
    assert left < 0.3 and float(cost([masks.keep[site.name].double() for site in sites])) == pytest.approx(
        left, abs=0.1
    )
