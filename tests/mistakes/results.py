"""Places where results cannot be written."""

import pickle

from .case import all_of, flags, write

CASES = {
    "results are there": (write("out/report.json", "{}"), 2, "holds results already"),
    "output is a file": (write("out", "x"), 2, "is a file; choose a folder"),
    "output is the data": (lambda case: case.flags.extend(["--output", case.data]), 2, "output"),
    "output is below a file": (lambda case: case.flags.extend(["--output", case.net / "out"]), 2, "net.pt"),
    "output has a long name": (flags("--output", "x" * 300), 1, "too long"),
    "own settings are there": (write("out/config.toml", "seed = 1"), 2, "config.toml"),
    "model repository is a file": (all_of(write("models", "x"), flags("--triton", "models")), 2, "models"),
    **{
        f"stopped search that is {about}": (write("out/search-state.pt", content), 1, "delete it")
        for about, content in {
            "empty": b"",
            "text": b"hello",
            "a list": pickle.dumps([1]),
            "zeros": bytes(5000),
            "a pickle": b"\x80\x02}q\x00.",
        }.items()
    },
}
