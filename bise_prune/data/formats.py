"""The formats of image files that are read.

Pillow reads more; an EPS file, for example, would make it start another program.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import Image

_ALLOWED = (
    "AVIF", "BMP", "DDS", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA",
    "TIFF", "WEBP", "XBM",
)  # fmt: skip


@cache
def image_formats() -> tuple[str, ...]:
    """Names of the formats, as ``PIL.Image.open`` takes them."""
    Image.init()
    return tuple(name for name in _ALLOWED if name in Image.OPEN)


@cache
def image_suffixes() -> frozenset[str]:
    """Endings of the names of image files, in lower case, such as ".png"."""
    allowed = image_formats()
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in allowed)


def is_image(path: Path) -> bool:
    """Whether a file has the name of an image and is no hidden one."""
    return path.suffix.lower() in image_suffixes() and not path.name.startswith(".")
