"""The package's own rules: imports go one way, and the command line starts without torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bise_prune

PACKAGE = Path(bise_prune.__file__).parent

# What a module may import from: strictly lower ranks, or its own sub-package.
RANKS = {
    "version": 0, "errors": 0, "config": 1, "files": 1, "distributed": 1,
    "artifacts": 2, "checkpoint": 2, "models": 2, "data": 2, "subgroups": 2, "tracing": 2,
    "settings": 2, "loggers": 2, "triton": 2,
    "evaluation": 3, "graph": 3, "verification": 3, "training": 3, "measurement": 3, "channels": 3, "normalisation": 3,
    "gates": 4, "rewiring": 4, "identification": 4, "fairness": 4,
    "mask_search": 5, "importance": 5, "criteria": 5,
    "pruning": 6, "finetuning": 6, "probe": 6, "ffw": 6,
    "export": 7, "slim": 7, "sweep": 7,
    "report": 8, "session": 8, "formats": 8,
    "findings": 9, "preview": 9, "pages": 9,
    "delivery": 10,
    "pipeline": 11,
    "demo": 12,
    "cli": 13,
    "__main__": 14,
}  # fmt: skip


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> list[tuple[int, str]]:
    depth = len(path.relative_to(PACKAGE).parts)
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            inside = node.level < depth
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.lineno, _room(path) if inside else name.split(".")[0]) for name in names]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_to_lower_ranks(path):
    if path == PACKAGE / "__init__.py":
        return  # the front door names every room
    room = _room(path)
    for line, target in _imports(path):
        assert target == room or RANKS[target] < RANKS[room], f"{path.name}:{line} imports {target} from above"


def test_every_room_has_a_rank():
    assert {_room(path) for path in PACKAGE.rglob("*.py")} - {"__init__"} == set(RANKS)


def test_torch_pruning_is_used_in_two_files_only():
    users = {_room(path) for path in PACKAGE.rglob("*.py") if "import torch_pruning" in path.read_text()}
    assert users == {"graph", "importance"}


def test_help_does_not_import_torch():
    code = (
        "import sys; from bise_prune import cli\n"
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
