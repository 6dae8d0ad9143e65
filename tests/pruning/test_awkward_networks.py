"""Networks with one awkward thing each are pruned exactly."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from awkward import AWKWARD, awkward, closing, conv, error_of, masks_for, pictures, pooled
from cases import Net, randomise
from torch import nn

from bise_prune import MaskSet, apply_masks, gate_sites, measure, prune
from bise_prune.errors import ModelError, PruningError

# -- networks with one awkward thing each ----------------------------------------------------------


@pytest.mark.parametrize("joins", ["intersection", "expand"])
@pytest.mark.parametrize("name", list(AWKWARD))
def test_awkward_networks_are_pruned_exactly(name, joins):
    model, inputs = awkward(name), pictures()
    done = 0
    for seed in range(4):
        masks = masks_for(model, inputs, "paper", seed, 0.5)
        try:
            result = prune(model, masks, inputs, joins=joins)
        except PruningError:
            continue
        done += 1
        masked = apply_masks(model, masks, inputs)
        sizes = (8,) if name == "a literal width" else (8, 11)  # the plan does not depend on the resolution
        assert max(error_of(masked, result.model, pictures(size, 3)) for size in sizes) < 1e-12
        assert result.plan.sparsity > 0 or name == "shared layers"  # whose two uses disagree
    assert done >= 2


def test_constants_go_into_a_bias_or_one_carrier_channel():
    model, inputs = awkward("constants"), pictures()
    result = prune(model, closing(model, inputs, a=[0, 1, 2], b=[4]), inputs)
    assert type(result.model) is Net and not result.plan.edits
    # Layer b pads, so that one of the three constants stays and carries them all.
    assert result.model.a.out_channels == result.model.b.in_channels == 4
    (why,) = result.plan.reasons["a"]
    assert why == "it carries a constant into 'b', whose padding forbids a bias"
    for size in (8, 5, 13):
        assert error_of(result.masked, result.model, pictures(size)) < 1e-13
    flat = awkward("no bias")
    result = prune(flat, closing(flat, inputs, a=[0, 1, 2]), inputs)
    assert result.model.a.out_channels == result.model.b.in_channels == 3  # without padding, a new bias
    assert flat.b.bias is None and result.model.b.bias is not None
    assert error_of(result.masked, result.model, inputs) < 1e-13


def test_a_literal_width_keeps_the_width_and_says_so():
    model, inputs = awkward("a literal width"), pictures()
    result = prune(model, closing(model, inputs, a=[1, 3], b=[0]), inputs)
    assert result.model.a.out_channels == 6 and result.model.b.out_features == 6
    assert result.plan.closed_but_kept == {"a": "view needs the full width"}


@pytest.mark.parametrize("joins", ["intersection", "expand"])
def test_norms_over_all_channels_are_never_thinned(joins):
    model, inputs = awkward("attention"), pictures()
    result = prune(model, closing(model, inputs, a=[1, 3], down=[0, 5]), inputs, joins=joins)
    slim = getattr(result.model, "model", result.model)
    assert slim.norm.normalized_shape == (8,) and slim.down.in_features == 8
    assert slim.down.out_features == slim.up.in_features == 10
    assert result.plan.not_followed == ()


def test_networks_with_several_inputs():
    def forward(s, x, y):
        return s.head(pooled(torch.relu(s.c(torch.relu(s.a(x)) + torch.relu(s.b(y))))))

    torch.manual_seed(0)
    model = Net(forward, a=conv(3, 6), b=conv(2, 6), c=conv(6, 5), head=nn.Linear(5, 3)).eval().double()
    inputs = (pictures(), torch.randn(2, 2, 8, 8, dtype=torch.float64))
    for joins in ("intersection", "expand"):
        masks = closing(model, inputs, a=[0, 1, 2], b=[2, 3], c=[0])
        result = prune(model, masks, inputs, joins=joins)
        with torch.no_grad():
            assert float((result.masked(*inputs) - result.model(*inputs)).abs().max()) < 1e-13
        slim = getattr(result.model, "model", result.model)
        assert (slim.a.out_channels, slim.b.out_channels) == ((3, 4) if joins == "expand" else (5, 5))


# -- what reviewers broke --------------------------------------------------------------------------


def exact(model, masks, inputs, joins="expand", sizes=(8,)):
    """The pruned network, after a comparison at several sizes."""
    result = prune(model, masks, inputs, joins=joins)
    for size in sizes:
        assert error_of(result.masked, result.model, pictures(size, 3)) < 1e-12
    return result


@pytest.mark.parametrize("joins", ["intersection", "expand"])
def test_a_pooled_branch_is_told_from_one_that_is_small(joins):
    def forward(s, x):
        h = F.max_pool2d(torch.relu(s.a(x)), 8)
        context = torch.relu(s.e(h.mean((2, 3), keepdim=True)))
        return s.head(pooled(torch.relu(s.d(torch.relu(s.b(h)) + context))))

    torch.manual_seed(0)
    layers = {name: conv(6, 6) for name in "bd"}
    model = Net(forward, a=conv(3, 6), e=conv(6, 6, 1), head=nn.Linear(6, 3), **layers).eval().double()
    masks = closing(model, pictures(8), b=range(6))
    exact(model, masks, pictures(8), joins, sizes=(8, 16, 24))  # at 8 x 8, both branches have one place


@pytest.mark.parametrize("joins", ["intersection", "expand"])
def test_everything_that_is_returned_keeps_its_channels(joins):
    def forward(s, x):
        h = torch.relu(s.b(torch.relu(s.a(x))))
        return {"logits": s.head(pooled(torch.relu(s.c(h)))), "features": [h, pooled(h)]}

    torch.manual_seed(0)
    model = Net(forward, a=conv(3, 6), b=conv(6, 6), c=conv(6, 6), head=nn.Linear(6, 3)).eval().double()
    inputs = pictures()
    result = prune(model, closing(model, inputs, b=[0, 1, 2], c=[0]), inputs, joins=joins)
    masked, slim = result.masked(inputs), result.model(inputs)
    assert slim["features"][0].shape == (2, 6, 8, 8)
    assert torch.allclose(slim["features"][0], masked["features"][0], rtol=0, atol=1e-13)
    assert result.plan.closed_but_kept  # and says so


def test_a_grouped_classifier_keeps_its_classes():
    model = nn.Sequential(
        conv(3, 6),
        nn.ReLU(),
        conv(6, 6),
        nn.ReLU(),
        nn.Conv2d(6, 3, 1, groups=3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    model.eval().double()
    masks = {site.name: torch.ones(site.num_channels) for site in gate_sites(model, pictures(), "paper")}
    masks["2"][:2] = -1
    assert exact(model, MaskSet(masks), pictures()).model(pictures()).shape == (2, 3)


def _unpacked(s, x):
    q, k, v = torch.relu(s.a(x)).unflatten(1, (3, 2)).permute(1, 0, 2, 3, 4)
    return s.head(pooled(torch.relu(s.b(q * k + v))))


def _asked(s, x):
    h = torch.relu(s.a(x))
    scale = 2.0 if h.abs().max().item() > 1e6 else 1.0
    return s.head(pooled(torch.relu(s.b(h)) * scale))


def _left_torch(s, x):
    h = torch.relu(s.a(x))
    return s.head(pooled(torch.relu(s.b(h))) + torch.from_numpy(h.detach().numpy()).mean((2, 3))[:, :2].repeat(1, 3))


def _remembered(s, x):
    h = torch.relu(s.a(x))
    if s.position is None:
        s.position = torch.zeros_like(h[:1, :1]) + 0.1
    return s.head(pooled(torch.relu(s.b(h + s.position))))


def _written_after_a_bypass(s, x):
    h = torch.relu(s.c(torch.relu(s.a(x))))
    z = h + torch.relu(s.b(h))
    z.mul_(2)
    return s.head(pooled(torch.relu(z + h)))


def _joined_in_space(s, x):
    h = torch.relu(s.c(torch.relu(s.a(x))))
    return s.head(pooled(torch.cat([h, torch.relu(s.b(h))], 2)))


def _weights_by_hand(s, x):
    h = torch.relu(s.c(torch.relu(s.a(x))))
    return s.head(pooled(h + torch.relu(F.conv2d(h, s.b.weight, s.b.bias, padding=1))))


def _sized(s, x):
    h = torch.relu(s.c(torch.relu(s.a(x))))
    small = torch.relu(s.down(h))
    return s.head(pooled(F.interpolate(h, size=small.shape[2:]) + small))


def _signs(s, x):
    return s.head(pooled(torch.sign(s.b(torch.relu(s.a(x)))) + torch.relu(s.c(torch.relu(s.a(x))))))


def _widened(s, x):
    h = torch.relu(s.a(x))
    return s.head(pooled(torch.relu(s.b(h) + F.pad(x[:, :, ::1, ::1], (0, 0, 0, 0, 1, 2)))))


BROKEN = {
    "unpacked": (_unpacked, {"b": conv(2, 6)}),
    "asked": (_asked, {}),
    "left torch": (_left_torch, {}),
    "remembered": (_remembered, {"position": None}),
    "written after a bypass": (_written_after_a_bypass, {"c": conv(6, 6)}),
    "joined in space": (_joined_in_space, {"c": conv(6, 6)}),
    "weights by hand": (_weights_by_hand, {"c": conv(6, 6)}),
    "sized": (_sized, {"c": conv(6, 6), "down": nn.Conv2d(6, 6, 3, 2, 1)}),
    "signs": (_signs, {"c": conv(6, 6)}),
    "widened by zeros": (_widened, {}),
}


@pytest.mark.parametrize("joins", ["intersection", "expand"])
@pytest.mark.parametrize("name", list(BROKEN))
def test_networks_that_broke_it(name, joins):
    torch.manual_seed(0)
    forward, layers = BROKEN[name]
    model = Net(forward, **{"a": conv(3, 6), "b": conv(6, 6), "head": nn.Linear(6, 3), **copy.deepcopy(layers)})
    model.eval().double()
    inputs = pictures()
    sites = [site.name for site in gate_sites(model, inputs, "paper")]
    exact(model, closing(model, inputs, **{sites[0]: [0, 1]}), inputs, joins)
    if sites[-1] != sites[0]:
        exact(model, closing(model, inputs, **{sites[-1]: [3, 4], sites[0]: [5]}), inputs, joins)
    branch = {"sized": "down"}.get(name, "b")
    if branch in sites and name in ("written after a bypass", "joined in space", "weights by hand", "sized"):
        exact(model, closing(model, inputs, **{branch: range(6)}), inputs, joins)


def test_weights_that_are_read_elsewhere_are_left_alone():
    def forward(s, x):
        h = s.norm(torch.relu(s.b(torch.relu(s.a(x)))))
        return s.head(pooled(torch.relu(s.c(h))) * s.c.weight.mean((1, 2, 3)) + s.b.weight.sum())

    torch.manual_seed(0)
    model = Net(forward, a=conv(3, 6), b=conv(6, 6), norm=nn.BatchNorm2d(6), c=nn.Conv2d(6, 6, 3), head=nn.Linear(6, 3))
    randomise(model, 0)
    model.eval().double()
    result = exact(model, closing(model, pictures(), a=[0], b=[1, 2], c=[3]), pictures())
    slim = getattr(result.model, "model", result.model)
    assert torch.equal(slim.b.weight, model.b.weight) and torch.equal(slim.c.weight, model.c.weight)


def test_buffers_may_be_weights():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.randn(6, 3, 3, 3))

        def forward(self, x):
            return F.conv2d(x, self.weight)

    torch.manual_seed(0)
    model = nn.Sequential(
        Fixed(), nn.ReLU(), conv(6, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)
    )
    model.eval().double()
    masks = {site.name: torch.ones(site.num_channels) for site in gate_sites(model, pictures(), "paper")}
    masks[next(iter(masks))][1:4] = -1
    result = exact(model, MaskSet(masks), pictures())
    assert result.model[0].weight.shape[0] == 3
    assert result.plan.params[1] == sum(parameter.numel() for parameter in result.model.parameters())


def test_targets_on_chains_of_depthwise_layers():
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in ((3, 8), (8, 12), (12, 16)):
        layers += [conv(inputs, inputs, groups=inputs), nn.BatchNorm2d(inputs), nn.ReLU()]
        layers += [conv(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
    randomise(model, 0)
    model.eval().double()
    masks = masks_for(model, pictures(), "paper", 0, 0.5)
    for target in (0.1, 0.3):
        plan = prune(model, masks, pictures(), target).plan
        assert plan.sparsity == pytest.approx(target, abs=0.011)
        assert plan.target["asked"] == target and plan.target["reached"] == plan.sparsity


class ChannelAttention(nn.Module):
    """ECA: a sigmoid of what a convolution over the channels returns scales them, behind some views."""

    def __init__(self):
        super().__init__()
        self.a, self.over, self.b = nn.Conv2d(3, 12, 3), nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        y = F.relu(self.a(x))
        scale = torch.sigmoid(self.over(y.mean((2, 3)).unsqueeze(1))).transpose(1, 2).unsqueeze(-1)
        return self.head(F.relu(self.b(y * scale)).mean((2, 3)))


class OwnWeights(nn.Module):
    """A module that calls a function with its own weight, and reads another parameter beside it."""

    def __init__(self):
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(12, 6)), nn.Parameter(torch.randn(12))
        self.unused = nn.Parameter(torch.ones(5))

    def forward(self, x):
        return F.linear(x, self.weight) * self.gain


def half_closed(model, x, placement="paper"):
    return MaskSet({s.name: torch.arange(s.num_channels) % 2 - 0.5 for s in gate_sites(model, x, placement)})


@pytest.mark.parametrize("joins", ["auto", "expand", "intersection"])
def test_a_sigmoid_that_scales_behind_views_is_not_gated(joins):
    model, x = ChannelAttention().double().eval(), pictures()
    assert [site.name for site in gate_sites(model, x, "paper")] == ["b"]
    result = prune(model, half_closed(model, x), x, joins=joins)
    assert result.verification.max_abs_error < 1e-12
    assert result.model.get_submodule("b").out_channels == 6


def test_parameters_beside_the_weight_are_counted_once():
    model, x = nn.Sequential(OwnWeights(), nn.ReLU(), nn.Linear(12, 3)).double().eval(), torch.randn(3, 6).double()
    result = prune(model, half_closed(model, x), x)
    assert result.plan.params == (128, sum(p.numel() for p in result.model.parameters()))
    assert result.plan.params[1] == 6 * 6 + 6 + 5 + 6 * 3 + 3


def test_a_part_in_torchscript_is_named_and_leaves_no_hooks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        inner = torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()))
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), inner, nn.Flatten(), nn.Linear(8 * 16, 3)).eval()
    with pytest.raises(ModelError, match="'2' is a TorchScript module"):
        gate_sites(model, torch.randn(2, 3, 8, 8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in (model, model[0], model[1]))


class Observed(nn.Module):
    """Its buffer follows what it sees, in eval mode as well, as observers of quantisation-aware training do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("largest", torch.zeros((), dtype=torch.float64))

    def forward(self, x):
        self.largest.copy_(torch.maximum(self.largest, x.detach().abs().max()))
        return x


def test_buffers_that_move_in_eval_mode_are_put_back():
    observer = Observed()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), observer, nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Flatten(),
                          nn.Linear(8 * 36, 3)).double().eval()  # fmt: skip
    x = pictures()
    result = prune(model, half_closed(model, x), x)
    assert float(observer.largest) == 0 and result.verification.max_abs_error < 1e-12
    measure(model, x, latency=True, runs=2)
    assert float(observer.largest) == 0


class HeadwiseNorm(nn.Module):
    """Queries whose heads are normalised with one weight per place in a head, as the attention of Qwen3 does."""

    def __init__(self, rotates):
        super().__init__()
        self.rotates, self.queries, self.scale = rotates, nn.Linear(6, 16), nn.Parameter(torch.rand(4) + 0.5)
        self.first, self.second, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 3)
        self.register_buffer("cosines", torch.rand(1, 1, 5, 4))

    def forward(self, x):
        q = self.queries(x).view(len(x), 5, 4, 4)
        q = (self.scale * (q * torch.rsqrt(q.pow(2).mean(-1, keepdim=True) + 1e-6))).transpose(1, 2)
        q = q * self.cosines if self.rotates else q
        y = ((q @ q.transpose(-1, -2)).softmax(-1) @ q).transpose(1, 2).flatten(2)
        return self.head((y + self.second(F.silu(self.first(y)))).mean(1))


@pytest.mark.parametrize("joins", ["expand", "intersection"])
@pytest.mark.parametrize("rotates", [False, True])
def test_a_weight_over_several_heads_stays(rotates, joins):
    torch.manual_seed(0)
    model, x = HeadwiseNorm(rotates).double().eval(), torch.randn(2, 5, 6).double()
    result = prune(model, half_closed(model, x), x, joins=joins)
    assert result.verification.max_abs_error < 1e-12 and not result.plan.edits
    assert result.model.get_submodule("first").out_features == 12


def _frozen(s, x):
    scale = s.weight.reshape(1, -1, 1, 1) * (s.variance.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
    return torch.relu(s.a(x) * scale + s.shift.reshape(1, -1, 1, 1))


def _positions(s, x):
    places = torch.arange(x.shape[-1], dtype=x.dtype)[:, None] * torch.linspace(0.1, 1, 8, dtype=x.dtype)
    return torch.relu(s.a(x) + places.sin().T[:, None])


def _declared(s, x):
    return torch.relu(s.a(x) + torch.linspace(0.1, 1, s.a.out_channels, dtype=x.dtype)[:, None, None])


@pytest.mark.parametrize("form", [_frozen, _positions, _declared])
@pytest.mark.parametrize("joins", ["intersection", "expand"])
@pytest.mark.parametrize("seed", range(3))
def test_tables_made_during_the_pass_are_read_where_channels_are_left(form, joins, seed):
    """Frozen batch norms and encodings of positions compute a number a channel from buffers or from nothing."""
    torch.manual_seed(seed)
    model = Net(
        lambda s, x: s.head(pooled(torch.relu(s.b(form(s, x))))), a=conv(3, 8), b=conv(8, 6), head=nn.Linear(6, 3)
    )
    for name in ("weight", "variance", "shift"):
        model.register_buffer(name, torch.rand(8))
    model = model.eval().double()
    x = pictures()
    for placement in ("tied", "paper"):
        masks = masks_for(model, x, placement, seed, 0.5)
        masks.logits["a"][:2] = torch.tensor([-1.0, 1.0])
        result = prune(model, masks, x, joins=joins)
        for size in (8, 12):
            assert error_of(result.model, result.masked, pictures(size)) < 1e-13
        slim = getattr(result.model, "model", result.model)
        assert slim.a.out_channels == (8 if form is _declared else int(masks.keep["a"].sum()))


@pytest.mark.parametrize("placement", ["tied", "all"])
def test_embeddings_that_are_a_linear_layer_as_well_stay_whole(placement):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.norm = nn.Embedding(11, 16), nn.LayerNorm(16)
            self.up, self.down, self.head = nn.Linear(16, 20), nn.Linear(20, 16), nn.Linear(16, 3)

        def forward(self, x):
            y = self.words(x)
            y = y + self.down(nn.functional.gelu(self.up(self.norm(y))))
            return self.head(y.mean(1)), nn.functional.linear(y, self.words.weight)

    model, x = Tied().eval().double(), torch.arange(8).view(2, 4)
    result = prune(model, masks_for(model, x, placement, 0, 0.5), x, tolerance=1e-10)
    slim = getattr(result.model, "model", result.model)
    assert slim.words.weight.shape == (11, 16) and slim.up.out_features < 20
