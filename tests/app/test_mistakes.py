"""Mistakes, each with the exit code and the line that it ends in; no traceback, and nothing left behind."""

import csv
import dataclasses
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import sys

import numpy as np
import pytest
import torch
from cases import biased_data
from PIL import Image
from torch import nn

from bise_prune import load_model
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


class Case:
    """A folder of one's own with good inputs, to be spoiled, and the command on them."""

    def __init__(self, root):
        self.root, self.net, self.data = root, root / "net.pt", root / "data"
        self.flags = []

    @property
    def argv(self):
        base = [self.net, "--data", self.data, "--output", self.root / "out", "--device", "cpu", "--anneal-every", "1"]
        return [*map(str, base), *map(str, self.flags)]

    def table(self, change):
        """Rewrite the metadata: ``change`` gets the rows as dicts, and returns rows or None."""
        path = self.data / "metadata.csv"
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        rows = change(rows) or rows
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["file", "label", "bias", "split"])
            writer.writeheader()
            writer.writerows(rows)

    def set(self, column, value, row=0):
        def change(rows):
            rows[row][column] = value

        self.table(change)

    def save(self, head_bias):
        """The same checkpoint with another additive bias in the head."""
        model, about = load_model(self.net)
        about = dataclasses.replace(about, state={**model.state_dict(), "head.bias": head_bias})
        save_checkpoint(self.net, about)

    def rename(self, column, name):
        self.table(lambda rows: [{(name if key == column else key): v for key, v in row.items()} for row in rows])


def flags(*values):
    return lambda case: case.flags.extend(values)


def write(name, content):
    def spoil(case):
        path = case.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def saved(value, **options):
    return lambda case: torch.save(value, case.net, **options)


class Gadget:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def all_of(*steps):
    def spoil(case):
        for step in steps:
            step(case)

    return spoil


def settings(text, name="settings.toml"):
    return all_of(write(name, text), lambda case: case.flags.extend(["--config", case.root / name]))


def image(name, picture):
    return lambda case: picture.save(case.data / name)


def arrays(images, attributes):
    def spoil(case):
        shutil.rmtree(case.data)
        case.data.mkdir()
        np.save(case.data / "images.npy", images)
        np.save(case.data / "attrs.npy", attributes)

    return spoil


def half(case, name):
    path = case.root / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


SAFETENSORS = struct.pack("<Q", 2**40) + b"{}"

CASES = {
    # checkpoints
    "no checkpoint": (lambda case: case.net.unlink(), 1, "no checkpoint at"),
    "checkpoint is empty": (write("net.pt", b""), 1, "net.pt"),
    "checkpoint is text": (write("net.pt", "hello"), 1, "net.pt"),
    "checkpoint is half": (lambda case: half(case, "net.pt"), 1, "net.pt"),
    "checkpoint is an image": (lambda case: shutil.copy(case.data / "0.png", case.net), 1, "net.pt"),
    "checkpoint is a folder": (lambda case: setattr(case, "net", case.data), 1, "no checkpoint at"),
    "checkpoint runs code": (saved({"model": Gadget()}), 1, "--trust-pickle"),
    "checkpoint runs code, legacy": (saved(Gadget(), _use_new_zipfile_serialization=False), 1, "--trust-pickle"),
    "checkpoint is a plain pickle": (lambda case: case.net.write_bytes(pickle.dumps({"a": 1})), 1, "net.pt"),
    "checkpoint has no tensors": (saved({"epoch": 3}), 1, "net.pt"),
    "checkpoint is a list": (saved([1, 2, 3]), 1, "net.pt"),
    "checkpoint of an unknown network": (saved(nn.Linear(3, 5).state_dict()), 1, "--arch"),
    "safetensors with a huge header": (
        all_of(write("net.safetensors", SAFETENSORS), lambda case: setattr(case, "net", case.root / "net.safetensors")),
        1, "net.safetensors",
    ),
    "weights of another network": (flags("--arch", "resnet18"), 1, "resnet18"),
    "unknown architecture": (flags("--arch", "resnet81"), 2, "did you mean"),
    "factory that is not there": (flags("--arch", "nowhere.models:net"), 2, "cannot import 'nowhere"),
    "architecture with an odd argument": (flags("--arch", "simple_convnet(depth=3)"), 2, "depth"),
    "NaN among the weights": (
        lambda case: case.save(head_bias=torch.full((3,), torch.nan)), 1, "NaN",
    ),
    # tables
    "no data": (lambda case: shutil.rmtree(case.data), 1, "no folder or file at"),
    "empty folder": (lambda case: (shutil.rmtree(case.data), case.data.mkdir()), 1, "expected a metadata.csv"),
    "empty table": (write("data/metadata.csv", ""), 1, "no column file"),
    "header only": (lambda case: case.table(lambda rows: rows.clear()), 1, "has no rows"),
    "binary table": (write("data/metadata.csv", b"\x00\x81\x00\x01"), 1, "cannot read"),
    "unclosed quote": (write("data/metadata.csv", 'file,label,bias,split\n"0.png,0,0,train\n'), 1, "cannot read"),
    "ragged row": (write("data/metadata.csv", "file,label,bias,split\n0.png,0,0\n"), 1, "another number of fields"),
    "no label column": (lambda case: case.rename("label", "species"), 1, "no column label"),
    "no file column": (lambda case: case.rename("file", "where"), 1, "no column file"),
    "no bias column": (lambda case: case.rename("bias", "colour"), 1, "no bias labels"),
    "unknown column named": (flags("--bias-column", "place"), 1, "no column 'place'"),
    "one column for two purposes": (
        flags("--bias-column", "label", "--label-column", "label"), 1, "more than one purpose",
    ),
    "label without a value": (lambda case: case.set("label", "", 3), 1, "line 5"),
    "label below zero": (lambda case: case.set("label", "-2"), 1, "neither a name nor an integer"),
    "label beyond the classes": (lambda case: case.set("label", "7"), 1, "the model has 3 classes"),
    "label name among numbers": (lambda case: case.set("label", "cat"), 1, "a name among numbers"),
    "bias without a value": (lambda case: case.set("bias", "", 1), 1, "without a value in 'bias': line 3"),
    "bias of names and numbers": (lambda case: case.set("bias", "red"), 1, "a name among numbers"),
    "unknown split": (lambda case: case.set("split", "fold 1"), 1, "unknown 'split'"),
    "no training split": (
        lambda case: case.table(lambda rows: [{**r, "split": "val"} for r in rows]), 1, "training split",
    ),
    "nothing conflicting": (
        lambda case: case.table(lambda rows: [{**r, "bias": r["label"]} for r in rows]), 1, "no bias-conflicting",
    ),
    "file listed twice": (lambda case: case.set("file", "1.png"), 1, "another row lists"),
    "file in two splits": (lambda case: case.set("file", "2.png"), 1, "more than one split"),
    # images
    "missing image": (lambda case: (case.data / "5.png").unlink(), 1, "5.png is missing"),
    "truncated image": (lambda case: half(case, "data/5.png"), 1, "5.png is unreadable"),
    "empty image": (write("data/5.png", b""), 1, "5.png is unreadable"),
    "text as image": (write("data/5.png", "not an image"), 1, "5.png is unreadable"),
    "image of another size": (image("5.png", Image.new("RGB", (9, 8))), 1, "5.png is 8x9"),
    "bomb": (image("5.png", Image.new("1", (20_000, 10_000))), 1, "decompression bomb"),
    "floating-point image": (
        all_of(
            lambda case: Image.fromarray(np.zeros((8, 8), np.float32)).save(case.data / "5.tiff"),
            lambda case: case.set("file", "5.tiff", 5),
        ), 1, "floating-point",
    ),
    "one colour": (
        lambda case: [Image.new("RGB", (8, 8), (3, 3, 3)).save(case.data / f"{i}.png") for i in range(24)], 1,
        "one colour throughout",
    ),
    "too small for the network": (
        lambda case: [Image.new("RGB", (1, 1), (i, 3, 3)).save(case.data / f"{i}.png") for i in range(24)], 1, "colour",
    ),
    "arrays of unequal length": (arrays(np.zeros((3, 4, 4), np.uint8), np.zeros((4, 2), int)), 1, "3 images, but 4"),
    "NaN images": (arrays(np.full((3, 8, 8, 3), np.nan), np.zeros((3, 2), int)), 1, "NaN or infinity"),
    "pickled arrays": (arrays(np.array([{}] * 3), np.zeros((3, 2), int)), 1, "pickled objects"),
    "data of no kind": (
        all_of(write("data.bin", b"abc"), lambda case: setattr(case, "data", case.root / "data.bin")), 1,
        "neither a table nor",
    ),
    # settings
    "no config": (flags("--config", "nowhere.toml"), 2, "cannot read the settings"),
    "broken config": (settings("a = = 3"), 2, "is no TOML"),
    "misspelt setting": (settings("batchsize = 3"), 2, "did you mean 'batch_size'"),
    "setting of another kind": (settings('batch_size = "ten"'), 2, "batch_size = 'ten' is no integer"),
    "setting out of range": (settings("anneal_factor = 3"), 2, "anneal_factor"),
    # flags
    "unknown flag": (flags("--targets-sparsity", "0.5"), 2, "unrecognized arguments"),
    "sparsity out of range": (flags("--target-sparsity", "1.5"), 2, "target_sparsity"),
    "sparsity as a word": (flags("--target-sparsity", "half"), 2, "neither 'auto' nor a number"),
    "two targets": (flags("--target-sparsity", "0.5", "--target-flops", "0.5"), 2, "give one target"),
    "target that nothing reaches": (flags("--target-sparsity", "0.999"), 1, "0.999"),
    "batch of none": (flags("--batch-size", "0"), 2, "batch_size"),
    "mean without std": (flags("--mean", "0.5,0.5,0.5"), 2, "mean"),
    "mean that is no number": (flags("--mean", "nan,0,0", "--std", "1,1,1"), 2, "mean"),
    "size for data that make their images": (
        all_of(lambda case: setattr(case, "data", "digits,samples=1000"), flags("--size", "64")), 2, "size has no use",
    ),
    "finetuning rate without finetuning": (flags("--finetune-lr", "1"), 2, "has no use without finetuning"),
    "size of words": (flags("--size", "big"), 2, "no size such as"),
    "device that is not there": (flags("--device", "cuda:7"), 2, "cuda:7"),
    "unknown device": (flags("--device", "tpu"), 2, "tpu"),
    "graphs without a GPU": (flags("--cuda-graphs"), 2, "needs a CUDA device"),
    "masks that are not there": (flags("--masks", "none.safetensors"), 1, "none.safetensors"),
    "masks that are no masks": (
        all_of(write("m.safetensors", b"12345678{}"), lambda case: case.flags.extend(["--masks", "m.safetensors"])), 1,
        "m.safetensors",
    ),
    "plan that is no plan": (
        all_of(write("p.json", "{}"), lambda case: case.flags.extend(["--plan", case.root / "p.json"])), 1, "p.json",
    ),
    "nothing to resume": (flags("--resume"), 2, "nothing to resume"),
    "probe without bias labels": (
        all_of(lambda case: case.rename("bias", "colour"), flags("--probe", "--unsupervised")), 2, "--probe needs",
    ),
    "several biases and one weight": (
        all_of(
            lambda case: case.table(lambda rows: [{**r, "bias_2": r["bias"]} for r in rows]),
            flags("--weighting", "subgroup"),
        ), 2, "takes one bias",
    ),
    # folders for results
    "results are there": (write("out/report.json", "{}"), 2, "holds results already"),
    "output is a file": (write("out", "x"), 2, "is a file; choose a folder"),
}  # fmt: skip


def listing(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.suffix != ".pyc")


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
    assert not (tmp_path / "out").is_dir() or "report.json" in str(before)


def test_there_are_enough_cases():
    assert len(CASES) >= 60


# -- a full disk -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kilobytes", [1, 6, 11, 14])
def test_a_full_disk_leaves_no_half_file(assets, tmp_path, kilobytes):
    """No file may grow beyond a limit, which fails as a full disk does; what is there under a final name is whole."""
    shutil.copytree(assets, tmp_path, dirs_exist_ok=True)
    child = os.fork()
    if child == 0:
        code = 99
        try:
            torch.set_num_threads(1)  # the threads of this process were not copied
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            with (tmp_path / "errors.txt").open("w") as errors:
                sys.stdout = sys.stderr = errors
                resource.setrlimit(resource.RLIMIT_FSIZE, (kilobytes * 1024, resource.RLIM_INFINITY))
                code = cli.main([*Case(tmp_path).argv, "--head-epochs", "1"])
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    text = (tmp_path / "errors.txt").read_text()
    assert os.waitstatus_to_exitcode(status) == 1, text
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
