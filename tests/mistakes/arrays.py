"""Arrays that cannot be used."""

import numpy as np

from .case import all_of, arrays, flags

labels = np.zeros((3, 2), int)


def _varied():
    return np.arange(3 * 48, dtype=np.uint8).reshape(3, 4, 4, 3)


def _archive(case):
    arrays(np.zeros((3, 4, 4, 3), np.uint8), labels)(case)
    with (case.data / "images.npy").open("wb") as file:
        np.savez(file, images=np.zeros(3))


def _header(case):
    arrays(np.zeros((3, 4, 4, 3), np.uint8), labels)(case)
    text = "{'descr': '|u1', 'fortran_order': False, 'shape': (9999999999999, 4, 4, 3), }".ljust(117) + "\n"
    (case.data / "images.npy").write_bytes(b"\x93NUMPY\x01\0" + len(text).to_bytes(2, "little") + text.encode())


CASES = {
    "crop of arrays": (all_of(arrays(_varied(), labels), flags("--crop", "0.5")), 2, "crop has no use"),
    "split column of arrays": (
        all_of(arrays(_varied(), labels), flags("--split-column", "split")),
        2,
        "split_column has no use",
    ),
    "arrays of unequal length": (arrays(np.zeros((3, 4, 4), np.uint8), np.zeros((4, 2), int)), 1, "3 images, but 4"),
    "NaN images": (arrays(np.full((3, 8, 8, 3), np.nan), np.zeros((3, 2), int)), 1, "NaN or infinity"),
    "pickled arrays": (arrays(np.array([{}] * 3), np.zeros((3, 2), int)), 1, "pickled objects"),
    **{
        f"images {about}": (arrays(value, labels), 1, words)
        for about, (value, words) in {
            "of no axis": (np.uint8(3), "images.npy"),
            "of one axis": (np.zeros(3, np.uint8), "images.npy"),
            "of two axes": (np.zeros((3, 4), np.uint8), "images.npy"),
            "of five axes": (np.zeros((3, 1, 4, 4, 3), np.uint8), "images.npy"),
            "of no rows": (np.zeros((0, 4, 4, 3), np.uint8), "0 images"),
            "of no height": (np.zeros((3, 0, 4, 3), np.uint8), "shape"),
            "of five channels": (np.zeros((3, 7, 8, 5), np.uint8), "channels"),
            "of text": (np.full((3, 4, 4, 3), "a"), "images.npy"),
            "of complex numbers": (np.zeros((3, 4, 4, 3), complex), "images.npy"),
            "of dates": (np.zeros((3, 4, 4, 3), "M8[s]"), "images.npy"),
            "of large integers": (np.full((3, 4, 4, 3), 70_000, np.int32), "images.npy"),
            "of infinity": (np.full((3, 4, 4, 3), np.inf), "infinity"),
        }.items()
    },
    **{
        f"labels {about}": (arrays(np.arange(3 * 48, dtype=np.uint8).reshape(3, 4, 4, 3), value), 1, words)
        for about, (value, words) in {
            "of no axis": (np.int64(3), "attrs.npy"),
            "of three axes": (np.zeros((3, 2, 1), int), "attrs.npy"),
            "of no columns": (np.zeros((3, 0), int), "attrs.npy"),
            "of text": (np.full((3, 2), "a"), "attrs.npy"),
            "of NaN": (np.full((3, 2), np.nan), "attrs.npy"),
            "of halves": (np.full((3, 2), 0.5), "attrs.npy"),
            "below zero": (np.full((3, 2), -2), "attrs.npy"),
            "of a billion": (np.full((3, 2), 10**9), "attrs.npy"),
            "of too few rows": (np.zeros((2, 2), int), "3 images, but 2"),
            "of objects": (np.array([[{}, 1]] * 3), "attrs.npy"),
        }.items()
    },
    "arrays that are archives": (_archive, 1, "images.npy"),
    "arrays with a huge header": (_header, 1, "images.npy"),
}
