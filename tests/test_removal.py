"""The slim network equals the masked one: random graphs, awkward networks, and an independent engine."""

import copy
import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cases import Net, randomise, torchvision_network
from torch import nn

from bise_prune import MaskSet, apply_masks, export_program, fuse_batchnorm, gate_sites, load_slim, prune, save_slim
from bise_prune.channels.edited_model import RewiredModel
from bise_prune.checkpoint import load_checkpoint
from bise_prune.errors import CheckpointError, ModelError, PruningError
from bise_prune.export.denormals import flush_denormals

ACTIVATIONS = [torch.relu, F.silu, F.gelu, torch.tanh, F.hardswish, torch.sigmoid, F.softplus, F.leaky_relu]


class RandomGraph(nn.Module):
    """A network drawn from a seed: a list of steps, each reading values made before."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        self.layers = nn.ModuleList()
        self.steps = []
        widths = [3]
        shared = {}
        for _ in range(draw.randint(4, 11)):
            kind = draw.choice(
                ["conv"] * 4 + ["norm", "act", "act", "act", "add", "add", "cat", "mul", "depthwise", "grouped"]
                + ["shuffle", "chunk", "excite", "shared", "scale", "prelu", "transposed", "group_norm", "last", "pad"]
            )  # fmt: skip
            source = len(widths) - 1 if draw.random() < 0.7 else draw.randrange(len(widths))
            width = widths[source]
            step = None
            if kind == "conv":
                out, kernel = draw.choice([4, 6, 8]), draw.choice([1, 3])
                mode = draw.choice(["zeros", "zeros", "reflect", "circular"])
                pad = kernel // 2
                layer = nn.Conv2d(width, out, kernel, padding=pad, padding_mode=mode, bias=draw.random() < 0.5)
                step = ("layer", source, self._add(layer), out)
            elif kind == "transposed":
                out = draw.choice([4, 6])
                step = ("layer", source, self._add(nn.ConvTranspose2d(width, out, 3, padding=1)), out)
            elif kind == "depthwise":
                step = ("layer", source, self._add(nn.Conv2d(width, width, 3, padding=1, groups=width)), width)
            elif kind == "grouped" and width % 2 == 0:
                step = (
                    "layer",
                    source,
                    self._add(nn.Conv2d(width, 2 * draw.choice([2, 3]), 3, padding=1, groups=2)),
                    None,
                )
            elif kind == "norm":
                step = ("layer", source, self._add(nn.BatchNorm2d(width)), width)
            elif kind == "group_norm":
                step = ("layer", source, self._add(nn.GroupNorm(1, width)), width)
            elif kind == "prelu":
                step = ("layer", source, self._add(nn.PReLU(draw.choice([1, width]))), width)
            elif kind == "act":
                step = ("act", source, draw.randrange(len(ACTIVATIONS)), width)
            elif kind in ("add", "mul"):
                others = [i for i, w in enumerate(widths) if w == width and i != source]
                if others:
                    step = (kind, source, draw.choice(others), width)
            elif kind == "cat":
                other = draw.randrange(len(widths))
                if width + widths[other] <= 20:
                    step = ("cat", source, other, width + widths[other])
            elif kind == "shuffle" and width % 2 == 0:
                step = ("shuffle", source, 0, width)
            elif kind == "chunk" and width % 2 == 0:
                step = ("chunk", source, draw.randrange(2), width // 2)
            elif kind == "last":
                step = ("last", source, self._add(nn.Linear(width, 6)), 6)
            elif kind == "pad":
                step = ("pad", source, 0, width)
            elif kind == "excite":
                squeeze = self._add(nn.Linear(width, 4))
                step = ("excite", source, (squeeze, self._add(nn.Linear(4, width))), width)
            elif kind == "scale":
                self.register_parameter(f"scale{len(widths)}", nn.Parameter(torch.randn(width, 1, 1)))
                step = ("scale", source, len(widths), width)
            elif kind == "shared":
                if width not in shared:
                    shared[width] = self._add(nn.Conv2d(width, width, 3, padding=1))
                step = ("layer", source, shared[width], width)
            if step is None:
                continue
            if step[3] is None:
                step = (*step[:3], self.layers[step[2]].out_channels)
            self.steps.append(step)
            widths.append(step[3])
        self.flat = draw.choice([None, None, None, "channels first", "channels last"])
        self.head = nn.Linear(widths[-1] * (36 if self.flat else 1), 3)

    def _add(self, layer):
        self.layers.append(layer)
        return len(self.layers) - 1

    def forward(self, x):
        values = [x]
        for kind, source, extra, _ in self.steps:
            h = values[source]
            if kind == "layer":
                h = self.layers[extra](h)
            elif kind == "act":
                h = ACTIVATIONS[extra](h)
            elif kind == "add":
                h = h + values[extra]
            elif kind == "mul":
                h = h * values[extra]
            elif kind == "cat":
                h = torch.cat([h, values[extra]], 1)
            elif kind == "shuffle":
                b, c, height, width = h.shape
                h = h.view(b, 2, c // 2, height, width).transpose(1, 2).reshape(b, c, height, width)
            elif kind == "chunk":
                h = h.chunk(2, dim=1)[extra]
            elif kind == "last":
                h = self.layers[extra](h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            elif kind == "pad":
                h = F.pad(h, (1, 0, 0, 1))[:, :, :6, :6]
            elif kind == "excite":
                gate = torch.sigmoid(self.layers[extra[1]](F.relu(self.layers[extra[0]](h.mean((2, 3))))))
                h = h * gate[:, :, None, None]
            elif kind == "scale":
                h = h * getattr(self, f"scale{extra}")
            values.append(h)
        h = values[-1]
        if self.flat == "channels last":
            h = h.permute(0, 2, 3, 1)
        return self.head(h.flatten(1) if self.flat else h.mean((2, 3)))


def drawn(seed):
    torch.manual_seed(seed)
    model = RandomGraph(seed)
    randomise(model, seed)
    return model.eval().double()


def masks_for(model, inputs, placement, seed, share):
    generator = torch.Generator().manual_seed(seed)
    sites = gate_sites(model, inputs, placement)
    return MaskSet({site.name: torch.rand(site.num_channels, generator=generator) - share for site in sites})


def check(seed, joins, share):
    model = drawn(seed)
    inputs = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    try:
        masks = masks_for(model, inputs, "paper", seed, share)
    except Exception as error:
        return str(error)
    try:
        result = prune(model, masks, inputs, joins=joins)
    except PruningError as error:
        assert "a dead network" in str(error)
        return "dead"
    masked = apply_masks(model, masks, inputs)
    other = torch.randn(3, 3, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        for batch in (inputs, other):
            expected = masked(batch)
            error = (expected - result.model(batch)).abs().max() / expected.abs().max().clamp(min=1)
            assert error < 1e-10, f"seed {seed}"
            fused = fuse_batchnorm(copy.deepcopy(result.model), inputs)
            assert (expected - fused(batch)).abs().max() / expected.abs().max().clamp(min=1) < 1e-10
    params = sum(parameter.numel() for parameter in result.model.parameters())
    assert params == result.plan.params[1]
    return "exact"


@pytest.mark.parametrize("joins", ["intersection", "expand"])
@pytest.mark.parametrize("start", range(0, 60, 10))
def test_random_graphs_are_pruned_exactly(start, joins):
    outcomes = [check(seed, joins, share) for seed in range(start, start + 10) for share in (0.3, 0.7)]
    assert outcomes.count("exact") >= 8, outcomes


# -- networks with one awkward thing each --------------------------------------------------------------


def pooled(h):
    return h.mean((2, 3))


def conv(inputs, outputs, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def _split_and_join(s, x):
    left, right = torch.split(torch.relu(s.a(x)), [3, 5], dim=1)
    return s.head(pooled(torch.relu(s.b(torch.cat([right, torch.relu(s.c(left))], 1)))))


def _reshaped(s, x):
    h = torch.relu(s.a(x))
    return s.head(torch.relu(s.b(h.reshape(h.shape[0], h.shape[1], -1).mean(2))))


def _literal(s, x):
    return s.head(torch.relu(s.b(torch.relu(s.a(x)).view(-1, 6, 64).mean(2))))


def _one_channel(s, x):
    return s.head(pooled(torch.relu(s.b(torch.relu(s.a(x)) * torch.sigmoid(s.attention(x))))))


def _two_streams(s, x):
    first = torch.relu(s.a(x))
    second = torch.relu(s.shared(first)) + first
    return s.head(pooled(torch.relu(s.shared(second)) + torch.cat([second[:, 3:], second[:, :3]], 1)))


def _attention(s, x):
    tokens = torch.relu(s.a(torch.relu(s.stem(x)))).flatten(2).transpose(1, 2)
    mixed, _ = s.mix(tokens, tokens, tokens, need_weights=False)
    return s.head(s.up(torch.relu(s.down(s.norm(tokens + mixed)))).mean(1))


def _grouped_after_concat(s, x):
    h = torch.cat([torch.relu(s.a(x)), torch.relu(s.b(x))], 1)
    return s.head(pooled(torch.relu(s.bn(s.c(h))) + s.d(h)))


def _constants(s, x):
    h = s.norm(torch.relu(s.a(x)))  # a closed channel leaves the shift of the norm
    return s.head(pooled(torch.relu(s.c(torch.sigmoid(s.b(h))))))


AWKWARD = {
    "split and join": lambda: Net(_split_and_join, a=conv(3, 8), b=conv(9, 6), c=conv(3, 4), head=nn.Linear(6, 3)),
    "reshape": lambda: Net(_reshaped, a=conv(3, 8), b=nn.Linear(8, 7), head=nn.Linear(7, 3)),
    "a literal width": lambda: Net(_literal, a=conv(3, 6), b=nn.Linear(6, 7), head=nn.Linear(7, 3)),
    "one channel": lambda: Net(
        _one_channel, a=conv(3, 6), b=conv(6, 5), attention=conv(3, 1), head=nn.Linear(5, 3)
    ),
    "shared layers": lambda: Net(_two_streams, a=conv(3, 6), shared=conv(6, 6), head=nn.Linear(6, 3)),
    "attention": lambda: Net(
        _attention, stem=conv(3, 4), a=conv(4, 8), mix=nn.MultiheadAttention(8, 2, batch_first=True), 
        norm=nn.LayerNorm(8), down=nn.Linear(8, 12), up=nn.Linear(12, 8), head=nn.Linear(8, 3),
    ),
    "grouped after concat": lambda: Net(
        _grouped_after_concat, a=conv(3, 4), b=conv(3, 4, 1), c=conv(8, 6, groups=2), bn=nn.BatchNorm2d(6),
        d=nn.Conv2d(8, 6, 1, groups=2), head=nn.Linear(6, 3),
    ),
    "constants": lambda: Net(
        _constants, a=conv(3, 6), norm=nn.BatchNorm2d(6), b=conv(6, 6), c=conv(6, 6), head=nn.Linear(6, 3)
    ),
    "no bias": lambda: Net(
        _constants, a=conv(3, 6, bias=False), norm=nn.BatchNorm2d(6), b=conv(6, 6, 1, bias=False),
        c=conv(6, 6, bias=False), head=nn.Linear(6, 3),
    ),
}  # fmt: skip


def awkward(name, seed=0):
    torch.manual_seed(seed)
    model = AWKWARD[name]()
    randomise(model, seed)
    return model.eval().double()


def pictures(size=8, n=2):
    return torch.randn(n, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(size))


def error_of(first, second, batch):
    with torch.no_grad():
        return float((first(batch) - second(batch)).abs().max())


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


def closing(model, inputs, **closed):
    masks = {site.name: torch.ones(site.num_channels) for site in gate_sites(model, inputs, "paper")}
    for name, channels in closed.items():
        masks[name][list(channels)] = -1
    return MaskSet(masks)


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
    assert "in 'norm', layer_norm computes with all its channels at once" in result.plan.not_followed
    assert "in 'mix', multi_head_attention_forward is not understood" in result.plan.not_followed


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


# -- what reviewers broke ------------------------------------------------------------------------------


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


def test_precisions_are_kept_layer_by_layer(tmp_path):
    model, inputs = awkward("no bias").float(), pictures().float()
    model.register_buffer("clock", torch.zeros(3, dtype=torch.float64))
    model.norm.to(torch.float32)
    result = prune(model, closing(model, inputs, a=[0, 1, 2]), inputs)
    assert result.model.clock.dtype == torch.float64 and result.model.b.bias.dtype == torch.float32
    slim = copy.deepcopy(result.model).half()
    save_slim(tmp_path / "half.safetensors", slim)
    other = awkward("no bias").float()
    other.register_buffer("clock", torch.zeros(3))
    loaded = load_slim(tmp_path / "half.safetensors", other)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float16}


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


DAMAGE = [
    {"edits": 3}, {"totals": None}, {"groups": {"b": "x"}}, {"identities": ["nowhere"]}, {"identities": [3]},
    {"edits": [{"function": "add"}]},
]  # fmt: skip
EDIT_DAMAGE = [
    {"action": "explode"}, {"count": -1}, {"operands": {"0": {"dim": 99, "index": [0], "constants": [], "present": 1}}},
    {"operands": {"0": {"dim": 1, "index": [7], "constants": [], "present": 1}}}, {"mask": [1, 3]},
    {"operands": {"0": {"dim": 1, "index": ["a"], "constants": [], "present": 1}}}, {"fixed": {"0": [[2], ["a", "b"]]}},
    {"fixed": {"0": [[2, 2], [1.0]]}}, {"operands": {"0": {"dim": 1, "index": [0], "constants": ["a"], "present": 1}}},
]  # fmt: skip


@pytest.mark.parametrize("damage", [*DAMAGE, *EDIT_DAMAGE], ids=str)
def test_damaged_headers_are_one_clear_error(rewired, tmp_path, damage):
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "slim.safetensors"
    save_slim(path, rewired[0])
    with safe_open(path, framework="pt") as file:
        about, state = json.loads(file.metadata()["bise_prune"]), {k: file.get_tensor(k) for k in file.keys()}
    if damage in EDIT_DAMAGE:
        about["slim"]["edits"][0].update(damage)
    else:
        about["slim"].update(damage)
    save_file(state, path, metadata={"bise_prune": json.dumps(about)})
    with pytest.raises(CheckpointError, match=r"slim\.safetensors"):
        load_slim(path, torchvision_network("shufflenet_v2_x0_5"))


# -- an independent engine -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18"])
def test_simplify_agrees_where_it_is_right(name):
    simplify = pytest.importorskip("simplify").simplify
    model, inputs = torchvision_network(name).double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    sites = gate_sites(model, inputs, "tied")
    masks = masks_for(model, inputs, "tied", 0, 0.5)
    result = prune(model, masks, inputs)
    zeroed = copy.deepcopy(model)
    modules = dict(zeroed.named_modules())
    names = list(modules)
    with torch.no_grad():
        for site in sites:
            layers = [call.layer for call in site.calls]
            layers += [
                x.replace("conv2", "downsample.0") for x in layers if x.replace("conv2", "downsample.0") in names
            ]
            for layer in dict.fromkeys(layers):
                following = modules[names[names.index(layer) + 1]]
                for module in (modules[layer], following):
                    if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
                        module.weight[~masks.keep[site.name]] = 0
                        if module.bias is not None:
                            module.bias[~masks.keep[site.name]] = 0
    assert error_of(zeroed, result.masked, inputs) == 0
    theirs = simplify(zeroed, torch.zeros(1, 3, 32, 32, dtype=torch.float64), fuse_bn=False)
    assert error_of(theirs, result.model, inputs) < 1e-12
    assert result.plan.params[1] <= sum(parameter.numel() for parameter in theirs.parameters())


# -- what becomes of a rewired network ------------------------------------------------------------------


@pytest.fixture(scope="module")
def rewired():
    model, inputs = torchvision_network("shufflenet_v2_x0_5"), torch.randn(2, 3, 64, 64)
    result = prune(model, masks_for(model, inputs, "paper", 0, 0.5), inputs, joins="expand")
    assert isinstance(result.model, RewiredModel)
    return result.model, inputs


def test_it_is_copied_compiled_and_moved(rewired):
    slim, inputs = rewired
    expected = slim(inputs)
    assert torch.equal(copy.deepcopy(slim)(inputs), expected)
    assert torch.allclose(slim.double()(inputs.double()).float(), expected, rtol=0, atol=1e-5)
    slim.float()
    torch.compiler.reset()
    assert torch.equal(torch.compile(slim, backend="eager", fullgraph=True)(inputs), expected)


def test_it_is_finetuned(rewired):
    slim, inputs = copy.deepcopy(rewired[0]).train(), rewired[1]
    before = slim(inputs)
    optimiser = torch.optim.SGD(slim.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        loss = F.cross_entropy(slim(inputs), torch.tensor([0, 1]))
        loss.backward()
        optimiser.step()
    assert all(parameter.grad is not None for parameter in slim.parameters())
    assert not torch.equal(slim(inputs), before)


def test_stochastic_depth_does_not_disturb_the_count():
    model, inputs = torchvision_network("efficientnet_b0"), torch.randn(2, 3, 64, 64)
    result = prune(model, masks_for(model, inputs, "paper", 0, 0.5), inputs, joins="expand")
    slim = result.model.train()
    for module in slim.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert torch.allclose(slim(inputs), result.masked(inputs), rtol=0, atol=1e-3)
    assert slim.training and slim.model.training


def test_its_program_needs_torch_alone_and_tells_nothing(rewired, tmp_path):
    slim, inputs = rewired
    check = export_program(slim, tmp_path / "slim.pt2", inputs)
    assert check.passed and check.batch_sizes == (1, 2, 5)
    content = (tmp_path / "slim.pt2").read_bytes()
    assert str(Path(__file__).parent.parent).encode() not in content and b"site-packages" not in content
    code = (
        "import sys, torch; program = torch.export.load(sys.argv[1]); "
        "assert program.example_inputs is None; print(program.module()(torch.randn(3, 3, 64, 64)).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "slim.pt2"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert "torch.Size([3, 7])" in done.stdout, done.stderr


def test_it_is_written_and_read_without_code(rewired, tmp_path):
    slim, inputs = rewired
    save_slim(tmp_path / "slim.safetensors", slim)
    with pytest.raises(CheckpointError, match="does not name an architecture"):
        load_slim(tmp_path / "slim.safetensors")
    loaded = load_slim(tmp_path / "slim.safetensors", torchvision_network("shufflenet_v2_x0_5", seed=1))
    assert torch.equal(loaded(inputs), slim(inputs))


@pytest.mark.parametrize("name", ["grouped after concat", "constants", "no bias"])
def test_networks_of_users_are_written_and_read(name, tmp_path):
    model, inputs = awkward(name), pictures()
    result = prune(model, masks_for(model, inputs, "paper", 1, 0.5), inputs, joins="expand")
    fused = fuse_batchnorm(result.model, inputs)
    for slim in (result.model, fused):
        save_slim(tmp_path / "slim.safetensors", slim, plan=result.plan)
        loaded = load_slim(tmp_path / "slim.safetensors", awkward(name, 5))
        assert error_of(loaded, slim, inputs) == 0
    assert load_checkpoint(tmp_path / "slim.safetensors").plan == json.loads(json.dumps(result.plan.as_dict()))


def test_a_forward_pass_that_takes_another_path_is_an_error(rewired):
    slim, _ = rewired
    other = copy.deepcopy(slim)
    other.model.conv1 = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.ReLU())
    with pytest.raises((ModelError, RuntimeError)):
        other(torch.randn(2, 3, 64, 64))


def test_denormal_weights_are_flushed_and_counted():
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight[0, :3] = 1e-38
        model.weight[1, 0] = -1e-31
        model.weight[2, 0] = 0
    assert flush_denormals(model) == 4
    assert model.weight[0, :3].tolist() == [0, 0, 0] and flush_denormals(model) == 0


# -- fusion ----------------------------------------------------------------------------------------------


def test_norms_after_transposed_and_grouped_layers_are_fused():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6), nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(6 * 49, 5), nn.BatchNorm1d(5),
    )  # fmt: skip
    randomise(model, 0)
    model.eval().double()
    fused = fuse_batchnorm(model, pictures())
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in fused.modules())
    assert error_of(model, fused, pictures()) < 1e-12


def test_norms_that_are_rearranged_on_their_way_keep_their_edits_when_others_are_fused():
    model, inputs = torchvision_network("densenet121").double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    result = prune(model, masks_for(model, inputs, "paper", 0, 0.5), inputs, joins="expand")
    assert any(edit.function == "batch_norm" for edit in result.model.edits)
    fused = fuse_batchnorm(result.model, inputs)
    norms = [sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) for net in (result.model, fused)]
    assert norms[1] < norms[0]
    assert error_of(result.model, fused, inputs) < 1e-12
