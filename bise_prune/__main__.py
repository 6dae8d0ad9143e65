"""Run the command line: ``python -m bise_prune`` does the same as the command ``bise-prune``."""

from .app.cli import command

command()
