"""Readers of files that come from elsewhere, each as a function of a file's content: a good result or a BiseError."""

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from folders import Words
from PIL import Image

from bise_prune.app.settings import read_settings
from bise_prune.checkpoint import load_checkpoint
from bise_prune.data import load_data
from bise_prune.data.cifar10 import load_cifar10
from bise_prune.data.huggingface import load_huggingface
from bise_prune.data.text import load_text
from bise_prune.errors import BiseError
from bise_prune.gates.masks import MaskSet
from bise_prune.pruning.plan import PruningPlan
from bise_prune.report.comparison import read_runs


def _checkpoint(folder, content):
    (folder / "net.pt").write_bytes(content)
    load_checkpoint(folder / "net.pt")


def _pickle(folder, content):
    """The pickle in an archive, beside storages of 64 bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("net/data.pkl", content)
        for key in range(3):
            archive.writestr(f"net/data/{key}", bytes(range(64)))
        archive.writestr("net/version", "3\n")
    _checkpoint(folder, buffer.getvalue())


def _folder(folder, content):
    """The configuration in the folder of a model, beside weights."""
    if not (folder / "model").exists():
        (folder / "model").mkdir()
        torch.save({"classifier.weight": torch.zeros(3, 4)}, folder / "model" / "pytorch_model.bin")
    (folder / "model" / "config.json").write_bytes(content)
    load_checkpoint(folder / "model")


def _table(folder, content):
    """A table of two images."""
    if not (folder / "data").exists():
        (folder / "data").mkdir()
        for i, name in enumerate(("a.png", "b.png")):
            image = Image.new("RGB", (4, 4), (i, 0, 0))
            image.putpixel((0, i), (255, 255, 255))
            image.save(folder / "data" / name)
    (folder / "data" / "metadata.csv").write_bytes(content)
    load_data(str(folder / "data"))


def _lines(folder, content):
    """A table of texts in JSON lines."""
    (folder / "texts.jsonl").write_bytes(content)
    load_text(folder / "texts.jsonl", Words())


def _array(folder, content):
    """An array of images beside one of their labels."""
    (folder / "arrays").mkdir(exist_ok=True)
    (folder / "arrays" / "images.npy").write_bytes(content)
    np.save(folder / "arrays" / "attrs.npy", np.arange(16).reshape(8, 2) % 3)
    load_data(str(folder / "arrays"))


def _image(folder, content):
    """An image that a table lists, beside another one."""
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / "metadata.csv").write_text("file,label,bias,split\n0.png,0,0,train\n1.png,0,0,val\n")
    Image.linear_gradient("L").resize((4, 4)).convert("RGB").save(folder / "images" / "1.png")
    (folder / "images" / "0.png").write_bytes(content)
    load_data(str(folder / "images"))


def _batch(folder, content):
    """A batch of CIFAR-10, which is a pickle."""
    (folder / "cifar").mkdir(exist_ok=True)
    (folder / "cifar" / "test_batch").write_bytes(content)
    load_cifar10(folder / "cifar", "test")


def _parquet(folder, content):
    """A parquet file of texts."""
    (folder / "texts.parquet").write_bytes(content)
    load_huggingface(folder / "texts.parquet", {}, Words())


def _masks(folder, content):
    (folder / "masks.safetensors").write_bytes(content)
    MaskSet.load(folder / "masks.safetensors")


def _plan(folder, content):
    (folder / "plan.json").write_bytes(content)
    PruningPlan.load(folder / "plan.json")


def _report(folder, content):
    """A report to compare with others."""
    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "report.json").write_bytes(content)
    read_runs([folder / "run"])


def _toml(folder, content):
    (folder / "settings.toml").write_bytes(content)
    read_settings(folder / "settings.toml")


def _yaml(folder, content):
    (folder / "settings.yaml").write_bytes(content)
    read_settings(folder / "settings.yaml")


READERS = {
    "checkpoint": _checkpoint, "pickle": _pickle, "folder": _folder, "table": _table, "lines": _lines, "array": _array,
    "image": _image, "batch": _batch, "parquet": _parquet, "masks": _masks, "plan": _plan, "report": _report,
    "toml": _toml, "yaml": _yaml,
}  # fmt: skip


def read(name: str, folder: Path, content: bytes) -> BiseError | None:
    """Read a content by the reader of a name; what it was refused with, if it was."""
    try:
        READERS[name](folder, content)
    except BiseError as error:
        assert str(error)
        return error
    return None
