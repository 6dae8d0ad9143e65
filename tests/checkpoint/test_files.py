"""Checkpoint files: they travel whole; foreign, other and damaged ones are refused."""

import pytest
import torch

from bise_prune import MaskSet, load_model
from bise_prune.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from bise_prune.errors import CheckpointError
from bise_prune.models import build_model


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 broken", b"\x10" + b"\0" * 7 + b"{ no json    }"])
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "m.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"m\.pt"):
        load_checkpoint(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none.pt")
    torch.save({1: torch.zeros(1)}, tmp_path / "numbers.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_checkpoint(tmp_path / "numbers.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load_checkpoint(tmp_path / "list.pt")
    MaskSet({"a": torch.zeros(2)}).save(tmp_path / "masks.safetensors")
    with pytest.raises(CheckpointError, match="holds masks, not a network"):
        load_checkpoint(tmp_path / "masks.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_checkpoints_travel_whole(tmp_path, suffix):
    model = build_model("mlp", 3, {"in_features": 12, "hidden": [5]})
    about = Checkpoint(
        model.state_dict(), arch="mlp", num_classes=3, arguments={"in_features": 12, "hidden": [5]},
        data="digits,rho=0.9", preprocessing={"mean": [0.5], "std": [0.5]}, classes=("a", "b", "c"),
    )  # fmt: skip
    save_checkpoint(tmp_path / f"m{suffix}", about)
    loaded, found = load_model(tmp_path / f"m{suffix}")
    assert torch.equal(loaded(torch.ones(1, 12)), model(torch.ones(1, 12)))
    assert (found.data, found.preprocessing, found.classes) == (about.data, about.preprocessing, about.classes)
    assert len(found.sha256) == 64 and not loaded.training


def test_damaged_files_are_refused(tmp_path):
    torch.save(build_model("mlp", 3, {"in_features": 4, "hidden": [3]}).state_dict(), tmp_path / "m.pt")
    whole = bytearray((tmp_path / "m.pt").read_bytes())
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for _ in range(150):
        content = whole.copy()
        for place in torch.randint(len(whole), (20,), generator=generator).tolist():
            content[place] = int(torch.randint(256, (), generator=generator))
        (tmp_path / "damaged.pt").write_bytes(content)
        try:
            load_checkpoint(tmp_path / "damaged.pt")
        except CheckpointError:
            refused += 1
    assert refused > 50  # the others were hit where only weights stand
