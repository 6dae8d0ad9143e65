"""Architectures by name and by their weights."""

import json

import pytest
import torch
from cases import slow

from bise_prune.errors import CheckpointError, ConfigError
from bise_prune.models import build_model, identify_architecture
from bise_prune.models.names import parse_architecture
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


def test_architectures_of_timm_by_name():
    timm = pytest.importorskip("timm")
    assert type(build_model("timm:resnet10t", 3)) is type(timm.create_model("resnet10t", num_classes=3))
    with pytest.raises(ConfigError, match=r"unknown architecture 'timm:resnet10': did you mean .*resnet10t"):
        build_model("timm:resnet10", 3)


def test_factories_that_return_no_module(tmp_path, monkeypatch):
    (tmp_path / "odd_factory.py").write_text("def number(): return 3\nnothing = None\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"--arch odd_factory:number returned int, not an nn\.Module"):
        build_model("odd_factory:number", 3)
    with pytest.raises(ConfigError, match="'odd_factory' has no function or class 'nothing'"):
        build_model("odd_factory:nothing", 3)


def test_configurations_of_hugging_face(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"no Hugging Face configuration at .*: it has no model_type"):
        parse_architecture(f"hf:{tmp_path}")
    sizes = {
        "vocab_size": 9,
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
    }
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "_name": "x", **sizes}))
    name, arguments = parse_architecture(f"hf:{tmp_path}(hidden_size=8)")
    assert name == "transformers" and arguments["config"] == {"model_type": "bert", **sizes, "hidden_size": 8}
    assert build_model(name, 3, arguments).config.hidden_size == 8
    with pytest.raises(ConfigError, match="no classifier of this configuration"):
        build_model("transformers", 3, {"config": {"model_type": "nothing"}})
