import colorsys
import csv
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHARED
from PIL import Image

from bise_prune.data.celeba import load_celeba
from bise_prune.data.cifar10 import load_cifar10
from bise_prune.data.corrupted_cifar10 import assign_shares, load_corrupted_cifar10
from bise_prune.data.corruptions import CORRUPTIONS
from bise_prune.errors import ConfigError, DataError

CORRUPT = dict(CORRUPTIONS)


def natural_image(seed=0):
    """A lit sky, ground and a textured coloured blob, 32x32: smooth parts, edges, greys and colours."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:32, :32] / 31
    image = np.stack([90 + 60 * row, 120 + 30 * column, 200 - 90 * row], 2)
    image[22:] = [70, 110, 60]
    image[(row - 0.5) ** 2 + (column - 0.4) ** 2 < 0.08] = [170, 80, 50]
    image[4:9, 22:30] = 140  # grey
    return (image + rng.normal(0, 8, (32, 32, 1))).clip(0, 255).astype(np.uint8)


def apply(name, image, seed=0):
    return CORRUPT[name](image, np.random.default_rng(seed))


# -- corruptions ----------------------------------------------------------------------------------


def test_corruptions_come_in_the_order_of_the_classes():
    assert [name for name, _ in CORRUPTIONS] == [
        "snow", "frost", "fog", "brightness", "contrast", "spatter", "elastic transform", "JPEG", "pixelate",
        "saturate",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("snow", 25, 100), ("frost", 15, 80), ("fog", 15, 80), ("brightness", 40, 77), ("contrast", 15, 60),
        ("spatter", 1, 20), ("elastic transform", 3, 25), ("JPEG", 1, 15), ("pixelate", 1, 15), ("saturate", 10, 80),
    ],
)  # fmt: skip
def test_a_corruption_is_reproducible_and_of_sensible_size(name, least, most):
    image = natural_image()
    before = image.copy()
    corrupted = apply(name, image)
    assert corrupted.shape == image.shape and corrupted.dtype == np.uint8
    assert np.array_equal(image, before)
    assert np.array_equal(corrupted, apply(name, image))
    assert least < np.abs(corrupted.astype(float) - image).mean() < most
    random = name in ("snow", "frost", "fog", "spatter", "elastic transform")
    assert np.array_equal(corrupted, apply(name, image, seed=1)) != random


def test_contrast_against_a_loop():
    image = natural_image()
    for c in range(3):
        mean = sum(int(v) for v in image[..., c].flat) / 1024
        expected = np.array([[mean + 0.15 * (int(v) - mean) for v in row] for row in image[..., c]])
        assert np.abs(apply("contrast", image)[..., c] - np.floor(expected)).max() == 0


@pytest.mark.parametrize("name", ["brightness", "saturate"])
def test_colour_changes_against_colorsys(name):
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)
    image[0] = 0
    image[1] = rng.integers(0, 256, (24, 1))  # greys
    image[2, :, 1:] = 0  # pure red
    corrupted = apply(name, image).astype(int)
    for place in np.ndindex(24, 24):
        h, s, v = colorsys.rgb_to_hsv(*image[place] / 255)
        if name == "brightness":
            v = min(v + 0.3, 1)
        else:
            s = min(2.5 * s + 0.2, 1)
        expected = 255 * np.array(colorsys.hsv_to_rgb(h, s, v))
        assert (np.abs(corrupted[place] - np.floor(expected + 1e-6)) <= 1e-9).all(), (place, image[place])


def test_pixelate_averages_boxes():
    image = natural_image()

    def boxes(x):  # along the first axis: 32 -> 20 -> 32
        centres = (np.arange(20) + 0.5) * 1.6
        small = [x[np.abs(np.arange(32) + 0.5 - centre) <= 0.8].mean(0) for centre in centres]
        return np.stack([small[int((i + 0.5) / 1.6)] for i in range(32)])

    expected = boxes(boxes(image.astype(float)).transpose(1, 0, 2)).transpose(1, 0, 2)
    assert np.abs(apply("pixelate", image) - expected).max() <= 1  # Pillow rounds between the axes


def test_jpeg_is_pillows_at_quality_40():
    buffer = io.BytesIO()
    Image.fromarray(natural_image()).save(buffer, "JPEG", quality=40, subsampling="4:2:0")
    assert np.array_equal(apply("JPEG", natural_image()), np.asarray(Image.open(buffer)))


def test_snow_against_a_loop():
    image = natural_image()
    rng = np.random.default_rng(2)
    noise = rng.normal(0.3, 0.3, (32, 32))[3:29, 3:29]  # 32 / 1.25, rounded up
    between = np.arange(32) * 25 / 31
    flakes = np.stack([np.interp(between, np.arange(26), row) for row in noise])
    flakes = np.stack([np.interp(between, np.arange(26), column) for column in flakes.T]).T
    flakes = np.where(flakes < 0.65, 0, np.minimum(flakes, 1))
    angle = np.radians(rng.uniform(-135, -45))
    weights = [np.exp(-(k**2) / (2 * 12**2)) for k in range(29)]
    steps = [(round(k * np.sin(angle)), round(k * np.cos(angle))) for k in range(29)]
    layer = np.zeros((32, 32))
    for r, c in np.ndindex(32, 32):
        for weight, (down, right) in zip(weights, steps, strict=True):
            layer[r, c] += weight / sum(weights) * flakes[min(max(r + down, 0), 31), min(max(c + right, 0), 31)]
    snowy = apply("snow", image, seed=2)
    for r, c in np.ndindex(32, 32):
        x = image[r, c] / 255
        white = np.maximum(x, 1.5 * (0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]) + 0.5)
        expected = np.minimum(0.8 * x + 0.2 * white + layer[r, c] + layer[31 - r, 31 - c], 1) * 255
        assert np.abs(snowy[r, c] - np.floor(expected + 1e-6)).max() <= 1


def test_snow_brightens_and_is_its_own_half_turn():
    image = natural_image()
    assert (apply("snow", image) >= image).all()
    on_black = apply("snow", np.zeros((32, 32, 3), np.uint8))
    assert np.array_equal(on_black, on_black[::-1, ::-1])
    assert on_black.min() >= int(0.2 * 0.5 * 255)  # .8 * 0 + .2 * .5, without a flake
    assert on_black.max() > 60


def test_snow_falls():
    """Streaks lie within 45 degrees of the vertical: brightness changes less down the image than across."""
    down, across = 0.0, 0.0
    for seed in range(40):
        flakes = apply("snow", np.zeros((32, 32, 3), np.uint8), seed)[..., 0].astype(float)
        down += np.abs(np.diff(flakes, axis=0)).mean()
        across += np.abs(np.diff(flakes, axis=1)).mean()
    assert down < 0.8 * across


def test_frost_is_three_quarters_of_the_image_and_less_than_half_a_texture():
    black, white = (np.full((32, 32, 3), value, np.uint8) for value in (0, 255))
    on_black, on_white = apply("frost", black).astype(int), apply("frost", white).astype(int)
    assert on_black.max() <= 0.45 * 255
    assert np.abs(on_white - np.minimum(on_black + 0.75 * 255, 255)).max() <= 1
    assert (on_black[..., 2] >= on_black[..., 0]).all() and on_black.std() > 3  # bluish, and not flat


def test_fog_is_a_full_range_cloud_on_a_dimmed_image():
    image = np.full((32, 32, 3), 102, np.uint8)  # .4
    cloud = (apply("fog", image)[..., 0] / 255 * (0.4 + 1.5) / 0.4 - 0.4) / 1.5
    assert cloud.min() == pytest.approx(0, abs=0.013) and cloud.max() == pytest.approx(1, abs=0.013)
    # A fractal: neighbours differ far less than distant points do.
    assert np.abs(np.diff(cloud, axis=0)).mean() < 0.4 * np.abs(cloud[16:] - cloud[:16]).mean()


def test_fog_against_a_loop():
    image = natural_image() // 2
    rng = np.random.default_rng(3)
    heights, step, amplitude = np.zeros((32, 32)), 32, 1.0
    diagonal, straight = [(1, 1), (1, -1), (-1, 1), (-1, -1)], [(1, 0), (-1, 0), (0, 1), (0, -1)]
    while step > 1:
        half = step // 2
        for r0, c0, around in ((half, half, diagonal), (0, half, straight), (half, 0, straight)):
            drawn = rng.uniform(-amplitude, amplitude, (32 // step, 32 // step))
            for i, j in np.ndindex(drawn.shape):
                r, c = r0 + i * step, c0 + j * step
                near = [heights[(r + half * dr) % 32, (c + half * dc) % 32] for dr, dc in around]
                heights[r, c] = sum(near) / 4 + drawn[i, j]
        step, amplitude = half, amplitude / 1.75**2
    cloud = (heights - heights.min()) / np.ptp(heights)
    largest = image.max() / 255
    expected = np.minimum((image / 255 + 1.5 * cloud[..., None]) * largest / (largest + 1.5), 1) * 255
    assert np.abs(apply("fog", image, seed=3) - np.floor(expected + 1e-6)).max() <= 1


def test_spatter_leaves_a_pixel_or_turns_it_to_mud():
    image = np.full((32, 32, 3), 200, np.uint8)
    touched = 0
    for seed in range(20):
        spattered = apply("spatter", image, seed).astype(float)
        share = (200 - spattered) / (200 - np.array([63, 42, 20]))
        specks = (spattered != 200).any(2)
        touched += specks.mean() / 20
        assert share[specks].min() >= 0.79 and share.max() <= 1.02
    assert 0.02 < touched < 0.25


@pytest.mark.parametrize("seed", range(4))
def test_elastic_transform_against_a_loop(seed):
    image = natural_image()
    rng = np.random.default_rng(seed)
    points = np.array([[26, 26], [26, 6], [6, 6]])
    moved = points + rng.uniform(-0.96, 0.96, (3, 2))
    forward = np.linalg.solve(np.column_stack([points, np.ones(3)]), moved)  # target = source @ A + t
    noise = rng.uniform(-1, 1, (2, 32, 32))
    weights = np.exp(-(np.arange(-3, 4) ** 2) / (2 * 0.96**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2

    def read(x, place, border):  # bilinear
        padded = np.pad(x, ((12, 12), (12, 12), (0, 0)), border)
        (r, c), (fr, fc) = np.floor(place).astype(int) + 12, place - np.floor(place)
        rows = padded[r, c : c + 2] * (1 - fr) + padded[r + 1, c : c + 2] * fr
        return rows[0] * (1 - fc) + rows[1] * fc

    affine, expected = np.empty((32, 32, 3)), np.empty((32, 32, 3))
    for place in np.ndindex(32, 32):
        affine[place] = read(image.astype(float), np.linalg.solve(forward[:2].T, place - forward[2]), "reflect")
    for r, c in np.ndindex(32, 32):
        shift = [(np.pad(part, 3, "symmetric")[r : r + 7, c : c + 7] * weights).sum() * 3.2 for part in noise]
        expected[r, c] = read(affine, np.array([r, c]) + shift, "symmetric")
    assert np.abs(apply("elastic transform", image, seed) - np.floor(expected + 1e-6)).max() <= 1


# -- CIFAR-10 -------------------------------------------------------------------------------------


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


def write_sheets(root, train=1, test=1, rows=10):
    """Zips of sheets of ``rows`` rows of ten tiles: ``rows`` tiles per class, natural-looking, all different."""
    for split, count in (("train", train), ("test", test)):
        with zipfile.ZipFile(root / f"cifar10_{split}.zip", "w") as archive:
            for k in range(count):
                tiles = [natural_image(1000 * k + i + (split == "test") * 500) for i in range(10 * rows)]
                sheet = np.concatenate([np.concatenate(tiles[10 * j : 10 * j + 10], 1) for j in range(rows)])
                buffer = io.BytesIO()
                Image.fromarray(sheet).save(buffer, "WEBP", lossless=True)
                archive.writestr(f"{split}_{k:02}.webp", buffer.getvalue())
                archive.writestr(f"{split}_{k:02}.names.txt", "a\nb")
    return root


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


# -- Corrupted CIFAR-10 ---------------------------------------------------------------------------


@pytest.mark.parametrize(("rho", "aligned"), [(0.995, 4975), (0.99, 4950), (0.98, 4900), (0.95, 4750)])
def test_aligned_images_per_class(rho, aligned):
    labels = torch.arange(10).repeat(5000)
    cells = torch.bincount(labels * 10 + assign_shares(labels, rho), minlength=100).view(10, 10)
    assert cells.diagonal().tolist() == [aligned] * 10
    others = cells[~torch.eye(10, dtype=torch.bool)]
    assert abs(others - (5000 - aligned) / 9).max() < 1 and int(cells.sum()) == 50_000


def test_every_cell_of_the_test_set_has_100_images():
    labels = torch.arange(10).repeat_interleave(1000)
    cells = torch.bincount(labels * 10 + assign_shares(labels, 0.1), minlength=100)
    assert cells.tolist() == [100] * 100


def test_shares_follow_the_file_order():
    labels = torch.tensor([1, 0] * 20)
    bias = assign_shares(labels, 0.7, num_bias_classes=3)
    assert bias[labels == 0].tolist() == [0] * 14 + [1] * 3 + [2] * 3
    assert bias[labels == 1].tolist() == [0] * 3 + [1] * 14 + [2] * 3


def test_images_carry_the_corruption_of_their_label(tmp_path):
    write_sheets(tmp_path)
    splits = load_corrupted_cifar10(tmp_path, rho=0.6, samples=100, seed=3)
    clean, labels = load_cifar10(tmp_path, "train")
    assert torch.equal(splits.train.target, labels) and splits.train.bias.shape == (100, 1)
    assert int((splits.train.bias[:, 0] == labels).sum()) == 60
    for i in range(100):
        name, corruption = CORRUPTIONS[splits.train.bias[i, 0]]
        if name in ("brightness", "contrast", "JPEG", "pixelate", "saturate"):
            expected = corruption(clean[i].permute(1, 2, 0).numpy(), np.random.default_rng(99))
            assert np.array_equal(splits.train.inputs[i].permute(1, 2, 0).numpy(), expected), name
        assert not torch.equal(splits.train.inputs[i], clean[i])
    cells = torch.bincount(splits.test.target * 10 + splits.test.bias[:, 0], minlength=100)
    assert cells.tolist() == [1] * 100
    assert splits.val is None and splits.classes[0] == "plane"
    assert any("LfF recipe, severity 5, procedural frost; not the archive" in note for note in splits.notes)
    batch = splits.train.batch(torch.tensor([0]))
    first = (splits.train.inputs[0, 0, 0, 0].item() / 255 - 0.4914) / 0.2023
    assert batch.input[0, 0, 0, 0].item() == pytest.approx(first, abs=1e-5)


def test_the_seed_and_the_number_of_samples(tmp_path):
    write_sheets(tmp_path, train=2)
    full, again, other = (load_corrupted_cifar10(tmp_path, 0.5, seed, samples=200) for seed in (0, 0, 1))
    assert torch.equal(full.train.inputs, again.train.inputs) and torch.equal(full.test.inputs, again.test.inputs)
    assert torch.equal(full.train.bias, other.train.bias)
    drawn = (full.train.inputs != other.train.inputs).flatten(1).any(1)
    assert set(full.train.bias[drawn, 0].tolist()) == {0, 1, 2, 5, 6}  # the corruptions that draw random numbers
    snow = full.train.inputs[full.train.bias[:, 0] == 0]
    assert len(snow.unique(dim=0)) == len(snow)
    part = load_corrupted_cifar10(tmp_path, 0.5, samples=50)
    assert torch.bincount(part.train.target).tolist() == [5] * 10
    # The subset leads: its images are the first of each class, with the same random numbers.
    assert torch.equal(part.train.inputs[0], full.train.inputs[0]) and part.train.bias[0] == full.train.bias[0]
    with pytest.raises(DataError, match=r"samples=210 needs 21 .* the files hold 20 of 'plane', 20 of 'car'"):
        load_corrupted_cifar10(tmp_path, samples=210)


@pytest.mark.parametrize("argument", [{"rho": 1.0}, {"rho": 0.05}, {"samples": 15}, {"samples": 0}, {"seed": -1}])
def test_arguments_are_checked(tmp_path, argument):
    ((name, value),) = argument.items()
    with pytest.raises(ConfigError, match=f"{name}={value}.*; expected rho in"):
        load_corrupted_cifar10(tmp_path, **argument)


@pytest.fixture
def cifar10():
    folder = SHARED / "cifar10"
    if not folder.is_dir():
        pytest.skip(f"no CIFAR-10 in {folder.parent.name}/{folder.name} beside the project")
    return folder


def test_real_corrupted_cifar10(cifar10):
    images, labels = load_cifar10(cifar10, "train")
    assert torch.bincount(labels).tolist() == [5000] * 10
    means = [images[:, c].double().mean().item() / 255 for c in range(3)]
    assert means == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=1e-7)
    splits = load_corrupted_cifar10(cifar10, rho=0.95, samples=1000)
    assert int((splits.train.bias[:, 0] == splits.train.target).sum()) == 950
    cells = torch.bincount(splits.test.target * 10 + splits.test.bias[:, 0], minlength=100)
    assert cells.tolist() == [100] * 100


# -- CelebA ---------------------------------------------------------------------------------------

# Images per (y, b) = (0, 0), (0, 1), (1, 0), (1, 1) in the official train, valid and test splits.
COUNTS = {"0": (12, 10, 7, 9), "1": (5, 4, 2, 3), "2": (1, 1, 1, 1)}


def write_celeba(root, ending, counts=COUNTS, nested=False):
    """The official files in either format; image i has the grey level 3 i but for a corner; test images have none."""
    folder = root / "img_align_celeba" / ("img_align_celeba" if nested else "")
    folder.mkdir(parents=True)
    cells = [(split, y, b) for split, n in counts.items() for y in (0, 1) for b in (0, 1) for _ in range(n[2 * y + b])]
    cells = [cells[i] for i in np.random.default_rng(0).permutation(len(cells))]
    names = ["5_o_Clock_Shadow", "Blond_Hair", "Eyeglasses", "Male"]
    rows = []
    for i, (split, y, b) in enumerate(cells):
        rows.append((f"{i + 1:06}.jpg", -1, 2 * y - 1, 1, 1 - 2 * b))
        if split != "2":
            pixels = np.full((22, 18, 3), 3 * i, np.uint8)
            pixels[-3:, -3:] = 255
            Image.fromarray(pixels).save(folder / rows[-1][0], quality=95)
    partition = [(row[0], split) for row, (split, _, _) in zip(rows, cells, strict=True)]
    if ending == "txt":
        lines = [str(len(rows)), " ".join(names) + " ", *("  ".join(map(str, row)) for row in rows)]
        (root / "list_attr_celeba.txt").write_text("\n".join(lines) + "\n")
        (root / "list_eval_partition.txt").write_text("".join(f"{name} {split}\n" for name, split in partition))
    else:
        for name, table in (
            ("list_attr_celeba", [("image_id", *names), *rows]),
            ("list_eval_partition", [("image_id", "partition"), *partition]),
        ):
            with (root / f"{name}.csv").open("w", newline="") as file:
                csv.writer(file).writerows(table)
    return cells


def image_numbers(data):
    return (data.inputs[:, 0, 1, 1].double() / 3).round().long().tolist()


@pytest.mark.parametrize(("ending", "nested"), [("txt", False), ("csv", True)])
def test_celeba_splits(tmp_path, ending, nested):
    cells = write_celeba(tmp_path, ending, nested=nested)
    splits = load_celeba(tmp_path, seed=1, size=16)
    counts = {}
    for part in (splits.train, splits.val, splits.test):
        assert part.inputs.shape[1:] == (3, 16, 16) and part.inputs.dtype == torch.uint8
        counts[part] = torch.bincount(2 * part.target + part.bias[:, 0], minlength=4).tolist()
        official = "1" if part is splits.test else "0"
        labelled = zip(image_numbers(part), part.target.tolist(), part.bias[:, 0].tolist(), strict=True)
        assert all(cells[i] == (official, y, b) for i, y, b in labelled)
    # Half of the smallest training group, 7, is 3; the smallest valid group has 2.
    assert list(counts.values()) == [[9, 7, 4, 6], [3] * 4, [2] * 4]
    assert len({*image_numbers(splits.train), *image_numbers(splits.val)}) == 38
    assert any("validation takes 3 of each, not 277" in note for note in splits.notes)
    assert splits.classes == ("not blond", "blond") and splits.train.mean == (0.485, 0.456, 0.406)


def test_celeba_draws_by_seed(tmp_path):
    write_celeba(tmp_path, "txt")
    first, again, other = (load_celeba(tmp_path, seed, 4) for seed in (0, 0, 1))
    for name in ("val", "test"):
        numbers = [image_numbers(getattr(splits, name)) for splits in (first, again, other)]
        assert numbers[0] == numbers[1] != numbers[2]


def test_celeba_holds_out_277_of_each_subgroup(tmp_path, monkeypatch):
    from bise_prune.data import celeba

    monkeypatch.setattr(celeba, "VALIDATION_PER_SUBGROUP", 2)
    write_celeba(tmp_path, "txt")
    splits = load_celeba(tmp_path, size=4)
    assert torch.bincount(2 * splits.val.target + splits.val.bias[:, 0]).tolist() == [2] * 4
    assert len(splits.train) == 38 - 8 and len(splits.notes) == 1


def test_celeba_needs_its_files(tmp_path):
    with pytest.raises(DataError, match=r"list_attr_celeba\.txt \(or \.csv\) and list_eval_partition\.txt .* missing"):
        load_celeba(tmp_path)
    cells = write_celeba(tmp_path, "csv")
    needed = [f"{i + 1:06}.jpg" for i, (split, _, _) in enumerate(cells) if split == "0"]
    for name in needed:
        (tmp_path / "img_align_celeba" / name).unlink()
    with pytest.raises(DataError, match=r"38 of 46 images are missing in .*img_align_celeba: ") as caught:
        load_celeba(tmp_path)
    named = str(caught.value).split(": ")[1].split(", ")
    assert len(named) == 11 and named[-1] == "..." and set(named[:-1]) <= set(needed)
    with pytest.raises(ConfigError, match="size=0"):
        load_celeba(tmp_path, size=0)


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("list_attr_celeba.csv", "Male", "Man", "has no column Male"),
        ("list_attr_celeba.csv", "000003.jpg,-1", "000003.jpg,-1,-1", r"1 of 56 rows are damaged, first '000003\.jpg'"),
        ("list_eval_partition.csv", "000004.jpg,", "000004.jpg,7", r"no split 0, 1 or 2 for 1 images, first 000004\.j"),
        ("list_eval_partition.csv", "000005.jpg", "x", r"no split 0, 1 or 2 for 1 images, first 000005\.jpg"),
    ],
)
def test_celeba_tables_are_checked(tmp_path, file, old, new, message):
    write_celeba(tmp_path, "csv")
    path = tmp_path / file
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        load_celeba(tmp_path)


def test_celeba_empty_subgroups_are_all_named(tmp_path):
    write_celeba(tmp_path, "txt", {"0": (3, 3, 3, 1), "1": (2, 0, 2, 2)})
    with pytest.raises(
        DataError,
        match=r"1 training images with Blond_Hair=1, Male=0 \(at least 2\); 0 valid images with Blond_Hair=0, Male=0",
    ):
        load_celeba(tmp_path)
