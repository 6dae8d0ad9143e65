"""README.md and the pages of docs/: figures come from records, links resolve, examples run, nothing is left out."""

import contextlib
import doctest
import io
import itertools
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

import bise_prune

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs" / "pages").rglob("*.md"))
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "docs")]

import hooks  # noqa: E402
import results  # noqa: E402
from tables.pages import WHOLE  # noqa: E402

SITE = "https://github.com/bise-prune/bise-prune/"
WRITTEN = results.pages()
# Pages that are nothing but written tables; dated notes, whose trials have no records, say what was true then.
WHOLE_PAGES = {ROOT / "docs" / "pages" / "evidence" / name for name in WHOLE}
WHOLE_PAGES |= {results.architectures.PAGE, results.variants.PAGE, results.removal.PAGE, results.rungs.PAGE}
PROSE = [path for path in [README, *PAGES] if path not in WHOLE_PAGES and path.parent.name != "decisions"]
# Decimals that are no results: versions of Python and Triton, and shares of aligned samples in the experiments.
NO_RESULTS = {"3.11", "2.51", ".95", ".98", ".99", ".999"}
PAIR = r"\d+(?:\.\d+)? ± \d+(?:\.\d+)?"
DECIMAL = r"(?<![\w.])\d*\.\d+(?![\w.])"


def name_of(path):
    return str(path.relative_to(ROOT))


def without_code(text):
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def links(text):
    """The targets of all links and pictures."""
    return re.findall(r"\]\(\s*([^)\s]+)\s*\)", without_code(text))


def in_tree(target, page):
    """What a link means in this tree: a path, or None if it leads elsewhere."""
    if target.startswith(SITE):
        return ROOT / re.sub(r"^(blob|tree)/main/", "", target.removeprefix(SITE))
    return None if "://" in target else page.parent / target.partition("#")[0]


# -- figures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", WRITTEN, ids=name_of)
def test_written_pages_are_up_to_date(path):
    assert path.read_text() == WRITTEN[path], "run: python benchmarks/results.py"


def figures(value):
    """Every number of a record, those of its texts included."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return list(itertools.chain.from_iterable(map(figures, value)))
    if isinstance(value, str):
        return [float(number) for number in re.findall(DECIMAL, value)]
    return [float(value)] if isinstance(value, (int, float)) else []


def linked_figures(text, page):
    """Every number of the records that a text links, as pages may print it."""
    paths = [path for target in links(text) if (path := in_tree(target, page)) and "records" in path.parts]
    files = itertools.chain.from_iterable([path] if path.suffix == ".json" else path.rglob("*.json") for path in paths)
    found = [number for path in files for number in figures(json.loads(path.read_text()))]
    return {f"{value * scale:.{digits}f}" for value in found for scale in (1, 100, 1e-6) for digits in (0, 1, 2)}


@pytest.mark.parametrize("path", PROSE, ids=name_of)
def test_decimals_are_in_the_records_that_stand_beside_them(path):
    """A decimal, or a mean with its spread, is in a record that its paragraph or its section links."""
    text = re.sub(
        r"<!-- [\w ]+ -->\n.*?<!-- end -->|^```.*?^```$", "", path.read_text(), flags=re.DOTALL | re.MULTILINE
    )
    for section in re.split(r"\n(?=#+ )", text):
        for block in re.split(r"\n\n|\n(?=[-|] |\d\. )", section):
            words = re.sub(r"\]\([^)]*\)", "]", without_code(block))
            pairs = " ".join(re.findall(PAIR, words))
            decimals = set(re.findall(DECIMAL, words)) | set(re.findall(r"\d+(?:\.\d+)?", pairs))
            if decimals := decimals - NO_RESULTS:
                known = linked_figures(block, path) or linked_figures(section, path)
                assert not decimals - known - {number.lstrip("0") for number in known}, block


# -- form --------------------------------------------------------------------------------------------


def test_the_readme_is_one_page():
    assert len(README.read_bytes()) <= 8192


def test_the_readme_has_the_two_commands():
    lines = [line for line in README.read_text().splitlines() if line.startswith("python3 -m venv .venv")]
    assert [line.split("/")[-1] for line in lines] == ["bise-prune --demo", "pytest -n auto"]


@pytest.mark.parametrize("path", [README, *PAGES], ids=name_of)
def test_links_lead_somewhere(path):
    for target in links(path.read_text()):
        place = in_tree(target, path)
        assert place is None or place.exists(), target


def test_every_page_is_in_the_navigation():
    def leaves(value):
        if isinstance(value, str):
            return [value]
        return list(itertools.chain.from_iterable(map(leaves, value.values() if isinstance(value, dict) else value)))

    found = leaves(yaml.safe_load((ROOT / "docs" / "mkdocs.yml").read_text())["nav"])
    assert sorted(found) == sorted(str(path.relative_to(ROOT / "docs" / "pages")) for path in PAGES)


# -- nothing is left out -----------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [[], ["compare"]], ids=["run", "compare"])
def test_every_option_is_on_the_page_of_the_command_line(arguments):
    from bise_prune.app.cli import main

    page = hooks.on_page_markdown((ROOT / "docs" / "pages" / "command-line.md").read_text())
    with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
        main([*arguments, "--help"])
    flags = set(re.findall(r"^ +(?:-h, )?(--[a-z-]+)", text.getvalue(), flags=re.MULTILINE))
    assert {"--output", "--json"} <= flags
    assert not [flag for flag in flags if f"`{flag}" not in page]


def test_every_public_name_is_in_the_reference():
    reference = "\n".join(path.read_text() for path in PAGES if path.parent.name == "reference")
    documented = set(re.findall(r"^::: bise_prune\.(\w+)$", reference, flags=re.MULTILINE))
    assert set(bise_prune.__all__) - {"__version__"} <= documented


EXAMPLES = [path for path in PAGES if path.parent.name == "reference" and ">>>" in path.read_text()]


@pytest.mark.parametrize("path", EXAMPLES, ids=name_of)
def test_examples_of_the_reference_run(path):
    example = doctest.DocTestParser().get_doctest(path.read_text(), {}, path.name, str(path), 0)
    output = io.StringIO()
    assert not doctest.DocTestRunner(verbose=False).run(example, out=output.write).failed, output.getvalue()


def test_the_notebook_was_executed_and_names_no_machine():
    path = ROOT / "examples" / "demo.ipynb"
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert path.stat().st_size < 500_000 and not re.search(r'[ "(](/home|/root|/tmp|/work|/usr)', path.read_text())
