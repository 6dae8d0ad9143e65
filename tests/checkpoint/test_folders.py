"""Folders of Hugging Face and timm models: their networks, preprocessing and class names."""

import json

import pytest
import torch
from safetensors.torch import save_file

from bise_prune import load_model
from bise_prune.checkpoint import load_checkpoint
from bise_prune.checkpoint.folders import check_preprocessing, check_sizes
from bise_prune.errors import CheckpointError


def test_a_classifier_of_images_of_hugging_face(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24, image_size=16, patch_size=8,
        id2label={0: "owl", 1: "wren", 2: "kiwi"}, label2id={"owl": 0, "wren": 1, "kiwi": 2},
    )  # fmt: skip
    model = transformers.ViTForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    processor = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": 16, "width": 16}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    loaded, found = load_model(tmp_path)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, model(images).logits)
    assert found.classes == ("owl", "wren", "kiwi") and found.num_classes == 3
    assert found.preprocessing == {"mean": [0.5] * 3, "std": [0.25] * 3, "size": [16, 16]}


@pytest.mark.parametrize(
    ("processor", "size", "crop"),
    [
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": {"height": 224, "width": 224}},
         224, 0.875),
        ({"size": 256, "do_center_crop": True, "crop_size": 224}, 224, 1.0),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, 224, 0.875),
        ({"size": 224}, 224, None),
        ({"size": {"height": 224, "width": 224}}, 224, None),
    ],
)  # fmt: skip
def test_sizes_and_crops_of_hugging_face(tmp_path, processor, size, crop):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet", "num_labels": 2}))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    found = load_checkpoint(tmp_path).preprocessing
    assert found["size"] == [size, size] and found.get("crop") == crop


def test_a_folder_of_timm(tmp_path):
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet10t", num_classes=3).eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    about = {
        "architecture": "resnet10t", "num_classes": 3, "label_names": ["a", "b", "c"],
        "pretrained_cfg": {"mean": [0.4] * 3, "std": [0.2] * 3, "input_size": [3, 96, 96], "crop_pct": 0.95},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(about))
    loaded, found = load_model(tmp_path)
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    assert found.arch == "timm:resnet10t" and found.classes == ("a", "b", "c")
    assert found.preprocessing == {"mean": [0.4] * 3, "std": [0.2] * 3, "size": [96, 96], "crop": 0.95}


@pytest.mark.parametrize(
    "found",
    [
        {"mean": "0.5"}, {"mean": [0.5], "std": [-1.0]}, {"mean": [None], "std": [1.0]}, {"mean": [0.5], "std": []},
        {"size": [0, 4]}, {"size": [4]}, {"size": "x"}, {"size": [1e9, 4]}, {"crop": 2}, {"channels": "3"},
        {"mean": [float("nan")], "std": [1.0]}, {"mean": {"r": 1}, "std": [1.0]},
    ],
)  # fmt: skip
def test_preprocessing_that_cannot_be_is_refused(found):
    with pytest.raises(ValueError, match=r" is |different numbers"):
        check_preprocessing(found)


def test_preprocessing_that_can_be_is_not():
    check_preprocessing({"mean": [], "std": [], "size": None, "crop": None, "channels": None, "scale": "x"})
    check_preprocessing({"mean": [0.5], "std": [1], "size": [4, 4], "crop": 1, "channels": 1})


@pytest.mark.parametrize(
    ("claimed", "message"),
    [
        ({"num_hidden_layers": 100_000}, "says num_hidden_layers = 100000, but the file holds 1 tensors"),
        ({"vocab_size": 10**9}, "says vocab_size = 1000000000, but the largest tensor is 1 wide"),
        ({"num_labels": 10**15}, "there are 1000000000000000 classes"),
    ],
)
def test_sizes_that_a_configuration_claims_are_held_against_the_weights(tmp_path, claimed, message):
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", **claimed}))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(tmp_path)
    check_sizes({"num_hidden_layers": 1, "is_layer": True, "vocab_size": 4000}, {"a": torch.zeros(1)}, tmp_path)
