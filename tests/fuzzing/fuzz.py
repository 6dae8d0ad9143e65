"""Fuzz one reader by the coverage of the project's code: ``python tests/fuzzing/fuzz.py table --seconds 1200``.

It needs ``pip install atheris``. What it finds goes to the folder ``found`` beside this file, where the tests read it.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import atheris

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[0]), str(HERE.parents[1])]
with atheris.instrument_imports(include=["bise_prune"]):
    from fuzzing import readers, seeds

SLOW = 20  # seconds that one content may take


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=readers.READERS)
    parser.add_argument("--seconds", type=int, default=600)
    given = parser.parse_args()
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm"))
    corpus, found = scratch / "corpus", seeds.FOUND / given.reader
    corpus.mkdir()
    found.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(seeds.contents(given.reader).values()):
        (corpus / str(number)).write_bytes(content)

    def one(content: bytes) -> None:
        readers.read(given.reader, scratch, content)

    options = [f"-max_total_time={given.seconds}", f"-timeout={SLOW}", "-rss_limit_mb=4000", "-max_len=8192"]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={found}/", str(corpus)], one)
    try:
        atheris.Fuzz()  # ends the process
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
