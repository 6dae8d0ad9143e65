"""Mistakes by kind, each as what spoils a good project, the exit code, and words of the line that it ends in."""

from . import arrays, checkpoints, images, networks, options, results, settings, tables

KINDS = (checkpoints, networks, tables, images, arrays, settings, options, results)
CASES = {name: case for kind in KINDS for name, case in kind.CASES.items()}
assert len(CASES) == sum(len(kind.CASES) for kind in KINDS)
