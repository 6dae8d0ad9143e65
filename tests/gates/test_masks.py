"""Masks as files."""

import pytest
import torch
from safetensors.torch import save_file

from bise_prune import MaskSet
from bise_prune.errors import ModelError


def test_mask_files_are_checked(tmp_path):
    with pytest.raises(ModelError, match="no mask file"):
        MaskSet.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ModelError, match="no readable safetensors file"):
        MaskSet.load(tmp_path / "text")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="holds no masks"):
        MaskSet.load(tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="1-D float tensor of finite values"):
        MaskSet({"a": torch.tensor([float("nan")])})


def test_mask_sets_are_saved_and_loaded(tmp_path):
    masks = MaskSet({"b": torch.tensor([0.5, -0.5]), "a": torch.tensor([1.0])}, {"epoch": "3"})
    masks.save(tmp_path / "masks.safetensors")
    loaded = MaskSet.load(tmp_path / "masks.safetensors")
    assert list(loaded.logits) == ["b", "a"]
    assert all(torch.equal(loaded.logits[name], masks.logits[name]) for name in masks.logits)
    assert loaded.metadata == {"epoch": "3"}
    assert (loaded.num_channels, loaded.num_closed) == (3, 1)
