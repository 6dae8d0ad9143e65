"""The package's own rules: rooms stand in a line, no two files import each other, help does not wait for torch."""

import ast
import graphlib
import itertools
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from paths import ROOT

import bise_prune

PACKAGE = Path(bise_prune.__file__).parent
TOP = {"__init__", "__main__", "errors", "config", "digests", "files", "distributed", "version"}


def _files():
    """Path inside the package without its ending, as parts -> file."""
    return {path.relative_to(PACKAGE).with_suffix("").parts: path for path in sorted(PACKAGE.rglob("*.py"))}


FILES = _files()


def _file_of(parts):
    """The file that ``bise_prune.a.b`` is, for ``("a", "b")``."""
    return next((found for found in (parts, (*parts, "__init__")) if found in FILES), None)


def _imports(parts):
    """Line and file of every import of the package's own: in functions and for type checkers as well."""
    for node in ast.walk(ast.parse(FILES[parts].read_text())):
        if isinstance(node, ast.Import):
            targets = [(alias.name.split("."), None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ["bise_prune", *parts[: len(parts) - node.level]] if node.level else []
            base += node.module.split(".") if node.module else []
            targets = [(base, alias.name) for alias in node.names]
        else:
            continue
        for (package, *module), name in targets:
            if package == "bise_prune":
                found = (_file_of((*module, name)) if name else None) or _file_of(tuple(module))
                assert found, f"{_shown(parts, node.lineno)} imports {'.'.join(module)}, which is not there"
                yield node.lineno, found


def _shown(parts, line):
    return f"{FILES[parts].relative_to(PACKAGE.parent)}:{line}"


def _room(parts):
    return parts[0]


IMPORTS = {parts: list(_imports(parts)) for parts in FILES}


def _without_cycles(graph, lines):
    """The nodes in an order in which each comes after what it imports, or an error that names the lines of a cycle."""
    try:
        return list(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        cycle = error.args[1]  # each imports the one before
        steps = [f"{one} imports {other} ({', '.join(lines[one, other])})" for other, one in itertools.pairwise(cycle)]
        pytest.fail("a cycle: " + "; ".join(steps))


def _line_of_rooms():
    graph, lines = {room: set() for room in sorted({_room(parts) for parts in FILES})}, defaultdict(list)
    for parts, imports in IMPORTS.items():
        for line, target in imports:
            one, other = _room(parts), _room(target)
            if one not in (other, "__init__"):
                graph[one].add(other)
                lines[one, other].append(_shown(parts, line))
    return _without_cycles(graph, lines), lines


def test_rooms_stand_in_a_line():
    order, _ = _line_of_rooms()
    print(" -> ".join(order))  # shown by pytest -s
    assert {"tracing", "gates", "mask_search", "app"} <= set(order)


def test_no_two_files_import_each_other():
    graph, lines = {}, defaultdict(list)
    for parts, imports in IMPORTS.items():
        graph["/".join(parts)] = {"/".join(target) for _, target in imports}
        for line, target in imports:
            lines["/".join(parts), "/".join(target)].append(_shown(parts, line))
    _without_cycles(graph, lines)


def test_nobody_comes_in_by_the_front_door_from_inside():
    back = [
        _shown(parts, line)
        for parts, imports in IMPORTS.items()
        for line, target in imports
        if target == ("__init__",) and parts != ("__init__",)
    ]
    assert not back, f"imports of bise_prune itself: {back}"


def test_the_top_of_the_package_is_small():
    here = {path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"}
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert here == {f"{name}.py" for name in TOP} | {"py.typed"} | folders
    assert "former_names" in folders


def test_torch_pruning_is_used_in_its_room_only():
    users = [
        f"{_shown(parts, node.lineno)}"
        for parts, path in FILES.items()
        if _room(parts) != "torch_pruning"
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        )
        if name.split(".")[0] == "torch_pruning"
    ]  # fmt: skip
    assert not users, f"torch_pruning is imported outside its room: {users}"


def test_test_files_import_nothing_from_each_other():
    tests = ROOT / "tests"
    for path in tests.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found = [name for name in names if name.split(".")[-1].startswith(("test_", "conftest"))]
            assert not found, f"{path.relative_to(ROOT)}:{node.lineno} imports {found[0]}; share it in cases.py"


def test_the_page_about_the_package_has_the_rooms_in_their_order():
    page = ROOT / "docs" / "pages" / "how-it-works.md"
    if not page.is_file():
        pytest.skip("docs/pages/how-it-works.md is not written yet")
    text = page.read_text()
    order, lines = _line_of_rooms()
    places = {}
    for room in order:
        if (PACKAGE / room).is_dir() and room != "former_names":
            found = re.search(rf"^\W*`(?:bise_prune[./])?{room}/?`", text, re.MULTILINE)
            assert found, f"{page.name} does not name the room `{room}`"
            places[room] = found.start()
    for (one, other), where in lines.items():
        if {one, other} <= set(places):
            assert places[other] < places[one], f"{page.name} has `{one}` before `{other}`, but {where[0]} imports it"


def test_help_does_not_import_torch():
    code = (
        "import sys; from bise_prune.app import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'numpy', 'rich', 'onnx'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--target-sparsity" in done.stdout


def test_public_names_resolve():
    for name in bise_prune.__all__:
        assert getattr(bise_prune, name) is not None
    assert callable(bise_prune.search) and callable(bise_prune.verify) and callable(bise_prune.measure)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bise_prune.nothing
