"""The slim network equals the masked one."""

import copy

import pytest
import torch
from cases import NETWORKS, Net, biased_loader, images, network, random_masks, randomise, slow, torchvision_network
from oracles import largest_error
from torch import nn

from bise_prune import MaskSet, SearchConfig, apply_masks, gate_sites, prune, search
from bise_prune.channels.edited_model import RewiredModel
from bise_prune.errors import ConfigError, PruningError, VerificationError
from bise_prune.models import build_model


def num_params(model):
    return sum(parameter.numel() for parameter in model.parameters())


PAPERS_NETWORKS = {
    "simple_convnet": (lambda: build_model("simple_convnet", 10), (3, 28, 28)),
    "mlp": (lambda: build_model("mlp", 10), (3, 28, 28)),
    "resnet18": (lambda: build_model("resnet18", 10), (3, 32, 32)),
}


@pytest.mark.parametrize("placement", ["tied", "paper"])
@pytest.mark.parametrize("name", list(PAPERS_NETWORKS))
def test_the_papers_networks_are_pruned_exactly(name, placement):
    build, shape = PAPERS_NETWORKS[name]
    model = build()
    randomise(model, 0)
    model.eval()
    inputs = torch.randn(2, *shape)
    masks = random_masks(model, inputs, placement)
    result = prune(model, masks, inputs)
    masked = apply_masks(model, masks, inputs)
    assert masked(inputs).detach().std(0).max() > 0  # not a dead network
    assert largest_error(masked, result.model, inputs) < 1e-9
    assert result.verification.passed and result.verification.max_abs_error < 1e-9
    assert num_params(result.model) == result.plan.params[1] < result.plan.params[0] == num_params(model)
    if placement == "tied":
        assert type(result.model) is type(model)
        assert not result.plan.closed_but_kept


@pytest.mark.parametrize("placement", ["tied", "paper"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_pruned_equals_masked_everywhere(name, placement):
    model, inputs = network(name).double(), images().double()
    for seed in range(3):
        masks = random_masks(model, inputs, placement, seed)
        result = prune(model, masks, inputs)
        assert largest_error(apply_masks(model, masks, inputs), result.model, inputs) < 1e-9
        assert num_params(result.model) == result.plan.params[1]
        assert result.plan.sparsity == 1 - result.plan.params[1] / result.plan.params[0]


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "efficientnet_b0", "densenet121", "googlenet", "regnet_y_400mf"]
)
def test_torchvision_families_are_pruned_exactly(name):
    model, inputs = torchvision_network(name).double(), images(size=32).double()
    masks = random_masks(model, inputs, "tied")
    result = prune(model, masks, inputs)
    assert largest_error(apply_masks(model, masks, inputs), result.model, inputs) < 1e-9
    assert result.plan.sparsity > 0.1


@pytest.mark.parametrize("name", ["simple_convnet", "mlp", "resnet"])
def test_learned_masks_are_pruned_exactly(name):
    model, loader = network(name), biased_loader()
    config = SearchConfig(anneal_every=2, min_temperature=0.2, head_epochs=3, mask_lr=0.1)
    masks = search(model, loader, config).last
    inputs = loader.data.batch(torch.arange(3)).input
    assert masks.num_closed
    assert largest_error(apply_masks(model, masks, inputs), prune(model, masks, inputs).model, inputs) < 1e-9


def _shared():
    net = Net(
        lambda s, x: s.head(torch.relu(s.c(torch.relu(s.b(torch.relu(s.a(x)))))).mean((2, 3))),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 3), c=nn.Conv2d(4, 4, 3), head=nn.Linear(4, 3),
    )  # fmt: skip
    net.c.weight = net.b.weight
    return net


def _assigned(s, x):
    h = torch.relu(s.a(x))
    h[:, :, 0, 0] = 1.0
    return s.head(h.mean((2, 3)))


def _scaled():
    net = Net(
        lambda s, x: s.head(torch.relu(s.b(torch.relu(s.a(x)) * s.scale)).mean((2, 3))),
        a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 5, 3), head=nn.Linear(5, 3),
    )  # fmt: skip
    net.register_buffer("scale", torch.tensor([1.0, 2, 3, 4]).view(1, 4, 1, 1))
    return net


AWKWARD = {
    "transposed convolution": lambda: Net(
        lambda s, x: s.head(torch.relu(s.b(torch.relu(s.u(torch.relu(s.a(x)))))).mean((2, 3))),
        a=nn.Conv2d(3, 6, 3), u=nn.ConvTranspose2d(6, 6, 2), b=nn.Conv2d(6, 5, 3), head=nn.Linear(5, 3),
    ),
    "normalised weights": lambda: Net(
        lambda s, x: s.head(torch.relu(s.b(torch.relu(s.a(x)))).mean((2, 3))),
        a=nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), b=nn.Conv2d(6, 5, 3), head=nn.Linear(5, 3),
    ),
    "shared weights": _shared,
    "a constant scale": _scaled,
    "an assignment": lambda: Net(_assigned, a=nn.Conv2d(3, 6, 3), head=nn.Linear(6, 3)),
    "concatenate and flatten": lambda: Net(
        lambda s, x: s.head(torch.relu(s.f(torch.cat([torch.relu(s.a(x)), torch.relu(s.b(x))], 1).flatten(1)))),
        a=nn.Conv2d(3, 4, 3, 2), b=nn.Conv2d(3, 4, 3, 2), f=nn.Linear(8 * 9, 6), head=nn.Linear(6, 3),
    ),
    "one slope for all channels": lambda: Net(
        lambda s, x: s.head(s.q(s.b(s.p(s.a(x)))).mean((2, 3))),
        a=nn.Conv2d(3, 6, 3), p=nn.PReLU(), b=nn.Conv2d(6, 8, 3), q=nn.PReLU(8), head=nn.Linear(8, 3),
    ),
    "group norm": lambda: Net(
        lambda s, x: s.head(torch.relu(s.n(s.a(x))).mean((2, 3))),
        a=nn.Conv2d(3, 6, 3), n=nn.GroupNorm(2, 6), head=nn.Linear(6, 3),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(AWKWARD))
@pytest.mark.parametrize("joins", ["intersection", "expand"])
def test_awkward_networks_are_pruned_exactly(name, joins):
    model, inputs = AWKWARD[name]().eval().double(), images().double()
    for seed in range(3, 6):
        masks = random_masks(model, inputs, "paper", seed)
        result = prune(model, masks, inputs, joins=joins)
        assert result.verification.passed
        assert num_params(result.model) == result.plan.params[1]
        masked = apply_masks(model, masks, inputs)
        assert (masked(inputs) - model(inputs)).abs().max() > 0
        if name != "normalised weights":  # parametrised modules cannot be copied by the independent check
            assert largest_error(masked, result.model, inputs) < 1e-9


def test_open_masks_remove_nothing():
    model, inputs = network("resnet"), images()
    masks = MaskSet({site.name: torch.zeros(site.num_channels) for site in gate_sites(model, inputs)})
    result = prune(model, masks, inputs)
    assert result.plan.sparsity == 0 and not result.plan.removed
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in result.model.state_dict().items())


def test_the_papers_placement_removes_what_all_members_close_and_gates_the_rest():
    model, inputs = network("resnet"), images()
    masks = {site.name: torch.ones(site.num_channels) for site in gate_sites(model, inputs, "paper")}
    masks["blocks.2.conv2"][:5] = -1
    masks["blocks.3.conv2"][3:7] = -1  # 3 and 4 are closed by both
    masks["blocks.0.conv2"][1:] = -1  # the stem feeds the same stream and has no gate
    result = prune(model, MaskSet(masks), inputs, joins="intersection")
    assert result.plan.removed["blocks.2.conv2"] == result.plan.removed["blocks.3.conv2"] == (3, 4)
    assert not any(name.startswith(("stem", "blocks.0", "blocks.1")) for name in result.plan.removed)
    assert isinstance(result.model, RewiredModel)
    assert set(result.plan.closed_but_kept) == {"blocks.0.conv2", "blocks.2.conv2", "blocks.3.conv2"}
    assert result.plan.reasons["blocks.3.conv2"] == {"a tensor that add joins has it open": (5, 6)}
    assert result.model.model.head.weight.shape == (3, 8)
    assert result.model.model.blocks[2].shortcut[0].out_channels == 8


def test_a_dead_network_is_an_error():
    model, inputs = network("simple_convnet"), images()
    masks = {site.name: torch.ones(site.num_channels) for site in gate_sites(model, inputs)}
    masks["blocks.1.0"][:] = -1
    with pytest.raises(PruningError, match="a dead network: with these masks nothing of the input reaches the logits"):
        prune(model, MaskSet(masks), inputs)


@pytest.mark.parametrize("joins", ["intersection", "expand"])
def test_a_dead_branch_is_bypassed(joins):
    model, inputs = network("resnet").double(), images().double()
    masks = {site.name: torch.ones(site.num_channels) for site in gate_sites(model, inputs, "paper")}
    masks["blocks.1.conv1"][:] = -1
    result = prune(model, MaskSet(masks), inputs, joins=joins)
    block = result.model.model.blocks[1]
    assert all(isinstance(layer, nn.Identity) for layer in (block.conv1, block.bn1, block.conv2, block.bn2))
    assert largest_error(apply_masks(model, MaskSet(masks), inputs), result.model, inputs) < 1e-12
    assert result.plan.removed["blocks.1.conv1"] == tuple(range(6))


def test_the_classifier_stays_whole():
    model, inputs = network("mlp"), images()
    masks = random_masks(model, inputs, "tied")
    result = prune(model, masks, inputs)
    assert result.model.head.out_features == 3
    assert "head" not in result.plan.removed


@pytest.mark.parametrize("placement", ["tied", "paper"])
@pytest.mark.parametrize("target", [0.5, *slow(0.2, 0.8)])
def test_a_target_sparsity_is_met_within_one_point(placement, target):
    model, inputs = build_model("resnet18", 10).eval(), images(size=32)
    masks = random_masks(model, inputs, placement)
    result = prune(model, masks, inputs, target)
    assert abs(1 - num_params(result.model) / num_params(model) - target) <= 0.01
    closed = torch.cat([logits[~result.plan.keep[name]] for name, logits in masks.logits.items()])
    spared = torch.cat([logits[result.plan.keep[name]].sort().values[:-1] for name, logits in masks.logits.items()])
    assert closed.max() <= spared.min()  # lowest m first; the best of each site is never closed


def test_a_target_out_of_reach_names_the_nearest():
    model, inputs = network("mlp"), images()
    masks = random_masks(model, inputs, "tied")
    with pytest.raises(PruningError, match=r"target sparsity 0\.999; the nearest reachable is 0\.9\d+"):
        prune(model, masks, inputs, 0.999)


def test_a_model_that_differs_is_stopped(monkeypatch):
    from bise_prune.pruning import planner

    cut = planner.cut

    def spoil(*arguments):
        slim = cut(*arguments)
        with torch.no_grad():
            slim.head.bias += 1
        return slim

    monkeypatch.setattr(planner, "cut", spoil)
    model, inputs = network("mlp"), images()
    with pytest.raises(VerificationError, match="does not compute the masked function: logits differ by 1"):
        prune(model, random_masks(model, inputs, "tied"), inputs)


def test_pruning_changes_neither_model_nor_flags():
    model, inputs = network("resnet").requires_grad_(False).train(), images()
    model.head.bias.requires_grad_(True)
    before = copy.deepcopy(model.state_dict())
    result = prune(model, random_masks(model, inputs, "tied"), inputs)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["head.bias"]
    assert [name for name, p in result.model.named_parameters() if p.requires_grad] == ["head.bias"]


def test_arguments_that_have_no_use_together():
    model, inputs = network("mlp"), images()
    masks = random_masks(model, inputs, "tied")
    plan = prune(model, masks, inputs).plan
    for given, options, complaint in (
        (masks, {"target_sparsity": 0.5, "layer_floor": 1.0}, "layer_floor = 1.0 is out of range"),
        (plan, {"target_sparsity": 0.5}, "a plan holds its widths and lowering"),
        (plan, {"engine": "torch-pruning"}, "a plan holds its widths and lowering"),
        (masks, {"engine": "torch-pruning", "target_sparsity": 0.5}, "takes no target, joins or rounding"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            prune(model, given, inputs, **options)


def test_a_forward_pass_that_cannot_be_narrower_is_explained(monkeypatch):
    from bise_prune.pruning import planner

    def failing(*arguments):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied\nmore")

    monkeypatch.setattr(planner, "cut", failing)
    model, inputs = network("mlp"), images()
    expected = r"does not run with fewer channels \(RuntimeError: mat1 and mat2 shapes cannot be multiplied\)"
    with pytest.raises(PruningError, match=expected):
        prune(model, random_masks(model, inputs, "tied"), inputs)
