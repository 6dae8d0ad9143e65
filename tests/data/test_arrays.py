"""Arrays of images and attributes."""

import numpy as np
import pytest
import torch

from bise_prune.data import load_data
from bise_prune.data.columns import Columns
from bise_prune.errors import DataError


def save_arrays(folder, images, attributes):
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", images)
    np.save(folder / "attrs.npy", attributes)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (3, 6, 5), (4, 6, 5), (6, 5, 1), (6, 5, 4)])
def test_arrays(tmp_path, shape):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (6, *shape), np.uint8)
    attributes = np.stack([np.arange(6) % 2, np.arange(6) % 3], 1)
    for part in ("train", "valid"):
        save_arrays(tmp_path / part, images, attributes)
    found = load_data(str(tmp_path))
    assert found.train.inputs.shape == (6, 3, 6, 5) and found.test is None
    expected = images[:, :3] if shape[0] in (3, 4) else images.reshape(6, 6, 5, -1)[..., :3].transpose(0, 3, 1, 2)
    assert np.array_equal(found.val.inputs.numpy(), np.broadcast_to(expected, (6, 3, 6, 5)))
    assert found.train.target.tolist() == [0, 1] * 3 and found.train.bias[:, 0].tolist() == [0, 1, 2] * 2
    for columns in (Columns("1", ("0",)), Columns("1")):
        swapped = load_data(str(tmp_path), columns=columns)
        assert torch.equal(swapped.train.target, found.train.bias[:, 0])
        assert torch.equal(swapped.train.bias[:, 0], found.train.target)
    for columns, message in ((Columns("1", ("1",)), "more than one purpose"), (Columns("²"), "not ²")):
        with pytest.raises(DataError, match=message):
            load_data(str(tmp_path), columns=columns)
    assert load_data(str(tmp_path), {"size": [3, 4]}).train.inputs.shape == (6, 3, 3, 4)


def test_arrays_without_splits_and_of_floats(tmp_path):
    images = np.random.default_rng(0).normal(size=(50, 4, 4, 3))
    save_arrays(tmp_path, images, np.stack([np.arange(50) % 2, np.arange(50) % 5 % 2], 1))
    found = load_data(str(tmp_path))
    assert sum(len(part) for part in (found.train, found.val, found.test)) == 50 and not found.train.mean
    assert found.train.inputs.dtype == torch.float32
    images[7, 0, 0, 0] = np.nan
    save_arrays(tmp_path, images, np.zeros((50, 2), np.int64))
    with pytest.raises(DataError, match="1 images have NaN or infinity, first image 7"):
        load_data(str(tmp_path))


@pytest.mark.parametrize(
    ("images", "attributes", "message"),
    [
        (np.zeros((3, 4, 4, 3), np.int32), np.zeros((3, 2), int), "int32 of shape"),
        (np.zeros((3, 4), np.uint8), np.zeros((3, 2), int), r"expected uint8 or floats, \(N, H, W\)"),
        (np.zeros((3, 4, 4), np.uint8), np.zeros((4, 2), int), "3 images, but 4 rows of attributes"),
        (np.zeros((3, 4, 4), np.uint8), np.zeros((3, 2)), "float64 .* expected integers"),
        (np.zeros((3, 4, 4), np.uint8), np.full((3, 2), -2), "labels run from -2 to -2"),
        (np.zeros((3, 5, 6, 7), np.uint8), np.zeros((3, 2), int), "has images of other than 3 channels"),
        (np.array([{}] * 3), np.zeros((3, 2), int), "holds pickled objects"),
    ],
)
def test_arrays_are_checked(tmp_path, images, attributes, message):
    save_arrays(tmp_path, images, attributes)
    with pytest.raises(DataError, match=message):
        load_data(str(tmp_path))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_arrays_of_as_many_channels_as_the_network_takes(tmp_path, channels):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "attrs.npy", np.stack([np.arange(40) % 2, np.arange(40) % 3], 1))
    for shape in ((40, 6, 7, channels), (40, channels, 6, 7)):
        images = rng.integers(0, 256, shape, "uint8")
        np.save(tmp_path / "images.npy", images)
        found = load_data(str(tmp_path), {"channels": channels if channels != 3 else None}).train
        assert found.inputs.shape[1:] == (channels, 6, 7) and len(found.mean) == channels
    np.save(tmp_path / "images.npy", rng.integers(0, 256, (40, 6, 7, 4), "uint8"))
    if channels == 5:
        with pytest.raises(DataError, match="has images of other than 5 channels"):
            load_data(str(tmp_path), {"channels": channels})
    else:
        note = {1: "the images are coloured, and were made grey", 3: "have a fourth channel, which was dropped"}
        assert any(note[channels] in text for text in load_data(str(tmp_path), {"channels": channels}).notes)


@pytest.mark.parametrize("content", [
    b"", b"\x93NUMPY", b"PK\3\4" + bytes(50), b"\x93NUMPY\1\0\xff\xff" + b"{" * 200,
    b"\x93NUMPY\1\0\x5a\0{'descr': '<i8', 'fortran_order': False, 'shape': (100000000000000, 2)}".ljust(110) + b"\n",
    b"\x93NUMPY\1\0\x46\0{'descr': '<i8', 'fortran_order': False, 'shape': ()}".ljust(79) + b"\n" + bytes(8),
])  # fmt: skip
def test_arrays_with_odd_headers(tmp_path, content):
    np.save(tmp_path / "images.npy", np.zeros((4, 6, 7, 3), "uint8"))
    (tmp_path / "attrs.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"attrs\.npy cannot be read: "):
        load_data(str(tmp_path))
