"""Image corruptions against loops and against other libraries."""

import colorsys
import io

import numpy as np
import pytest
from folders import natural_image
from PIL import Image

from bise_prune.data.corruptions import CORRUPTIONS

CORRUPT = dict(CORRUPTIONS)


def apply(name, image, seed=0):
    return CORRUPT[name](image, np.random.default_rng(seed))


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
