"""A folder of one's own with good inputs, and ways to spoil it."""

import csv
import dataclasses
import os
import shutil

import numpy as np
import torch

from bise_prune import load_model
from bise_prune.checkpoint import save_checkpoint


class Case:
    """A folder of one's own with good inputs, to be spoiled, and the command on them."""

    def __init__(self, root):
        self.root, self.net, self.data = root, root / "net.pt", root / "data"
        self.flags = []

    @property
    def argv(self):
        base = [self.net, "--data", self.data, "--output", self.root / "out", "--device", "cpu", "--anneal-every", "1"]
        return [*map(str, base), *map(str, self.flags)]

    def table(self, change):
        """Rewrite the metadata: ``change`` gets the rows as dicts, and returns rows or None."""
        path = self.data / "metadata.csv"
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        rows = change(rows) or rows
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else ["file", "label", "bias", "split"])
            writer.writeheader()
            writer.writerows(rows)

    def set(self, column, value, row=0):
        def change(rows):
            rows[row][column] = value

        self.table(change)

    def save(self, head_bias):
        """The same checkpoint with another additive bias in the head."""
        model, about = load_model(self.net)
        about = dataclasses.replace(about, state={**model.state_dict(), "head.bias": head_bias})
        save_checkpoint(self.net, about)

    def rename(self, column, name):
        self.table(lambda rows: [{(name if key == column else key): v for key, v in row.items()} for row in rows])


def flags(*values):
    return lambda case: case.flags.extend(values)


def write(name, content):
    def spoil(case):
        path = case.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return spoil


def saved(value, **options):
    return lambda case: torch.save(value, case.net, **options)


class Gadget:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def all_of(*steps):
    def spoil(case):
        for step in steps:
            step(case)

    return spoil


def settings(text, name="settings.toml"):
    return all_of(write(name, text), lambda case: case.flags.extend(["--config", case.root / name]))


def image(name, picture):
    return lambda case: picture.save(case.data / name)


def arrays(images, attributes):
    def spoil(case):
        shutil.rmtree(case.data)
        case.data.mkdir()
        np.save(case.data / "images.npy", images)
        np.save(case.data / "attrs.npy", attributes)

    return spoil


def half(case, name):
    path = case.root / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
