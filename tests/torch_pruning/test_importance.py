"""Masks as an importance of torch-pruning."""

import pytest
import torch
import torch_pruning as tp
from cases import images, network, random_masks
from torch import nn

from bise_prune import BISEImportance, MaskSet, prune
from bise_prune.errors import ConfigError, ModelError
from bise_prune.torch_pruning.graph import build_graph


def pruner(model, masks, **options):
    return tp.pruner.BasePruner(
        model, images(), importance=BISEImportance(masks), ignored_layers=[model.head], **options
    )


def widths(model):
    return [layer.weight.shape[0] for layer in model.modules() if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear))]


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_global_pruning_takes_the_lowest_m_of_all_layers(ratio):
    model = network("simple_convnet")
    masks = random_masks(model, images(), "paper")
    ranked = torch.cat(list(masks.logits.values())).sort().values
    threshold = ranked[len(ranked) - int(len(ranked) * (1 - ratio)) - 1]
    pruner(model, masks, global_pruning=True, pruning_ratio=ratio, round_to=None).step()
    expected = [int((logits > threshold).sum()) for logits in masks.logits.values()]
    assert widths(model)[:3] == expected


def test_local_pruning_keeps_the_highest_m_of_each_layer():
    model = network("simple_convnet")
    masks = random_masks(model, images(), "paper")
    first = model.blocks[0][0].weight.detach().clone()
    pruner(model, masks, global_pruning=False, pruning_ratio=0.5).step()
    assert widths(model)[:3] == [2, 3, 4]
    best = masks.logits["blocks.0.0"].topk(2).indices.sort().values
    assert torch.equal(model.blocks[0][0].weight, first[best])


def test_equal_logits_remove_as_many_as_asked():
    model = network("mlp")
    masks = MaskSet({name: torch.zeros_like(m) for name, m in random_masks(model, images(), "paper").logits.items()})
    pruner(model, masks, global_pruning=True, pruning_ratio=0.5).step()
    assert widths(model)[:3] == [6, 5, 4]


@pytest.mark.parametrize(("rule", "reduce"), [("all", torch.amax), ("any", torch.amin), ("mean", torch.mean)])
def test_coupled_masks_that_disagree_are_reduced_by_the_rule(rule, reduce):
    model = network("resnet")
    masks = random_masks(model, images(), "paper")
    graph = build_graph(model, images())
    importance = BISEImportance(masks, reduction=rule)
    conv = model.blocks[2].conv2
    group = graph.get_pruning_group(conv, tp.prune_conv_out_channels, list(range(10)))
    both = torch.stack([masks.logits["blocks.2.conv2"], masks.logits["blocks.3.conv2"]]).double()
    assert torch.allclose(importance(group), reduce(both, dim=0), rtol=0, atol=1e-12)


def test_groups_without_masks_are_skipped():
    model = network("resnet")
    masks = random_masks(model, images(), "paper")
    only = MaskSet({"blocks.0.conv1": masks.logits["blocks.0.conv1"]})
    before = widths(model)
    pruner(model, only, global_pruning=True, pruning_ratio=0.5).step()
    after = widths(model)
    assert [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b] == [1]


def test_tied_masks_rank_whole_streams():
    model = network("resnet")
    masks = random_masks(model, images(), "tied")
    pruner(model, masks, global_pruning=False, pruning_ratio=0.5).step()
    assert model.stem[0].out_channels == model.blocks[1].conv2.out_channels == 3


def test_scores_are_root_channels_across_a_concatenation():
    model = network("concatenating")
    masks = random_masks(model, images(), "paper")
    graph = build_graph(model, images())
    group = graph.get_pruning_group(model.right[0], tp.prune_conv_out_channels, list(range(6)))
    assert torch.allclose(BISEImportance(masks)(group), masks.logits["right.0"].double(), rtol=0, atol=1e-12)


def test_masks_of_other_widths_are_refused():
    model = network("simple_convnet")
    masks = random_masks(model, images(), "paper")
    pruner(model, masks, global_pruning=True, pruning_ratio=0.5).step()
    with pytest.raises(ModelError, match="was pruned before the first score"):
        pruner(model, masks, global_pruning=True, pruning_ratio=0.5).step()


def test_unknown_reduction():
    with pytest.raises(ConfigError, match="choose one of all, any, mean"):
        BISEImportance(MaskSet({"a": torch.zeros(2)}), reduction="most")


@pytest.mark.parametrize("name", ["simple_convnet", "resnet", "concatenating"])
@pytest.mark.parametrize("way", [{"global_pruning": False}, {"global_pruning": True}, {"isomorphic": True}])
def test_several_steps_remove_what_one_step_does(name, way):
    masks = random_masks(network(name), images(), "paper")
    found = []
    for steps in (1, 4):
        model = network(name)
        made = pruner(model, masks, pruning_ratio=0.5, iterative_steps=steps, **{"global_pruning": True, **way})
        for _ in range(steps):
            made.step()
        found.append([parameter.detach() for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert sum(p.numel() for p in found[0]) < 0.8 * sum(p.numel() for p in network(name).parameters())


class Splitting(nn.Module):
    """Two halves of a layer's channels go through layers of their own and are put side by side."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 12, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 10, 1)
        self.both, self.head = nn.Conv2d(16, 8, 1), nn.Linear(8, 3)

    def forward(self, x):
        left, right = torch.split(torch.relu(self.stem(x)), [self.left.in_channels, self.right.in_channels], dim=1)
        x = torch.cat([torch.relu(self.left(left)), torch.relu(self.right(right))], dim=1)
        return self.head(torch.relu(self.both(x)).mean((2, 3)))


def splitting():
    torch.manual_seed(0)
    return Splitting().eval()


@pytest.mark.parametrize("steps", [1, 2])
def test_networks_with_a_split_and_a_concatenation(steps):
    model = splitting()
    masks = random_masks(model, images(), "paper")
    stem, both = model.stem.weight.detach().clone(), model.both.weight.detach().clone()
    made = pruner(model, masks, pruning_ratio=0.5, global_pruning=False, iterative_steps=steps)
    for _ in range(steps):
        made.step()
    assert widths(model)[:4] == [6, 3, 5, 4]
    kept = {name: masks.logits[name].topk(count).indices.sort().values
            for name, count in (("stem", 6), ("left", 3), ("right", 5), ("both", 4))}  # fmt: skip
    assert torch.equal(model.stem.weight, stem[kept["stem"]])
    assert torch.equal(model.both.weight, both[kept["both"]][:, torch.cat([kept["left"], 6 + kept["right"]])])


def test_torch_prunings_graph_swaps_the_parts_of_a_split():
    model = splitting()
    masks = random_masks(model, images(), "paper")
    for name, logits in masks.logits.items():
        logits.copy_(torch.where(torch.arange(len(logits)) < (2 if name == "stem" else 0), -1.0, 1.0))
    slim = prune(model, masks, images()).model.model
    assert (slim.left.in_channels, slim.right.in_channels) == (4, 6)
    group = build_graph(model, images()).get_pruning_group(model.stem, tp.prune_conv_out_channels, [0, 1])
    assert [item.dep.target.module for item in group][-1] is model.right  # so pruners remove inputs of the wrong layer
    kept = prune(model, masks, images(), engine="torch-pruning").model.model
    assert kept.left.in_channels == kept.right.in_channels == 6


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("make", [splitting, lambda: network("resnet"), lambda: network("concatenating")])
def test_groups_that_are_handed_out_are_pruned_as_in_a_plain_step(make, steps):
    masks = random_masks(make(), images(), "paper")
    found = []
    for interactive in (False, True):
        model = make()
        made = pruner(model, masks, pruning_ratio=0.5, global_pruning=True, iterative_steps=steps)
        for _ in range(steps):
            for group in made.step(interactive=True) if interactive else made.step() or ():
                group.prune()
        found.append(list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_group_that_is_left_out_stays_as_it_is():
    model = network("simple_convnet")
    masks = random_masks(model, images(), "paper")
    before, first = widths(model), model.blocks[0][0]
    made = pruner(model, masks, pruning_ratio=0.5, global_pruning=False, iterative_steps=2)
    for _ in range(2):
        for group in made.step(interactive=True):
            if group[0].dep.target.module is not first:
                group.prune()
    after = widths(model)
    assert after[0] == before[0] and after[1:3] == [before[1] // 2, before[2] // 2]


def test_steps_taken_by_hand_are_followed():
    model = network("simple_convnet")
    masks = random_masks(model, images(), "paper")
    graph, importance = build_graph(model, images()), BISEImportance(masks)
    conv = model.blocks[0][0]
    for count in (1, 2):
        whole = graph.get_pruning_group(conv, tp.prune_conv_out_channels, list(range(conv.out_channels)))
        lowest = importance(whole).argsort()[:count].tolist()
        graph.get_pruning_group(conv, tp.prune_conv_out_channels, lowest).prune()
    best = masks.logits["blocks.0.0"].topk(len(masks.logits["blocks.0.0"]) - 3).indices.sort().values
    assert torch.equal(importance._left[graph]["blocks.0.0"], best)


def test_one_importance_serves_several_copies():
    masks = random_masks(network("simple_convnet"), images(), "paper")
    importance, found = BISEImportance(masks), []
    for _ in range(2):
        model = network("simple_convnet")
        made = tp.pruner.BasePruner(model, images(), importance=importance, ignored_layers=[model.head],
                                    pruning_ratio=0.5, iterative_steps=2)  # fmt: skip
        made.step(), made.step()
        found.append(widths(model))
    assert found[0] == found[1] == [2, 3, 4, 3]


def test_masks_that_no_layer_has_are_refused():
    with pytest.raises(ModelError, match="no mask of the set is one of channels of layers"):
        BISEImportance(MaskSet({"conv@groups": torch.zeros(2)}))
