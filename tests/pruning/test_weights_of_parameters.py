"""Layers whose weights the forward pass makes of parameters, and products with parameters that no layer owns."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from awkward import masks_for
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from bise_prune import MaskSet, export_onnx, gate_sites, load_slim, prune, save_slim
from bise_prune.tracing import trace


class Standardised(nn.Conv2d):
    """A convolution with weights of mean 0 and variance 1, by a batch norm, as in NFNet and BiT."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5)

    def forward(self, x):
        gain = (self.gain * 0.7).view(-1)
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=gain, training=True, momentum=0.0).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Centred(nn.Conv2d):
    """A convolution with standardised weights, written out."""

    def forward(self, x):
        variance, mean = torch.var_mean(self.weight, dim=[1, 2, 3], keepdim=True, unbiased=False)
        weight = (self.weight - mean) / (variance + 1e-5).sqrt()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class LowRank(nn.Linear):
    """A linear layer with a low-rank update that is not merged (LoRA)."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.a, self.b = nn.Parameter(torch.randn(2, inputs)), nn.Parameter(torch.randn(outputs, 2))

    def forward(self, x):
        return F.linear(x, self.weight + self.b @ self.a * 0.3, self.bias)


class Conv1D(nn.Module):
    """The linear layer of GPT-2: inputs first, and a width that its forward pass asks for."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.nx, self.nf = inputs, outputs
        self.weight, self.bias = nn.Parameter(torch.randn(inputs, outputs) * 0.3), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        size = (*x.size()[:-1], self.nf)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


class Product(nn.Module):
    """A product with a parameter, as people write it."""

    def __init__(self, inputs, outputs, way):
        super().__init__()
        self.way, is_flipped = way, way in ("T", "t", "mT", "einsum, flipped")
        shape = (outputs, inputs) if is_flipped else (inputs, outputs)
        self.w, self.b = nn.Parameter(torch.randn(shape) * 0.3), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        if self.way == "plain":
            return x @ self.w + self.b
        if self.way == "linear":
            return F.linear(x, self.w.t(), self.b)
        if self.way == "einsum":
            return torch.einsum("...i,io->...o", x, self.w) + self.b
        if self.way == "einsum, flipped":
            return torch.einsum("nti, oi -> nto", x, self.w) + self.b
        return x @ {"T": lambda: self.w.T, "t": self.w.t, "mT": lambda: self.w.mT}[self.way]() + self.b


class TwoProducts(nn.Module):
    """A module with two weights of its own."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(6, 10) * 0.3), nn.Parameter(torch.randn(10, 8) * 0.3)

    def forward(self, x):
        return torch.sigmoid(x @ self.up) @ self.down


class Cosines(nn.Module):
    """A classifier by cosines, whose features and weights are normalised."""

    def __init__(self):
        super().__init__()
        self.features = linear_net(nn.Linear)[:-1]
        self.w = nn.Parameter(torch.randn(3, 12))

    def forward(self, x):
        return 10 * F.linear(F.normalize(self.features(x).mean(1)), F.normalize(self.w))


def conv_net(conv, activation=nn.ReLU):
    return nn.Sequential(
        conv(3, 8, 3), activation(), conv(8, 12, 3, padding=1), activation(), conv(12, 12, 3, padding=1, groups=4),
        activation(), conv(12, 12, 3, groups=12), activation(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip


def linear_net(linear, activation=nn.ReLU):
    return nn.Sequential(linear(6, 10), activation(), linear(10, 12), activation(), nn.Linear(12, 4))


def normed(norm, kind):
    return lambda *args, **kwargs: norm(kind(*args, **kwargs))


def transposed_net():
    conv = normed(parametrizations.weight_norm, nn.ConvTranspose2d)
    return nn.Sequential(
        conv(3, 8, 3), nn.Sigmoid(), conv(8, 6, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 3),
    )  # fmt: skip


IMAGES, TOKENS = torch.randn(3, 3, 12, 12), torch.randn(3, 5, 6)
NETWORKS = {
    "standardised by a batch norm": (lambda: conv_net(Standardised, nn.Sigmoid), IMAGES),
    "standardised, written out": (lambda: conv_net(Centred), IMAGES),
    "weight norm": (lambda: conv_net(normed(parametrizations.weight_norm, nn.Conv2d)), IMAGES),
    "spectral norm": (lambda: conv_net(normed(parametrizations.spectral_norm, nn.Conv2d), nn.Sigmoid), IMAGES),
    "weight norm by a hook": (lambda: conv_net(normed(weight_norm, nn.Conv2d), nn.Sigmoid), IMAGES),
    "spectral norm by a hook": (lambda: conv_net(normed(spectral_norm, nn.Conv2d)), IMAGES),
    "orthogonal": (lambda: linear_net(normed(parametrizations.orthogonal, nn.Linear)), TOKENS),
    "low rank": (lambda: linear_net(LowRank, nn.Sigmoid), TOKENS),
    "GPT-2's": (lambda: linear_net(Conv1D, nn.GELU), TOKENS),
    "two in one module": (lambda: nn.Sequential(TwoProducts(), nn.ReLU(), nn.Linear(8, 3)), TOKENS),
    "transposed": (transposed_net, IMAGES),
    "cosines": (Cosines, TOKENS),
} | {
    f"product, {way}": (lambda way=way: linear_net(lambda i, o: Product(i, o, way), nn.Sigmoid), TOKENS)
    for way in ("plain", "linear", "T", "t", "mT", "einsum", "einsum, flipped")
}  # fmt: skip
SPENT = {"standardised by a batch norm": 32 + 12, "low rank": 2 * (6 + 10) + 2 * (10 + 12), "weight norm": 44}


def made(name):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the hooks
        network = NETWORKS[name][0]().eval()
    for parameter in network.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, 0.2, 0.5)
    return network


def half_closed(network, x, placement="paper"):
    masks = {}
    generator = torch.Generator().manual_seed(1)
    for site in gate_sites(network, x, placement):
        masks[site.name] = torch.rand(site.num_channels, generator=generator) - 0.5
        masks[site.name][0] = 1.0
    return MaskSet(masks)


@pytest.mark.parametrize("joins", ["intersection", "expand"])
@pytest.mark.parametrize("name", NETWORKS)
def test_removal_is_exact_and_complete(name, joins):
    network, x = made(name), NETWORKS[name][1]
    masks = half_closed(network, x)
    result = prune(network, masks, x, joins=joins)  # which compares with the masked network in float64
    assert result.verification.max_abs_error < 1e-12
    assert result.plan.params[1] == sum(p.numel() for p in result.model.parameters())
    assert result.plan.macs[1] < 0.75 * result.plan.macs[0]
    assert not [reason for reason in result.plan.not_followed if "normalize" not in reason]


@pytest.mark.parametrize("name", NETWORKS)
def test_slim_networks_are_saved_copied_and_exported(name, tmp_path):
    network, x = made(name), NETWORKS[name][1]
    slim = prune(network, half_closed(network, x), x, joins="expand").model
    save_slim(tmp_path / "slim.safetensors", slim)
    again = load_slim(tmp_path / "slim.safetensors", made(name))
    with torch.no_grad():
        expected = slim(x)
        assert torch.equal(again(x), expected)
        assert torch.equal(copy.deepcopy(slim)(x), expected)
    assert export_onnx(slim, tmp_path / "slim.onnx", x[:2]).max_abs_error < 1e-3


@pytest.mark.parametrize("name", ["standardised by a batch norm", "weight norm", "spectral norm", "low rank"])
def test_steps_that_make_weights_are_gone(name):
    network, x = made(name), NETWORKS[name][1]
    slim = prune(network, half_closed(network, x), x, joins="intersection").model
    record = trace(slim, x)
    assert record.folds == {} or all(
        step.function == "view" for fold in record.folds.values() for step, _ in fold.skipped.values()
    )
    assert not {"batch_norm", "weight_norm", "mv", "matmul"} & {call.function for call in record.calls}


def test_folded_weights_give_the_network_with_plain_weights():
    """Removing parametrisations first, as torch does it, and removing channels then gives the same network."""
    network, plain, x = made("weight norm"), made("weight norm"), IMAGES
    for module in plain.modules():
        if nn.utils.parametrize.is_parametrized(module):
            nn.utils.parametrize.remove_parametrizations(module, "weight")
    masks = half_closed(network, x)
    ours, theirs = (prune(n, masks, x, joins="intersection") for n in (network, plain))
    assert ours.plan.params[1] == theirs.plan.params[1]
    assert ours.plan.macs == theirs.plan.macs
    with torch.no_grad():
        assert torch.allclose(ours.model(x), theirs.model(x), atol=1e-6)


@pytest.mark.parametrize("name", ["spectral norm", "spectral norm by a hook", "weight norm"])
def test_slim_networks_train(name):
    network, x = made(name), NETWORKS[name][1]
    slim = prune(network, half_closed(network, x), x, joins="intersection").model.train()
    slim(x).sum().backward()
    assert all(p.grad is not None for p in slim.parameters() if p.numel())


DECODERS = {
    "another expression": lambda w: w.exp(),
    "the other orientation": lambda w: w / w.norm(),
    "itself": lambda w: w,
    "a part": lambda w: w[:, :6],
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_parameter_that_is_read_elsewhere_keeps_its_shape(decoder):
    class Tied(nn.Module):
        """Encodes and decodes with one weight."""

        def __init__(self):
            super().__init__()
            self.w, self.head = nn.Parameter(torch.randn(10, 6)), nn.Linear(6, 3)

        def forward(self, x):
            hidden = torch.relu(F.linear(x, self.w / self.w.norm()))
            return self.head(hidden @ DECODERS[decoder](self.w))

    torch.manual_seed(0)
    network = Tied().eval()
    result = prune(network, half_closed(network, TOKENS), TOKENS)
    assert result.verification.max_abs_error < 1e-12
    state = result.model.state_dict()
    assert state[next(name for name in state if name.endswith("w"))].shape == (10, 6)


class Generated(nn.Module):
    """A layer whose weight and bias are made by others."""

    def __init__(self):
        super().__init__()
        self.code, self.make, self.head = nn.Parameter(torch.randn(4)), nn.Linear(4, 60), nn.Linear(10, 3)
        self.parts = nn.ParameterList(nn.Parameter(torch.randn(5)) for _ in range(2))

    def forward(self, x):
        bias = torch.cat(list(self.parts))
        return self.head(torch.sigmoid(F.linear(x, self.make(self.code).view(10, 6), bias)))


def test_a_weight_of_another_shape_is_stored_in_a_parameter_that_made_it(tmp_path):
    torch.manual_seed(0)
    network = Generated().eval()
    result = prune(network, half_closed(network, TOKENS), TOKENS)
    assert result.verification.max_abs_error < 1e-12
    assert result.plan.params[1] == sum(p.numel() for p in result.model.parameters())
    closed = sum(int((~mask).sum()) for mask in result.plan.keep.values())
    assert result.plan.params[1] == (10 - closed) * (6 + 1 + 3) + 3
    save_slim(tmp_path / "slim.safetensors", result.model)
    again = load_slim(tmp_path / "slim.safetensors", Generated().eval())
    assert torch.equal(again(TOKENS), result.model(TOKENS))


def test_a_weight_that_depends_on_the_input_is_left_whole():
    class Attentive(nn.Module):
        """A layer whose weight is scaled by a number made of the input."""

        def __init__(self):
            super().__init__()
            self.w, self.head = nn.Parameter(torch.randn(10, 6)), nn.Linear(10, 3)

        def forward(self, x):
            return self.head(torch.relu(F.linear(x, self.w * x.mean())))

    torch.manual_seed(0)
    network = Attentive().eval()
    result = prune(network, half_closed(network, TOKENS), TOKENS)
    assert result.verification.max_abs_error < 1e-12
    assert any("no module's own parameters" in reason for reason in result.plan.not_followed)


class WithoutKeyBias(nn.Module):
    """Two layers in one, the bias of the second of which is set to zero through a view, as in Swin V2."""

    def __init__(self):
        super().__init__()
        self.both, self.down, self.head = nn.Linear(5, 16), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        bias = self.both.bias.clone()
        bias[8:].zero_()
        first, second = F.linear(x, self.both.weight, bias).chunk(2, -1)
        return self.head(torch.relu(self.down(torch.relu(first) * torch.sigmoid(second))))


def test_biases_that_are_changed_through_a_view_are_folded():
    torch.manual_seed(0)
    model, x = WithoutKeyBias().eval().double(), torch.randn(4, 5, dtype=torch.float64)
    before = model.both.bias.detach().clone()
    masks = masks_for(model, x, "tied", 0, 0.5)
    result = prune(model, masks, x, tolerance=1e-12)
    assert torch.equal(model.both.bias, before)
    slim = result.model.model
    kept = int(masks.keep[next(iter(masks.keep))].sum())
    assert slim.both.bias.shape == (2 * kept,) and not slim.both.bias[kept:].any() and slim.both.bias[:kept].all()
