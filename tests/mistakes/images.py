"""Images that cannot be used."""

import numpy as np
from PIL import Image

from .case import all_of, half, image, write


def _noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def _named(row, name):
    return lambda case: case.set("file", name, row)


CASES = {
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
        ),
        1,
        "floating-point",
    ),
    "one colour": (
        lambda case: [Image.new("RGB", (8, 8), (3, 3, 3)).save(case.data / f"{i}.png") for i in range(24)],
        1,
        "one colour throughout",
    ),
    "too small for the network": (
        lambda case: [Image.new("RGB", (1, 1), (i, 3, 3)).save(case.data / f"{i}.png") for i in range(24)],
        1,
        "colour",
    ),
    "data of no kind": (
        all_of(write("data.bin", b"abc"), lambda case: setattr(case, "data", case.root / "data.bin")),
        1,
        "neither a table nor",
    ),
    **{
        f"image that is {about}": (write("data/5.png", content), 1, "5.png is unreadable")
        for about, content in {
            "a page": b"<html></html>",
            "a drawing": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            "a document": b"%PDF-1.4\n%",
            "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
            "an archive": b"PK\x03\x04" + bytes(30),
            "a header alone": b"\x89PNG\r\n\x1a\n",
            "a bitmap of nothing": b"BM" + bytes(60),
            "a GIF of nothing": b"GIF89a" + bytes(7),
            "a pointer": b"version https://git-lfs.github.com/spec/v1\n",
            "a film": b"\0\0\0\x18ftypmp42" + bytes(20),
            "an array": b"\x93NUMPY\x01\0",
            "a pickle": b"\x80\x04K\x01.",
        }.items()
    },
    **{
        f"half of a {kind}": (
            all_of(
                image(f"5.{kind}", _noise()),
                _named(5, f"5.{kind}"),
                lambda case, kind=kind: half(case, f"data/5.{kind}"),
            ),
            1,
            f"5.{kind} is unreadable",
        )
        for kind in ("jpg", "gif", "bmp", "tiff", "webp", "ppm")
    },
}
