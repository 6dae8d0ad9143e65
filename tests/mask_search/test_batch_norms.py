"""Batch norms that follow, and come with the masks."""

import pytest
import torch
from cases import SHORT, biased_data, biased_loader, images, network, random_masks

from bise_prune import MaskSet, SearchConfig, apply_masks, evaluate, prune, search
from bise_prune.data import BatchLoader
from bise_prune.errors import ConfigError, ModelError


@pytest.mark.parametrize("mode", ["statistics", "affine"])
def test_batch_norms_follow_and_come_with_the_masks(mode, tmp_path):
    model, val = network("simple_convnet"), biased_loader(n=60, rho=0.4, seed=3)
    loader = BatchLoader(biased_data(), 20, shuffle=True)
    found = search(model, loader, SearchConfig(**SHORT, batchnorm=mode), val)
    dense = model.state_dict()
    changed = {name for name, tensor in found.last.state.items() if not torch.equal(tensor, dense[name])}
    assert {"blocks.0.1.running_mean", "blocks.2.1.running_var"} <= changed
    assert ("blocks.1.1.weight" in changed) == (mode == "affine")
    assert not any(name.startswith("blocks.0.0") for name in found.last.state)  # no convolution moved
    scores = {epoch.epoch: epoch.validation.unbiased_accuracy for epoch in found.history}
    masked = apply_masks(model, found.best, images())
    assert evaluate(masked, val, found.aligned).unbiased_accuracy == pytest.approx(scores[found.best_epoch])
    found.best.save(tmp_path / "masks.safetensors")
    loaded = MaskSet.load(tmp_path / "masks.safetensors")
    result = prune(model, loaded, images())  # which verifies it against the masked network
    assert torch.allclose(result.model(images(5)), masked(images(5)), atol=1e-4)
    with pytest.raises(ModelError, match="does not have"):
        apply_masks(
            network("mlp"), MaskSet(random_masks(network("mlp"), images(), "tied").logits, {}, loaded.state), images()
        )


def test_batch_norms_that_are_frozen_do_not_move():
    found = search(network("simple_convnet"), biased_loader(), SearchConfig(**SHORT))
    assert not found.last.state
    with pytest.raises(ConfigError, match="the network has no batch norm"):
        search(network("mlp"), biased_loader(), SearchConfig(**SHORT, batchnorm="affine"))


def test_a_start_brings_its_batch_norms_along():
    model, loader = network("simple_convnet"), biased_loader()
    start = search(model, loader, SearchConfig(**SHORT, batchnorm="affine")).last
    frozen = search(model, loader, SearchConfig(**SHORT, mask_lr=1e-12, batchnorm="affine"), start=start)
    name = "blocks.0.1.weight"
    assert torch.allclose(frozen.last.state[name], start.state[name], atol=1e-6)
    assert not torch.allclose(start.state[name], model.state_dict()[name], atol=1e-6)
