"""Tables that cannot be used."""

import gzip
import shutil

from .case import all_of, flags, write

CASES = {
    "validation of one class": (
        lambda case: case.table(lambda rows: [{**r, "label": "1"} if r["split"] == "val" else r for r in rows]),
        1,
        "the validation split has samples of class 1 alone",
    ),
    "label column for the bias": (flags("--bias-column", "label"), 1, "is given for another purpose"),
    "one infinite label": (lambda case: case.set("label", "inf", 3), 1, "line 5 ('inf')"),
    "no data": (lambda case: shutil.rmtree(case.data), 1, "no folder or file at"),
    "empty folder": (lambda case: (shutil.rmtree(case.data), case.data.mkdir()), 1, "expected a metadata.csv"),
    "empty table": (write("data/metadata.csv", ""), 1, "no column file"),
    "header only": (lambda case: case.table(lambda rows: rows.clear()), 1, "has no rows"),
    "binary table": (write("data/metadata.csv", b"\x00\x81\x00\x01"), 1, "cannot read"),
    "unclosed quote": (write("data/metadata.csv", 'file,label,bias,split\n"0.png,0,0,train\n'), 1, "cannot read"),
    "ragged row": (write("data/metadata.csv", "file,label,bias,split\n0.png,0,0\n"), 1, "another number of fields"),
    "no label column": (lambda case: case.rename("label", "species"), 1, "no column label"),
    "no file column": (lambda case: case.rename("file", "where"), 1, "no column file"),
    "no bias column": (lambda case: case.rename("bias", "colour"), 1, "no bias labels"),
    "unknown column named": (flags("--bias-column", "place"), 1, "no column 'place'"),
    "one column for two purposes": (
        flags("--bias-column", "label", "--label-column", "label"),
        1,
        "more than one purpose",
    ),
    "label without a value": (lambda case: case.set("label", "", 3), 1, "line 5"),
    "label below zero": (lambda case: case.set("label", "-2"), 1, "neither a name nor an integer"),
    "label beyond the classes": (lambda case: case.set("label", "7"), 1, "the model has 3 classes"),
    "label name among numbers": (lambda case: case.set("label", "cat"), 1, "a name among numbers"),
    "bias without a value": (lambda case: case.set("bias", "", 1), 1, "without a value in 'bias': line 3"),
    "bias of names and numbers": (lambda case: case.set("bias", "red"), 1, "a name among numbers"),
    "unknown split": (lambda case: case.set("split", "fold 1"), 1, "unknown 'split'"),
    "no training split": (
        lambda case: case.table(lambda rows: [{**r, "split": "val"} for r in rows]),
        1,
        "training split",
    ),
    "nothing conflicting": (
        lambda case: case.table(lambda rows: [{**r, "bias": r["label"]} for r in rows]),
        1,
        "no bias-conflicting",
    ),
    "file listed twice": (lambda case: case.set("file", "1.png"), 1, "another row lists"),
    "file in two splits": (lambda case: case.set("file", "2.png"), 1, "more than one split"),
    # values of labels
    **{
        f"label {about}": (lambda case, value=value: case.set("label", value), 1, words)
        for about, (value, words) in {
            "of one and a half": ("1.5", "label"),
            "that is NaN": ("nan", "label"),
            "that is infinite": ("inf", "label"),
            "of a billion": ("1000000000", "label"),
            "of five thousand digits": ("9" * 5000, "label"),
            "in scientific notation": ("1e3", "label"),
            "in hexadecimal": ("0x1", "label"),
            "with a NUL": ("1\0", "label"),
            "of spaces": ("   ", "label"),
            "that is a list": ("[1]", "label"),
            "that is a dash": ("-", "label"),
            "with a unit": ("1 px", "label"),
        }.items()
    },
    **{
        f"bias {about}": (lambda case, value=value: case.set("bias", value), 1, words)
        for about, (value, words) in {
            "of one and a half": ("1.5", "bias"),
            "that is NaN": ("nan", "bias"),
            "that is infinite": ("inf", "bias"),
            "of five thousand digits": ("9" * 5000, "bias"),
            "of spaces": ("  ", "bias"),
        }.items()
    },
    **{
        f"split called {value[:9]!r}": (lambda case, value=value: case.set("split", value), 1, "split")
        for value in ("fold", "3", "-1", "1.5", "yes", "train/val", "trian", "x" * 3000, "None", "\u0663")
    },
    # files of tables
    **{
        f"table {about}": (write("data/metadata.csv", content), 1, words)
        for about, (content, words) in {
            "of one column": ("file\n0.png\n", "label"),
            "with a name twice": ("file,label,label,bias,split\n0.png,0,0,0,train\n", "label"),
            "without names": ("0.png,0,0,train\n1.png,1,1,val\n", "column"),
            "of spaces": ("   \n  \n", "column"),
            "of NULs": (b"\0" * 300, "metadata.csv"),
            "cut within a character": ("file,label,bias,split\n0.png,é".encode()[:-1], "metadata.csv"),
            "in half a UTF-16": ("file,label,bias\n0.png,0,0\n".encode("utf-16")[:-3], "metadata.csv"),
            "that is a page": ("<html><body>Not found</body></html>", "column"),
            "that is JSON": ('{"file": "0.png", "label": 0}', "column"),
            "that is a spreadsheet": (b"PK\x03\x04" + bytes(range(256)), "metadata.csv"),
            "that is compressed": (gzip.compress(b"file,label\n", mtime=0), "metadata.csv"),
            "with a long row": ("file,label,bias,split\n0.png,0,0,train,7,8\n", "fields"),
            "of one class": ("file,label,bias,split\n0.png,0,0,train\n1.png,0,1,val\n", "class"),
            "of one row": ("file,label,bias,split\n0.png,0,0,train\n", "nothing to learn"),
            "with a pointer to another": (
                "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 3\n",
                "column",
            ),
        }.items()
    },
    # names of files
    **{
        f"file {about}": (lambda case, value=value: case.set("file", value), 1, words)
        for about, (value, words) in {
            "without a name": ("", "file"),
            "that is a folder": (".", ". is no file"),
            "above the folder": ("../../x.png", "missing"),
            "with a NUL": ("a\0.png", "unreadable"),
            "with a newline": ("a\nb.png", "missing"),
            "on the network": ("https://x.org/99.png", "missing"),
            "on a drive": ("C:\\data\\99.png", "missing"),
            "of five thousand characters": ("x" * 5000 + ".png", "unreadable"),
            "with a control character": ("\x1b[31m.png", "missing"),
            "with markup": ("[/red].png", "missing"),
        }.items()
    },
    # names of columns
    **{
        f"{option} that is not there": (flags(f"--{option}", "nowhere"), 1, "no column 'nowhere'")
        for option in ("label-column", "split-column", "file-column")
    },
    "bias column twice": (flags("--bias-column", "bias", "--bias-column", "bias"), 1, "bias"),
    "another folder that is empty": (
        all_of(
            lambda case: (case.root / "empty").mkdir(),
            lambda case: case.flags.extend(["--image-folder", case.root / "empty"]),
        ),
        1,
        "missing",
    ),
}
