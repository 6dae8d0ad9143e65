"""This version beside a former one: structure of the code, and time, memory and results of the same programs.

    git worktree add --detach ../former v0.1.0 && python benchmarks/releases.py --former ../former

Structure: counted in the syntax trees of both packages. Programs: two searches, a removal and the help, each a
process of its own on one thread, former and present version by turns; CPU seconds of the whole process, its peak memory
(not told below that of the process that starts it), and a digest of its results, which must be the same on both sides.
Ratios are present / former, of each pair.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from records import RECORDS, base_record, summary

from bise_prune.files import write_json

HERE = Path(__file__).resolve().parents[1]

_COMMON = """
import hashlib, torch, bise_prune as bp
from bise_prune.data import BatchLoader, BiasedDataset, load_data
from bise_prune.models import build_model
torch.set_num_threads(1)
def trained(model, data, epochs=2):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    for _ in range(epochs):
        for batch in BatchLoader(data, 100, shuffle=True):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(batch.input), batch.target).backward()
            optimizer.step()
    return model.eval()
def show(tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    print(digest.hexdigest())
torch.manual_seed(0)
"""
PROGRAMS = {
    "search, demo": _COMMON
    + """
data = load_data("digits,rho=0.95,seed=0")
arguments = {"kernel_size": 3, "strides": [2, 2, 2, 1], "last_activation": "relu"}
model = trained(build_model("simple_convnet", 10, arguments), data.train)
config = bp.SearchConfig(anneal_every=2, early_stop=False)
found = bp.search(model, BatchLoader(data.train, 100, shuffle=True), config, BatchLoader(data.val, 256))
show(found.masks.logits.values())
""",
    "search, MLP": _COMMON
    + """
target = torch.randint(10, (6000,))
bias = torch.where(torch.rand(6000) < 0.9, target, torch.randint(10, (6000,)))
inputs = torch.randn(6000, 3, 28, 28)
for start, labels, scale in ((0, bias, 3), (10, target, 1)):
    inputs.flatten(1)[:, start : start + 10] += scale * torch.nn.functional.one_hot(labels, 10)
data = BiasedDataset(inputs, target, bias[:, None])
model = trained(build_model("mlp", 10), data)
config = bp.SearchConfig(anneal_every=5, early_stop=False)
show(bp.search(model, BatchLoader(data, 256, shuffle=True), config).masks.logits.values())
""",
    "removal, ResNet-50": _COMMON
    + """
import torchvision
model, example = torchvision.models.resnet50(num_classes=10).eval(), torch.randn(2, 3, 64, 64)
logits = {site.name: torch.rand(site.num_channels) - 0.5 for site in bp.gate_sites(model, example, "paper")}
for joins in ("expand", "intersection"):
    show(bp.prune(model, bp.MaskSet(logits), example, joins=joins).model.state_dict().values())
""",
    "--help": """
import runpy, sys
sys.argv = ["bise-prune", "--help"]
runpy.run_module("bise_prune", run_name="__main__")
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--former", type=Path, required=True, help="a checkout of the former version")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RECORDS / "releases.json")
    arguments = parser.parse_args()
    trees = {"former": arguments.former.resolve(), "present": HERE}
    record: dict[str, Any] = base_record([0], __doc__ or "", "cpu")
    record["former_commit"] = subprocess.run(
        ["git", "-C", str(arguments.former), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    record["structure"] = {name: structure(tree) for name, tree in trees.items()}
    record["programs"] = {name: compare(trees, name, arguments.pairs) for name in PROGRAMS}
    write_json(arguments.output, record)
    print(json.dumps(record["structure"]))


def structure(tree: Path) -> dict[str, Any]:
    """Files and functions of a package; the length of a function with and without its docstring."""
    package, functions = tree / "bise_prune", []
    lines = {path: len(path.read_text().splitlines()) for path in package.rglob("*.py")}
    for path in lines:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = node.body[1 if ast.get_docstring(node) and len(node.body) > 1 else 0]
                functions.append((node.end_lineno - node.lineno + 1, node.end_lineno - first.lineno + 1))
    return {
        "files": len(lines),
        "files_at_the_top": len(list(package.glob("*.py"))),
        "largest_files": sorted(lines.values(), reverse=True)[:3],
        "longest_function": max(length for length, _ in functions),
        "longest_function_without_docstring": max(length for _, length in functions),
        "readme_bytes": (tree / "README.md").stat().st_size,
    }


def compare(trees: dict[str, Path], name: str, pairs: int) -> dict[str, Any]:
    """CPU seconds and peak memory of a program in both versions, by turns after one run of each that does not count."""
    runs: dict[str, list[tuple[float, int, str]]] = {version: [] for version in trees}
    for _ in range(pairs + 1):
        for version, tree in trees.items():
            runs[version].append(run(tree, PROGRAMS[name]))
    found: dict[str, Any] = {}
    if name != "--help":  # whose words may change
        found["results_equal"] = len({told for each in runs.values() for *_, told in each}) == 1
    for version, each in runs.items():
        found[version] = {
            "cpu_s": summary([seconds for seconds, *_ in each[1:]]),
            "peak_memory_bytes": summary([memory for _, memory, _ in each[1:]]),
        }
    ratios = [now / then for then, now in zip(*(found[version]["cpu_s"]["values"] for version in trees), strict=True)]
    found["ratio"] = summary(ratios)
    print(f"{name}: ratio {found['ratio']['median']:.2f}, results equal: {found.get('results_equal')}", flush=True)
    return found


def run(tree: Path, program: str) -> tuple[float, int, str]:
    """CPU seconds, peak memory in bytes and output of a program that imports the package of a tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", program], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    told = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{program.splitlines()[-1]} failed in {tree}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss * 1024, told


if __name__ == "__main__":
    main()
