"""What mkdocs changes in pages while it builds them.

The options of the command line are written from the parser itself, and docstrings lose the roles in front of names
(``:func:`bise_prune.prune` ``).
"""

from __future__ import annotations

import argparse
import re
from typing import Any
from unittest import mock

MARK = "<!-- options -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page, with the tables of all options in the place of the mark."""
    return markdown.replace(MARK, options()) if MARK in markdown else markdown


def on_page_content(html: str, **_: Any) -> str:
    """The page without roles in front of code."""
    return re.sub(r":(?:func|class|meth|mod|attr|data|exc):(?=<code)", "", html)


def options() -> str:
    """Every option of both commands as tables, one for each group."""
    lines: list[str] = []
    for arguments in ([], ["compare"]):
        parser = parser_of(arguments)
        lines += [f"## `{' '.join(['bise-prune', *arguments])}`", "", (parser.description or "").strip(), ""]
        lines += ["```", " ".join(parser.format_usage().split()).removeprefix("usage: "), "```", ""]
        for group in parser._action_groups:
            if group._group_actions:
                title = _TITLES.get(group.title or "", group.title or "")
                lines += [f"### {title[0].upper()}{title[1:]}", "", "| option | meaning |", "| --- | --- |"]
                lines += [f"| {_names(action)} | {_meaning(action)} |" for action in group._group_actions]
                lines.append("")
        examples = (parser.epilog or "").partition("examples:\n")[2]
        if examples:
            lines += ["### Examples", "", "```", *(line.strip() for line in examples.strip().splitlines()), "```", ""]
    return "\n".join(lines)


_TITLES = {"positional arguments": "arguments", "options": "general"}


def parser_of(arguments: list[str]) -> argparse.ArgumentParser:
    """The parser whose help the command prints."""
    from bise_prune.app.cli import main

    found: list[argparse.ArgumentParser] = []
    with mock.patch.object(argparse.ArgumentParser, "print_help", lambda parser, file=None: found.append(parser)):
        try:
            main([*arguments, "--help"])
        except SystemExit:
            pass
    return found[0]


def _names(action: argparse.Action) -> str:
    values = ""
    if action.nargs != 0 and action.option_strings:
        values = action.metavar or "{" + ",".join(map(str, action.choices or ())) + "}"
    elif not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    names = [name for name in action.option_strings if not re.match("-[a-z]", name)]
    return ", ".join(f"`{name} {values}`".replace(" `", "`").replace("|", "\\|") for name in names)


def _meaning(action: argparse.Action) -> str:
    return " ".join((action.help or "").split()).replace("%%", "%").replace("|", "\\|").replace("<", "&lt;")
