"""Mistakes, each with the exit code and the line that it ends in; no traceback, and nothing left behind."""

import csv
import json
import shutil
from functools import partial

import pytest
import torch
from cases import biased_data
from forks import ended, forked, limit_files
from mistakes import CASES
from mistakes.case import Case
from PIL import Image

from bise_prune.app import cli
from bise_prune.checkpoint import Checkpoint, save_checkpoint
from bise_prune.models import build_model

ARGUMENTS = {"kernel_size": 3, "widths": [4, 6], "strides": [2, 1]}


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    """A network of three classes, and a folder of 24 images for it."""
    root = tmp_path_factory.mktemp("assets")
    torch.manual_seed(0)
    model = build_model("simple_convnet", 3, ARGUMENTS)
    about = Checkpoint(
        model.state_dict(), arch="simple_convnet", num_classes=3, arguments=ARGUMENTS,
        preprocessing={"mean": [0.5] * 3, "std": [0.25] * 3},
    )  # fmt: skip
    save_checkpoint(root / "net.pt", about)
    data = biased_data(n=24, rho=0.6)
    (root / "data").mkdir()
    rows = [["file", "label", "bias", "split"]]
    for i, image in enumerate((data.inputs * 20 + 90).clamp(0, 255).byte()):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / "data" / f"{i}.png")
        rows.append([f"{i}.png", int(data.target[i]), int(data.bias[i, 0]), ("train", "train", "val", "test")[i % 4]])
    with (root / "data" / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return root


def listing(root):
    return sorted(
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_file() and path.suffix != ".pyc" and path.name != ".bise-prune.lock"
    )


@pytest.mark.parametrize("name", CASES)
def test_a_mistake_ends_in_one_line(name, assets, tmp_path, capsys, monkeypatch):
    spoil, code, message = CASES[name]
    shutil.copytree(assets, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    case = Case(tmp_path)
    spoil(case)
    before = listing(tmp_path)
    found = cli.main(case.argv)
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("bise-prune: error: ")]
    assert found == code, captured.err
    assert len(errors) == 1 and message in errors[0], captured.err
    assert "Traceback" not in captured.err and captured.out == ""
    assert listing(tmp_path) == before and not (tmp_path / "hacked").exists()
    assert not (tmp_path / "out").is_dir() or any(name.startswith("out/") for name in before)


def test_there_are_enough_cases():
    assert len(CASES) >= 250


# -- a full disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kilobytes", [1, 6, 11, 14])
def test_a_full_disk_leaves_no_half_file(assets, tmp_path, kilobytes):
    """No file may grow beyond a limit, which fails as a full disk does; what is there under a final name is whole."""
    shutil.copytree(assets, tmp_path, dirs_exist_ok=True)
    errors = tmp_path / "errors.txt"
    child = forked([*Case(tmp_path).argv, "--head-epochs", "1"], errors, partial(limit_files, kilobytes))
    code, text = ended(child, 120.0), errors.read_text()
    assert code == 1, text
    assert "Traceback" not in text and text.count("bise-prune: error: ") == 1
    out = tmp_path / "out"
    left = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    assert not [name for name in left if name.startswith(".") and name != ".bise-prune.lock"]
    assert "report.json" not in left and (not left or ".bise-prune.lock" in left)
    for name in left:
        if name.endswith(".json"):
            json.loads((out / name).read_text())
        elif name.endswith(".safetensors"):
            from safetensors import safe_open

            with safe_open(out / name, "pt") as file:
                assert list(file.keys())
