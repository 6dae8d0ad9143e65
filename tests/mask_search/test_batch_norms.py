"""Batch norms that follow, norm layers that were trained before, and that both come with the masks."""

import copy

import pytest
import torch
from cases import SHORT, biased_data, biased_loader, images, network, random_masks, same_masks

from bise_prune import MaskSet, SearchConfig, apply_masks, evaluate, prune, search
from bise_prune.config import Budget
from bise_prune.data import BatchLoader
from bise_prune.errors import BiseError, ConfigError, ModelError
from bise_prune.mask_search import SearchInterrupted
from bise_prune.mask_search.state_file import started_with


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


@pytest.mark.parametrize("options", [SHORT, {"steps": 24, "budget": Budget(share=0.5)}])
def test_norms_that_were_trained_before_come_with_the_masks(options, tmp_path):
    """The masks are those of a search on the network that has them; a file and a further search keep them."""
    model = network("simple_convnet")
    tuned = copy.deepcopy(model)
    with torch.no_grad():
        for name, tensor in tuned.state_dict().items():
            if name.endswith(".1.weight") or name.endswith(".1.running_mean"):
                tensor += torch.rand(len(tensor), generator=torch.Generator().manual_seed(len(name)))
    state = {name: tensor for name, tensor in tuned.state_dict().items() if "1." in name}
    state = {name: tensor for name, tensor in state.items() if not torch.equal(tensor, model.state_dict()[name])}
    assert state
    start = MaskSet.for_start(state)
    found = search(model, biased_loader(), SearchConfig(**options), start=start)
    assert same_masks(found.last, search(tuned, biased_loader(), SearchConfig(**options)).last)
    found.last.save(tmp_path / "masks.safetensors")
    loaded = MaskSet.load(tmp_path / "masks.safetensors")
    again = search(model, biased_loader(), SearchConfig(**options), start=loaded).last
    for masks in (found.last, loaded, again):
        assert masks.trained_before and masks.state.keys() == state.keys()
        assert all(torch.equal(masks.state[name], tensor) for name, tensor in state.items())
    alone = loaded.alone()
    assert not alone.trained_before and not alone.state and same_masks(alone, loaded)
    inputs = images(5)
    assert torch.equal(apply_masks(model, loaded, images())(inputs), apply_masks(tuned, alone, images())(inputs))
    assert not torch.allclose(apply_masks(model, alone, images())(inputs), apply_masks(tuned, alone, images())(inputs))
    own = search(model, biased_loader(), SearchConfig(**SHORT, batchnorm="affine")).last
    assert own.alone() is own and own.state and not own.trained_before  # which the search itself was told to change


def test_a_stopped_search_tells_what_it_was_started_with(tmp_path):
    model, path, config = network("simple_convnet"), tmp_path / "state.pt", SearchConfig(steps=24)
    state = {"blocks.0.1.weight": model.state_dict()["blocks.0.1.weight"] * 2}
    assert started_with(path, model) is None
    with pytest.raises(SearchInterrupted):
        search(
            model, biased_loader(), config, start=MaskSet.for_start(state), state_path=path, interrupted=lambda: True
        )
    assert started_with(path, network("mlp")) is None  # which does not have them
    start = started_with(path, model)
    assert start.trained_before and not start.logits and start.state.keys() == state.keys()
    assert torch.equal(start.state["blocks.0.1.weight"], state["blocks.0.1.weight"])
    found = search(model, biased_loader(), config, start=start, state_path=path)
    whole = search(model, biased_loader(), config, start=MaskSet.for_start(state))
    assert same_masks(found.last, whole.last) and found.history == whole.history
    for other, options, named in (
        (model, {}, "the masks it starts from"), (retrained(model), {"start": start}, "the network's weights"),
    ):  # fmt: skip
        with pytest.raises(BiseError, match=named):
            search(other, biased_loader(), config, state_path=path, **options)
    assert not MaskSet.for_start({}).trained_before


def retrained(model):
    """A copy that differs in the very tensors that a start brings along."""
    copied = copy.deepcopy(model)
    torch.nn.init.constant_(copied.state_dict()["blocks.0.1.weight"], 0.5)
    return copied
