"""Pictures, tables and folders as users have them."""

import csv
import gzip
import io
import zipfile

import numpy as np
import torch
from PIL import Image, ImageDraw


def write_folder(root, rows, columns=("label", "bias", "split", "file"), size=(6, 8)):
    root.mkdir(exist_ok=True)
    for i, row in enumerate(rows):
        if row[3] and not (root / row[3]).exists():
            pixels = np.full((*size, 3), i, np.uint8)
            pixels[-1, -1] = 255
            Image.fromarray(pixels).save(root / row[3])
    with (root / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])
    return root


ROWS = [(0, 0, "train", "a.png"), (1, 1, "train", "b.png"), (1, 0, "val", "c.png"), (0, 1, "test", "d.png")]


def natural_image(seed=0):
    """A lit sky, ground and a textured coloured blob, 32x32: smooth parts, edges, greys and colours."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[:32, :32] / 31
    image = np.stack([90 + 60 * row, 120 + 30 * column, 200 - 90 * row], 2)
    image[22:] = [70, 110, 60]
    image[(row - 0.5) ** 2 + (column - 0.4) ** 2 < 0.08] = [170, 80, 50]
    image[4:9, 22:30] = 140  # grey
    return (image + rng.normal(0, 8, (32, 32, 1))).clip(0, 255).astype(np.uint8)


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


def picture(i, size=(8, 6)):
    """An image that differs from the others; red grows with i."""
    image = Image.new("RGB", size[::-1], (i, 0, 40))
    ImageDraw.Draw(image).point((i % size[1], i // size[1] % size[0]), (255, 255, 255))
    return image


def write_picture(path, i=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(i).save(path, **options)
    return path


def write_csv(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def reds(data):
    """Which picture each row is."""
    return data.inputs[:, 0].flatten(1).median(1).values.tolist()


class Words:
    """A token per word: 1 begins, 2 ends, the others are the words' lengths + 10; 0 pads."""

    def __init__(self, left: bool = False) -> None:
        self.left, self.calls = left, []

    def __call__(self, text, /, *, padding, truncation, max_length, return_tensors):
        assert (padding, truncation, return_tensors) == ("max_length", True, "pt")
        self.calls.append(len(text))
        rows = [[1, *(len(word) + 10 for word in line.split()[: max_length - 2]), 2] for line in text]
        pads = [[0] * (max_length - len(row)) for row in rows]
        ids = [pad + row if self.left else row + pad for row, pad in zip(rows, pads, strict=True)]
        ids = torch.tensor(ids, dtype=torch.int32)
        return {"input_ids": ids, "token_type_ids": torch.zeros_like(ids), "attention_mask": (ids != 0).int()}


def write_table(path, columns, rows):
    opened = gzip.open(path, "wt", newline="") if path.suffix == ".gz" else path.open("w", newline="")
    with opened as file:
        csv.writer(file).writerows([columns, *rows])
    return path
