"""Architectures by name and by their weights."""

import pytest
import torch
from cases import slow

from bise_prune.errors import CheckpointError, ConfigError
from bise_prune.models import build_model, identify_architecture
from bise_prune.models.registry import _empty, torchvision_classifiers


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_b0",
        *slow("regnet_y_400mf", "regnet_x_800mf", "convnext_tiny", "mnasnet0_5"),
    ],
)
def test_unusual_architectures_are_told_from_the_weights(name):
    assert identify_architecture(build_model(name, 7).state_dict()) == (name, 7, {})


@pytest.mark.slow
def test_no_two_of_torchvisions_classifiers_have_the_same_names_and_shapes():
    seen = {}
    for name in torchvision_classifiers():
        state = _empty(name, 7, {}).state_dict()
        shapes = frozenset((key, tuple(tensor.shape)) for key, tensor in state.items())
        assert seen.setdefault(shapes, name) == name
    assert len(seen) >= 80


def test_architectures_are_told_from_the_weights():
    state = build_model("resnet34", 5).state_dict()
    assert identify_architecture(state) == ("resnet34", 5, {})
    with pytest.raises(CheckpointError, match=r"no torchvision classifier fits .*; name it with --arch"):
        identify_architecture({"weight": torch.zeros(3, 3)})
    with pytest.raises(CheckpointError, match="holds no weights"):
        identify_architecture({})


def test_architectures_by_name():
    with pytest.raises(ConfigError, match="unknown architecture 'resnet81': did you mean resnet18"):
        build_model("resnet81", 3)
    with pytest.raises(ConfigError, match="architecture 'mlp' does not take"):
        build_model("mlp", 3, {"depth": 2})
    with pytest.raises(ConfigError, match="unknown last_activation 'sin'"):
        build_model("simple_convnet", 3, {"last_activation": "sin"})
    assert type(build_model("torchvision:resnet18", 3)).__name__ == "ResNet"
