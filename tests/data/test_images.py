"""Images as users have them, and what is wrong with them."""

import shutil

import numpy as np
import pytest
import torch
from folders import ROWS, reds, write_csv, write_folder, write_picture
from PIL import Image
from torchvision import transforms

from bise_prune.data import images as images_module
from bise_prune.data import load_data
from bise_prune.errors import ConfigError, DataError


def test_all_bad_images_are_named_at_once(tmp_path):
    folder = write_folder(tmp_path / "data", ROWS)
    (folder / "b.png").unlink()
    (folder / "c.png").write_bytes(b"no image")
    (folder / "d.png").write_bytes((folder / "a.png").read_bytes()[:40])
    with pytest.raises(DataError, match=r"b\.png is missing; c\.png is unreadable .*; d\.png is unreadable"):
        load_data(str(folder))


def test_images_of_different_sizes_need_a_size(tmp_path):
    folder = write_folder(tmp_path / "data", ROWS)
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(folder / "b.png")
    with pytest.raises(DataError, match=r"b\.png is 5x5, the first image 6x8"):
        load_data(str(folder))
    assert load_data(str(folder), {"size": [6, 8]}).train.inputs.shape == (2, 3, 6, 8)


def folder_of(tmp_path, *names):
    """A folder whose metadata list these files; labels and biases alternate."""
    rows = [[name, i % 2, i // 2 % 2, "train"] for i, name in enumerate(names)]
    write_csv(tmp_path / "metadata.csv", [["file", "label", "bias", "split"], *rows])
    return str(tmp_path)


def test_modes_of_images_become_rgb(tmp_path):
    gray = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(8, 6) * 5)
    gray.save(tmp_path / "gray.png")
    Image.fromarray(np.asarray(gray).astype(np.uint16) * 257).save(tmp_path / "deep.png")
    gray.convert("RGBA").save(tmp_path / "alpha.png")
    gray.convert("P").save(tmp_path / "palette.png")
    gray.convert("RGB").convert("CMYK").save(tmp_path / "cmyk.tiff")
    gray.rotate(90, expand=True).save(tmp_path / "turned.png", exif=_orientation(6))
    deep = Image.fromarray(np.rot90(np.asarray(gray).astype(np.uint16) * 257).copy())
    deep.save(tmp_path / "both.png", exif=_orientation(6))
    Image.new("RGB", (6, 8), (9, 9, 9)).save(tmp_path / "constant.png")
    names = ("gray.png", "deep.png", "alpha.png", "palette.png", "cmyk.tiff", "turned.png", "both.png", "constant.png")
    found = load_data(folder_of(tmp_path, *names))
    for i in range(7):
        assert np.array_equal(found.train.inputs[i].numpy(), np.broadcast_to(np.asarray(gray), (3, 8, 6))), names[i]
    for note in (
        "1 images have an alpha channel, which was dropped",
        "2 images have 16 bits per channel, which were scaled to 8",
        "2 images carry an EXIF rotation and were turned upright",
    ):
        assert note in found.notes
    assert found.warnings == ["1 images have one colour throughout"]


def _orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def test_bad_images_are_named_or_skipped(tmp_path, monkeypatch):
    for i in range(4):
        write_picture(tmp_path / f"{i}.png", i)
    whole = write_picture(tmp_path / "whole.jpg", 9).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.png").write_bytes(b"")
    Image.new("L", (300, 200)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40_000)
    Image.fromarray(np.zeros((8, 6), np.float32)).save(tmp_path / "float.tiff")
    names = ["missing.png", "0.png", "cut.jpg", "1.png", "none.png", "2.png", "bomb.png", "3.png", "float.tiff"]
    folder = folder_of(tmp_path, *names)
    with pytest.raises(DataError) as raised:
        load_data(folder)
    for what in (
        "missing.png is missing", "cut.jpg is unreadable (OSError)", "none.png is unreadable (no image format",
        "bomb.png has 200x300 pixels, so many", "float.tiff holds floating-point values",
    ):  # fmt: skip
        assert what in str(raised.value)
    found = load_data(folder, skip_bad=True)
    assert reds(found.train) == [0, 1, 2, 3]
    assert found.train.target.tolist() == [1, 1, 1, 1] and found.train.bias[:, 0].tolist() == [0, 1, 0, 1]
    assert found.warnings[0].startswith("5 images were left out: missing.png is missing; cut.jpg")
    with pytest.raises(DataError, match=r"missing\.png is missing"):  # nothing would be left
        load_data(folder_of(tmp_path, "missing.png"), skip_bad=True)


def test_another_size_is_no_bad_image(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "odd.png")
    write_picture(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"0\.png is 8x6, the first image 9x9: give a --size"):
        load_data(folder_of(tmp_path, "odd.png", "0.png"), skip_bad=True)


def test_images_of_one_colour_are_no_data(tmp_path):
    Image.new("RGB", (4, 4), (7, 7, 7)).save(tmp_path / "0.png")
    with pytest.raises(DataError, match="every image has one colour throughout"):
        load_data(folder_of(tmp_path, "0.png"))


def test_decoded_images_need_room(tmp_path, monkeypatch):
    write_picture(tmp_path / "0.png")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(images_module.shutil, "disk_usage", lambda folder: usage._replace(free=10))
    with pytest.raises(DataError, match=r"take 0\.0 GB, but .* has 0\.0 GB left; set TMPDIR to another disk, or give"):
        load_data(folder_of(tmp_path, "0.png"))


def _picture(root, image, count=3):
    rows = []
    for i in range(count):
        pixels = np.asarray(image).copy()
        pixels[0, 0] = i
        Image.fromarray(pixels).save(root / f"{i}.png")
        rows.append([f"{i}.png", i % 2, "train"])
    write_csv(root / "metadata.csv", [["file", "label", "split"], *rows])
    return str(root)


def test_images_are_made_of_as_many_channels_as_the_network_takes(tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (6, 8, 4), "uint8")
    folder = _picture(tmp_path, Image.fromarray(colours, "RGBA"))
    grey = load_data(folder, {"channels": 1}).train
    assert grey.inputs.shape == (3, 1, 6, 8) and grey.mean == grey.std == (0.5,)
    assert torch.equal(grey.inputs[1, 0], torch.from_numpy(np.array(Image.open(tmp_path / "1.png").convert("L"))))
    all_four = load_data(folder, {"channels": 4, "mean": [0.1], "std": [0.2]}).train
    assert all_four.inputs.shape == (3, 4, 6, 8) and all_four.mean == (0.1,) * 4
    with pytest.raises(DataError, match="takes 5 channels, and image files have 1, 3 or 4: save the images as arrays"):
        load_data(folder, {"channels": 5})
    with pytest.raises(ConfigError, match="mean has 3 numbers, but the network takes 1 channels"):
        load_data(folder, {"channels": 1, "mean": [0.5] * 3, "std": [0.5] * 3})


@pytest.mark.parametrize(("width", "height"), [(48, 24), (24, 48), (37, 31), (300, 200)])
@pytest.mark.parametrize("crop", [1.0, 0.875, 16 / 18])
def test_a_crop_is_that_of_torchvision(tmp_path, width, height, crop):
    rng = np.random.default_rng(0)
    folder = _picture(tmp_path, rng.integers(0, 256, (height, width, 3), "uint8"))
    found = load_data(folder, {"size": [16, 16], "crop": crop}).train.inputs[1]
    transform = transforms.Compose([transforms.Resize(round(16 / crop)), transforms.CenterCrop(16)])
    assert torch.equal(found, torch.from_numpy(np.array(transform(Image.open(tmp_path / "1.png")))).permute(2, 0, 1))


def test_images_that_are_squeezed_are_counted(tmp_path):
    folder = _picture(tmp_path, np.random.default_rng(0).integers(0, 256, (24, 48, 3), "uint8"))
    found = load_data(folder, {"size": [24, 24]})
    assert any(note.startswith("3 images have another shape than the size") for note in found.notes)
    assert not any("another shape" in note for note in load_data(folder, {"size": [24, 24], "crop": 1.0}).notes)
    assert not any("another shape" in note for note in load_data(folder, {"size": [12, 24]}).notes)
