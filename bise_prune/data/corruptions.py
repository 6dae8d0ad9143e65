"""Ten common image corruptions (Hendrycks & Dietterich, 2019) at severity 5 of their CIFAR variant.

Each corruption is a function of an image, shape (H, W, 3), uint8, with sides of up to 160 pixels, and of a NumPy random
generator; it returns an image of the same shape and dtype, and the same generator state gives the same result. The
strengths are those of the original for 32x32 pixels. Two corruptions differ in kind from the original: :func:`frost`
blends in a procedural texture instead of the original's photographs, and the motion blur in :func:`snow` is our own.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Pixels = NDArray[np.uint8]
_Floats = NDArray[np.float64]
Corruption = Callable[[Pixels, np.random.Generator], Pixels]

_LUMA = (0.299, 0.587, 0.114)
_MUD = (63 / 255, 42 / 255, 20 / 255)
_ICE = (0.86, 0.94, 1.0)
_FROST_TEXTURES = 5
_FROST_SIZE = 160
_FROST_SHRINK = 5  # the original shrinks its photographs to a fifth


def snow(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Whiten the image and add falling snowflakes.

    Noise N(0.3, 0.3) is enlarged 1.25 times about the centre, set to 0 below 0.65, and blurred along a direction of up
    to 45 degrees from the vertical. The result and its copy turned by 180 degrees are added to 0.8 x + 0.2 max(x, 1.5
    grey + 0.5).
    """
    x = image / 255
    height, width = x.shape[:2]
    noise = rng.normal(0.3, 0.3, (height, width))
    flakes = _enlarge(noise, 1.25)
    flakes[flakes < 0.65] = 0
    flakes = _motion_blur(flakes.clip(0, 1), radius=14, sigma=12, degrees=rng.uniform(-135, -45))[..., None]
    grey = (x @ np.array(_LUMA))[..., None]
    whitened = 0.8 * x + 0.2 * np.maximum(x, 1.5 * grey + 0.5)
    return _to_pixels(whitened + flakes + flakes[::-1, ::-1])


def frost(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Blend in a random crop of a frost texture: 0.75 x + 0.45 frost.

    The texture is procedural (ferns of ice crystals on a hazy pane), not one of the original's photographs.
    """
    texture = _frost_texture(int(rng.integers(_FROST_TEXTURES)))
    height, width = image.shape[:2]
    top, left = rng.integers(_FROST_SIZE - height + 1), rng.integers(_FROST_SIZE - width + 1)
    return _to_pixels(0.75 * image / 255 + 0.45 * texture[top : top + height, left : left + width])


def fog(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Add fog: x + 1.5 times a plasma fractal in [0, 1] (decay 1.75), scaled by max(x) / (max(x) + 1.5)."""
    x = image / 255
    height, width = x.shape[:2]
    cloud = _plasma(1 << (max(height, width) - 1).bit_length(), 1.75, rng)[:height, :width, None]
    return _to_pixels((x + 1.5 * cloud) * x.max() / (x.max() + 1.5))


def brightness(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Increase V of HSV by 0.3.

    Hue and saturation stay, so that the ratios of a pixel's channels are kept; black turns grey.
    """
    x = image / 255
    value = x.max(2, keepdims=True)
    raised = (value + 0.3).clip(0, 1)
    return _to_pixels(np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised))


def contrast(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Reduce the contrast: multiply the distance of every channel to its mean over the image by 0.15."""
    x = image / 255
    mean = x.mean((0, 1))
    return _to_pixels((x - mean) * 0.15 + mean)


def spatter(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Add specks of mud.

    Mud lies where noise N(0.65, 0.1), blurred with sigma 0.5, exceeds 0.68; this mask is blurred with sigma 0.6 and set
    to 0 below 0.8.
    """
    noise = ndimage.gaussian_filter(rng.normal(0.65, 0.1, image.shape[:2]), 0.5, mode="nearest")
    mud = ndimage.gaussian_filter((noise > 0.68).astype(np.float64), 0.6, mode="nearest")
    mud[mud < 0.8] = 0
    return _to_pixels(image / 255 * (1 - mud[..., None]) + mud[..., None] * np.array(_MUD))


def elastic_transform(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Apply a random affine map and then a random smooth displacement, both with bilinear interpolation.

    The affine map moves three points, which lie a third of the shorter side from the centre, by up to 0.96 pixels per
    axis. The displacement is uniform noise in [-1, 1], blurred with sigma 0.96 and multiplied by 3.2 pixels.
    """
    height, width = image.shape[:2]
    centre, reach = np.array([height // 2, width // 2]), min(height, width) // 3
    points = centre + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    moved = points + rng.uniform(-0.96, 0.96, points.shape)
    # The inverse map, from the moved points back: a target (row, column, 1) times this matrix is its source.
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), points)
    grid = np.indices((height, width)).astype(np.float64)  # (2, H, W)
    source = np.tensordot(back[:2].T, grid, 1) + back[2][:, None, None]
    x = _sample(image / 255, source, "mirror")
    noise = rng.uniform(-1, 1, (2, height, width))
    shift = [3.2 * ndimage.gaussian_filter(part, 0.96, mode="reflect", truncate=3) for part in noise]
    return _to_pixels(_sample(x, grid + shift, "reflect"))


def jpeg(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Encode the image as JPEG of quality 40, with chroma at half resolution, and decode it."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=40)
    with Image.open(buffer) as decoded:
        return np.array(decoded)


def pixelate(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Reduce the image to 0.65 of its size (20 of 32 pixels) with a box filter, and enlarge it with the same filter."""
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((int(width * 0.65), int(height * 0.65)), Image.Resampling.BOX)
    return np.array(small.resize((width, height), Image.Resampling.BOX))


def saturate(image: Pixels, rng: np.random.Generator) -> Pixels:
    """Change S of HSV to 2.5 S + 0.2, at most 1; hue and V stay.

    Grey pixels have hue 0, so that they turn reddish.
    """
    x = image / 255
    value = x.max(2, keepdims=True)
    depth = value - x  # S V times a factor that depends on the hue
    largest = depth.max(2, keepdims=True)
    saturation = np.where(value > 0, largest / np.where(value > 0, value, 1), 0)
    share = np.where(largest > 0, depth / np.where(largest > 0, largest, 1), np.array([0.0, 1.0, 1.0]))
    return _to_pixels(value * (1 - (2.5 * saturation + 0.2).clip(0, 1) * share))


CORRUPTIONS: tuple[tuple[str, Corruption], ...] = (
    ("snow", snow),
    ("frost", frost),
    ("fog", fog),
    ("brightness", brightness),
    ("contrast", contrast),
    ("spatter", spatter),
    ("elastic transform", elastic_transform),
    ("JPEG", jpeg),
    ("pixelate", pixelate),
    ("saturate", saturate),
)


def _to_pixels(x: _Floats) -> Pixels:
    """Convert [0, 1] to bytes, rounded down as in the original; 1e-6 keeps exact levels from being rounded down."""
    return (x.clip(0, 1) * 255 + 1e-6).astype(np.uint8)


def _enlarge(x: _Floats, factor: float) -> _Floats:
    """Enlarge the centre of an array (H, W) to the array's size, bilinearly."""
    size = [-int(-side // factor) for side in x.shape]  # rounded up
    first = [(side - part) // 2 for side, part in zip(x.shape, size, strict=True)]
    centre = x[first[0] : first[0] + size[0], first[1] : first[1] + size[1]]
    large: _Floats = ndimage.zoom(centre, [side / part for side, part in zip(x.shape, size, strict=True)], order=1)
    return large


def _motion_blur(x: _Floats, radius: int, sigma: float, degrees: float) -> _Floats:
    """Blur along a trail of 2 radius + 1 samples on one side of each pixel, with the weights of half a Gaussian.

    The border is repeated.
    """
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    angle = np.deg2rad(degrees)
    rows, columns = (np.rint(steps * part).astype(int)[:, None, None] for part in (np.sin(angle), np.cos(angle)))
    row, column = np.indices(x.shape)
    trail = x[(row + rows).clip(0, x.shape[0] - 1), (column + columns).clip(0, x.shape[1] - 1)]  # (steps, H, W)
    blurred: _Floats = np.tensordot(weights / weights.sum(), trail, 1)
    return blurred


def _plasma(size: int, decay: float, rng: np.random.Generator) -> _Floats:
    """Diamond-square fractal on a torus, shape (size, size), scaled to [0, 1]; ``size`` is a power of two.

    The original draws U(-w, w) and multiplies it by w again, with w = 100 / decay^level, so that amplitudes fall by
    decay^2 from level to level.
    """
    heights = np.zeros((size, size))
    amplitude = 1.0
    step = size
    while step > 1:
        half = step // 2
        corners = heights[::step, ::step]

        def midpoints(total: _Floats, bound: float = amplitude) -> _Floats:
            return total / 4 + rng.uniform(-bound, bound, total.shape)

        across = corners + np.roll(corners, -1, 1)  # left and right of a horizontal edge
        down = corners + np.roll(corners, -1, 0)
        centres = midpoints(across + np.roll(across, -1, 0))
        heights[half::step, half::step] = centres
        heights[::step, half::step] = midpoints(across + centres + np.roll(centres, 1, 0))
        heights[half::step, ::step] = midpoints(down + centres + np.roll(centres, 1, 1))
        step = half
        amplitude /= decay**2
    heights -= heights.min()
    heights /= heights.max()
    return heights


def _sample(x: _Floats, source: _Floats, border: str) -> _Floats:
    """Read an image (H, W, 3) at the real-valued rows and columns ``source``, shape (2, H, W)."""
    channels = [ndimage.map_coordinates(x[..., c], source, order=1, mode=border) for c in range(3)]
    return np.stack(channels, 2)


@functools.cache
def _frost_texture(number: int) -> _Floats:
    """Ferns of ice crystals on a hazy pane, shape (160, 160, 3), in [0, 1]; the same for each ``number``."""
    rng = np.random.default_rng([2019, number])
    side = _FROST_SIZE * _FROST_SHRINK
    canvas = Image.new("L", (side, side))
    draw = ImageDraw.Draw(canvas)
    for _ in range(75):
        _draw_fern(draw, rng.uniform(0, side, 2), rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 0.5) * side, 3, rng)
    crystals = np.asarray(canvas.reduce(_FROST_SHRINK)) / 255
    haze = _plasma(256, 1.4, rng)[:_FROST_SIZE, :_FROST_SIZE]
    texture: _Floats = (0.2 + 0.35 * haze + 0.75 * crystals).clip(0, 1)[..., None] * np.array(_ICE)
    return texture


def _draw_fern(
    draw: ImageDraw.ImageDraw, root: _Floats, angle: float, length: float, levels: int, rng: np.random.Generator
) -> None:
    """Draw a stem with pairs of side stems at 60 degrees, shorter towards the tip, which are ferns of a lower level."""
    direction = np.array([np.cos(angle), np.sin(angle)])
    draw.line([*root, *(root + length * direction)], fill=int(rng.integers(110, 256)), width=2 * levels)
    if levels == 1:
        return
    for place in np.arange(0.12, 0.95, 0.11):
        for side in (-1, 1):
            reach = 0.42 * length * (1 - place) * rng.uniform(0.6, 1.2)
            _draw_fern(draw, root + place * length * direction, angle + side * np.pi / 3, reach, levels - 1, rng)
