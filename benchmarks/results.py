"""Write the pages of docs/pages that show results, and the table in README.md, from the records; nothing is run.

    python benchmarks/results.py

Written as a whole: the pages of tables/pages.py, and those of architectures.py, attention.py, contest.py, defaults.py,
ladder.py, other_networks.py, removal.py, rungs.py, targets.py, unlabelled.py and variants.py below docs/pages/evidence.
Filled in between "<!-- NAME -->" and "<!-- end -->": README.md and whatever page has such marks.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import architectures
import attention
import contest
import defaults
import ladder
import other_networks
import removal
import rungs
import targets
import unlabelled
import variants
from records import RECORDS
from tables.pages import BLOCKS, WHOLE
from tables.recorded import Recorded

ROOT = RECORDS.parents[1]
PAGES = ROOT / "docs" / "pages"


def main() -> int:
    for path, text in pages().items():
        path.write_text(text)
    return 0


def pages() -> dict[Path, str]:
    """Every page that takes something from the records, as it should be."""
    records = Recorded(RECORDS)
    written = {PAGES / "evidence" / name: page(records) for name, page in WHOLE.items()}
    written[architectures.PAGE] = architectures.markdown(json.loads((RECORDS / "architectures.json").read_text()))
    written[variants.PAGE] = variants.markdown(json.loads((RECORDS / "variants.json").read_text()))
    written[removal.PAGE] = removal.markdown()
    written[other_networks.PAGE] = other_networks.markdown()
    written[attention.PAGE] = attention.markdown(json.loads((RECORDS / "attention.json").read_text()))
    written[contest.PAGE] = contest.markdown(json.loads((RECORDS / "contest.json").read_text()))
    written[ladder.PAGE] = ladder.markdown(
        *(json.loads((RECORDS / f"{name}.json").read_text()) for name in ("ladder", "ladder_alone"))
    )
    written[rungs.PAGE] = rungs.markdown(records)
    written[unlabelled.PAGE] = unlabelled.markdown(json.loads((RECORDS / "unlabelled.json").read_text()))
    written[defaults.PAGE] = defaults.markdown(
        *(json.loads((RECORDS / f"{name}.json").read_text()) for name in defaults.NAMES)
    )
    written[targets.PAGE] = targets.markdown(json.loads((RECORDS / "targets.json").read_text()))
    for path in (ROOT / "README.md", *sorted(PAGES.rglob("*.md"))):
        if path not in written and "<!-- end -->" in path.read_text():
            written[path] = _filled(path.read_text(), records)
    return written


def _filled(text: str, records: Recorded) -> str:
    for name, block in {**BLOCKS, "rules": rungs.overview}.items():
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if marked.search(text):
            table = "\n".join(block(records)).strip()
            text = marked.sub(lambda found, table=table: f"{found[1]}{table}\n{found[2]}", text)
    return text


if __name__ == "__main__":
    sys.exit(main())
