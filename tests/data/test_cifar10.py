"""CIFAR-10 from its batches and from sheets; malicious and damaged files."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import natural_image, write_sheets
from PIL import Image

from bise_prune.data.cifar10 import load_cifar10
from bise_prune.errors import DataError


def python_2_batch(pixels, labels):
    """A batch as Python 2's pickle wrote it: byte strings, protocol 2, the old name of numpy's module."""

    def text(value):
        return b"T" + len(value).to_bytes(4, "little") + value

    def number(value):
        return b"J" + value.to_bytes(4, "little")

    rows, columns = pixels.shape
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01" + number(rows) + number(columns) + b"\x86"
        b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2
        + b"K\x00tb\x89" + text(pixels.tobytes()) + b"tb"
    )  # fmt: skip
    listed = b"](" + b"".join(number(label) for label in labels) + b"e"
    return b"\x80\x02}" + text(b"data") + array + b"s" + text(b"labels") + listed + b"s."


def write_batches(folder, per_batch=20):
    """Five training batches and a test batch; pixel values and labels tell the images apart."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        pixels = np.arange(per_batch, dtype=np.uint8)[:, None] + np.uint8(per_batch * k)
        pixels = np.repeat(pixels, 3072, 1)
        pixels[:, 2048:] = 255  # the blue plane
        labels = [(3 * i + k) % 10 for i in range(per_batch)]
        (folder / name).write_bytes(python_2_batch(pixels, labels))
    return folder


@pytest.mark.parametrize("below", ["", "cifar-10-batches-py"])
def test_python_batches(tmp_path, below):
    write_batches(tmp_path / below)
    images, labels = load_cifar10(tmp_path, "train")
    assert images.shape == (100, 3, 32, 32) and images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert images[:, 0, 5, 7].tolist() == list(range(100))
    assert bool((images[:, 2] == 255).all()) and not bool((images[:, :2] == 255).any())
    assert labels.tolist() == [(3 * i + k) % 10 for k in range(5) for i in range(20)]
    assert load_cifar10(tmp_path, "test")[0][0, 0, 0, 0] == 100


def test_batches_of_python_3_are_read_too(tmp_path):
    folder = write_batches(tmp_path)
    batch = {"data": np.full((4, 3072), 9, np.uint8), "labels": [3, 1, 2, 0]}
    (folder / "test_batch").write_bytes(pickle.dumps(batch, protocol=4))
    images, labels = load_cifar10(tmp_path, "test")
    assert images.unique().tolist() == [9] and labels.tolist() == [3, 1, 2, 0]


class Malicious:
    def __reduce__(self):
        return Path.touch, (Path("harmed"),)


def test_a_malicious_batch_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_batches(tmp_path)
    for content in (pickle.dumps({b"data": Malicious()}), b"cos\nsystem\n(S'touch harmed'\ntR."):
        (tmp_path / "test_batch").write_bytes(content)
        with pytest.raises(DataError, match=r"cannot read .*test_batch: it names .*, which no CIFAR-10 batch needs"):
            load_cifar10(tmp_path, "test")
    assert not (tmp_path / "harmed").exists()


GOOD = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 9]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read"),
        (pickle.dumps(GOOD, 4)[:-40], "cannot read"),
        (pickle.dumps(GOOD | {"labels": [0, 10]}, 4), "is no CIFAR-10 batch"),
        (pickle.dumps(GOOD | {"labels": [0]}, 4), "is no CIFAR-10 batch"),
        (pickle.dumps({"data": GOOD["data"]}, 4), "is no CIFAR-10 batch"),
        (pickle.dumps([1, 2], 4), "is no CIFAR-10 batch"),
        (pickle.dumps(GOOD | {"data": np.zeros((2, 3072))}, 4), "array of 'f8', not of bytes"),
        (b"cnumpy\ndtype\n)R.", "cannot read"),
    ],
)
def test_damaged_batches(tmp_path, content, message):
    write_batches(tmp_path)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_cifar10(tmp_path, "test")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"no CIFAR-10 train images in .*data_batch_1 .*cifar10_train\*\.zip"):
        load_cifar10(tmp_path, "train")
    folder = write_batches(tmp_path / "cifar-10-batches-py")
    (folder / "data_batch_2").unlink()
    (folder / "data_batch_4").unlink()
    with pytest.raises(DataError, match="data_batch_2, data_batch_4 missing"):
        load_cifar10(tmp_path, "train")
    assert len(load_cifar10(tmp_path, "test")[0]) == 20


def test_sheets(tmp_path):
    write_sheets(tmp_path, train=2, rows=3)
    images, labels = load_cifar10(tmp_path, "train")
    assert labels.tolist() == [c for _ in range(2) for c in range(10) for _ in range(3)]
    expected = np.stack([natural_image(1000 * k + i) for k in range(2) for i in range(30)])
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), expected)
    assert images.is_contiguous()


def test_damaged_sheets(tmp_path):
    path = tmp_path / "cifar10_test_1of2.zip"
    for name, content, message in (
        ("a.txt", b"", "holds no WebP sheet"),
        ("a.webp", b"no image", r"a\.webp is unreadable"),
    ):
        (tmp_path / "cifar10_test_2of2.zip").unlink(missing_ok=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, content)
        with pytest.raises(DataError, match=r"beside cifar10_test_1of2\.zip, part 2 of 2 is missing"):
            load_cifar10(tmp_path, "test")
        (tmp_path / "cifar10_test_2of2.zip").write_bytes(path.read_bytes())
        with pytest.raises(DataError, match=message):
            load_cifar10(tmp_path, "test")
    for size in ((100, 320), (96, 96)):
        buffer = io.BytesIO()
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(buffer, "WEBP", lossless=True)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.webp", buffer.getvalue())
        with pytest.raises(DataError, match=rf"a\.webp is {size[0]}x{size[1]}: expected 32x32 tiles"):
            load_cifar10(tmp_path, "test")
    path.write_bytes(b"no zip")
    with pytest.raises(DataError, match="cannot read"):
        load_cifar10(tmp_path, "test")
