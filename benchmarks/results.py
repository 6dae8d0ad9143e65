"""Write docs/results.md, and the tables in README.md and docs/when-it-works.md, from the records; nothing is run.

python benchmarks/results.py
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from records import RECORDS
from tables.pages import BLOCKS, results
from tables.recorded import Recorded

ROOT = RECORDS.parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "when-it-works.md")


def main() -> int:
    for path, text in pages().items():
        path.write_text(text)
    return 0


def pages() -> dict[Path, str]:
    """Every page that takes something from the records, as it should be."""
    records = Recorded(RECORDS)
    written = {path: _filled(path.read_text(), records) for path in PAGES}
    return {ROOT / "docs" / "results.md": results(records), **written}


def _filled(text: str, records: Recorded) -> str:
    for name, block in BLOCKS.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if marked.search(text):
            table = "\n".join(block(records)).strip()
            text = marked.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    return text


if __name__ == "__main__":
    sys.exit(main())
