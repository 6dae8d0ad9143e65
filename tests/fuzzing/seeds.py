"""Contents from which fuzzing starts: for each reader some that it can read, and what was once found."""

import functools
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import nn

from bise_prune import MaskSet, prune
from bise_prune.checkpoint import Checkpoint
from bise_prune.gates.masks import MASK_FORMAT, MASK_VERSION
from bise_prune.models import build_model

FOUND = Path(__file__).parent / "found"


@functools.cache
def contents(name: str) -> dict[str, bytes]:
    """Contents for a reader, by what they are."""
    folder = FOUND / name
    found = {path.name: path.read_bytes() for path in sorted(folder.iterdir())} if folder.is_dir() else {}
    return _MADE[name]() | found


def _saved(value: object, **options: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("mlp", 3, {"in_features": 12, "hidden": [4]})


def _checkpoints() -> dict[str, bytes]:
    state = _network().state_dict()
    described = json.dumps(Checkpoint({}, arch="mlp", num_classes=3).description())
    training = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}, "optimizer": {"state": {}}}
    return {
        "state dict": _saved(state),
        "training checkpoint": _saved(training),
        "legacy": _saved(state, _use_new_zipfile_serialization=False),
        "module": _saved(nn.Sequential(nn.Linear(2, 2))),
        "own": _saved({"bise_prune": described, "state_dict": dict(state)}),
        "safetensors": save(state),
        "own safetensors": save(state, metadata={"bise_prune": described}),
        "index": json.dumps({"weight_map": {"a": "part.safetensors"}}).encode(),
        "plain pickle": pickle.dumps({"weight": np.zeros(3)}),
        "torchscript": _script(),
    }


def _script() -> bytes:
    """An archive as torch.jit makes one: a pickle of stand-ins, its storages, and code, which is not read."""
    buffer = io.BytesIO()
    network = _network().eval()
    torch.jit.save(torch.jit.trace(network, torch.zeros(1, 12), check_trace=False), buffer)
    return buffer.getvalue()


def _pickles() -> dict[str, bytes]:
    """Pickles as they lie in archives."""
    made = {}
    for name, value in {
        "state dict": {"a": torch.zeros(3), "b": torch.zeros(2, 2)},
        "parameters": nn.Linear(2, 2),
        "objects": {"model": {"a": torch.zeros(3)}, "when": complex(1, 2), "args": {1, 2}, "type": torch.float16},
    }.items():
        with zipfile.ZipFile(io.BytesIO(_saved(value))) as archive:
            made[name] = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    return made


def _folders() -> dict[str, bytes]:
    return {
        "transformers": json.dumps({"model_type": "bert", "architectures": ["BertForSequenceClassification"],
                                    "hidden_size": 4, "id2label": {"0": "a", "1": "b", "2": "c"}}).encode(),
        "timm": json.dumps({"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": {
            "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "input_size": [3, 32, 32]}}).encode(),
    }  # fmt: skip


def _tables() -> dict[str, bytes]:
    return {
        "usual": b"file,label,bias,split\na.png,0,1,train\nb.png,1,0,val\n",
        "semicolons": 'file;label;bias;split\r\na.png;cat;red;train\r\n"b.png";dog;blue;test\r\n'.encode("utf-16"),
        "tabs": "\ufefffile\tlabel\tbias\na.png\t-1\tyes\nb.png\t1\tno\n".encode(),
        "celeba": b"2\nSmiling Young\na.png  1 -1\nb.png -1  1\n",
    }


def _lines() -> dict[str, bytes]:
    rows = [
        {"text": "good", "label": 0, "bias": 1, "split": "train"},
        {"text": "bad", "label": "1", "bias": 0, "split": "val"},
    ]
    return {"texts": "\n".join(map(json.dumps, rows)).encode()}


def _arrays() -> dict[str, bytes]:
    made = {}
    for name, value in {
        "bytes": np.arange(8 * 4 * 4 * 3).reshape(8, 4, 4, 3).astype(np.uint8),
        "floats": np.linspace(0, 1, 8 * 16, dtype=">f4").reshape(8, 1, 4, 4),
        "columns first": np.asfortranarray(np.arange(128, dtype=np.float64).reshape(8, 4, 4) / 200),
    }.items():
        buffer = io.BytesIO()
        np.save(buffer, value)
        made[name] = buffer.getvalue()
    return made


def _images() -> dict[str, bytes]:
    made = {}
    for kind in ("PNG", "GIF", "BMP", "TIFF", "PPM", "JPEG"):
        buffer = io.BytesIO()
        picture = Image.new("RGB", (4, 4), (9, 0, 0))
        picture.putpixel((1, 1), (255, 255, 255))
        picture.save(buffer, kind)
        made[kind] = buffer.getvalue()
    return made


def _batches() -> dict[str, bytes]:
    pixels = np.arange(2 * 3072, dtype=np.uint32).astype(np.uint8).reshape(2, 3072)
    return {"batch": pickle.dumps({b"data": pixels, b"labels": [3, 9]}, protocol=4)}


def _parquets() -> dict[str, bytes]:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"text": ["good", "bad", "so", "yes"], "label": [0, 1, 0, 1], "bias": [0, 0, 1, 1]})
    parquet.write_table(table, buffer := io.BytesIO())
    return {"texts": buffer.getvalue()}


def _reports() -> dict[str, bytes]:
    return {"frontier": b'{"schema_version": 1, "frontier": [{"folder": "a", "report": {"schema_version": "x"}}]}'}


def _masks() -> dict[str, bytes]:
    about = {"format": MASK_FORMAT, "version": MASK_VERSION}
    return {
        "masks": save({"a": torch.ones(2), "state:b": torch.zeros(3)}, metadata={**about, "sites": '["a"]'}),
        "none": save({"a": torch.ones(2)}, metadata={**about, "sites": "[]"}),
        "header": struct.pack("<Q", 2) + b"{}",
    }


def _plans() -> dict[str, bytes]:
    torch.manual_seed(0)
    inputs = torch.zeros(1, 12)
    network, masks = (
        nn.Sequential(nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 3)),
        MaskSet({"0": torch.tensor([-1.0, 1.0, 1.0, -1.0])}),
    )
    return {"plan": json.dumps(prune(network, masks, inputs).plan.as_dict()).encode(), "empty": b"{}"}


def _tomls() -> dict[str, bytes]:
    return {"settings": b'target_sparsity = 0.5\nmean = [0.5, 0.5, 0.5]\narch = "resnet18"\n'}


def _yamls() -> dict[str, bytes]:
    return {"settings": b"target_sparsity: auto\nstd: [0.5, 0.5]\nbatch_size: &b 7\nseed: *b\n"}


_MADE = {
    "checkpoint": _checkpoints, "pickle": _pickles, "folder": _folders, "table": _tables, "lines": _lines,
    "array": _arrays, "image": _images, "batch": _batches, "parquet": _parquets, "masks": _masks, "plan": _plans,
    "report": _reports, "toml": _tomls, "yaml": _yamls,
}  # fmt: skip
