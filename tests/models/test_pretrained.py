"""Published weights bring their arguments and preprocessing."""

import pytest
import torch

from bise_prune import load_model
from bise_prune.models import build_model
from bise_prune.models.pretrained import published_arguments, published_preprocessing


@pytest.mark.slow
@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_heads_that_only_train_and_transformed_inputs(name, tmp_path):
    model = build_model(name, 5, {"aux_logits": True, "transform_input": True})
    torch.save(model.state_dict(), tmp_path / "net.pt")
    loaded, about = load_model(tmp_path / "net.pt")
    assert about.arguments == {"aux_logits": True} and loaded.state_dict().keys() == model.state_dict().keys()
    assert f"--arch '{name}(transform_input=True)'" in about.notes[-1]
    digits = {"googlenet": "1378be20", "inception_v3": "0cc3c7bd"}[name]
    assert published_arguments(name, digits + 56 * "0") == {"transform_input": True}
    assert published_arguments(name, 64 * "0") == published_arguments("resnet18", "f37072fd" + 56 * "0") == {}
    torch.save(model, tmp_path / "whole.pt")
    assert load_model(tmp_path / "whole.pt")[1].arguments == {"aux_logits": True, "transform_input": True}


def test_published_weights_bring_their_preprocessing():
    expected = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": [224, 224], "crop": 0.875}
    assert published_preprocessing("resnet18", "f37072fd" + 56 * "0") == expected
    assert published_preprocessing("torchvision:resnet18", "f37072fd" + 56 * "0") == expected
    assert published_preprocessing("resnet18", 64 * "0") == {}  # someone's own weights
    for arch in ("simple_convnet", "mine:Net", None):
        assert published_preprocessing(arch, 64 * "0") == {}
