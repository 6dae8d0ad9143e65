"""Code that the tools share: their arguments, and the models that these name."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bise_prune.checkpoint import load_checkpoint
from bise_prune.checkpoint.networks import example_input, model_of
from bise_prune.errors import BiseError, ModelError, printable
from bise_prune.models import is_factory
from bise_prune.tracing import logits_of


@dataclass(frozen=True)
class LoadedModel:
    """A model to report on.

    Attributes:
        name: name of the model in tables.
        model: the network.
        example: an input of its shape.
    """

    name: str
    model: nn.Module
    example: Tensor


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser with the arguments that every tool has."""
    result = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT", help="dense or slim weights")
    result.add_argument("--arch", help="architecture of checkpoints that do not tell it")
    result.add_argument("--trust-pickle", action="store_true", help="unpickle whatever is in the checkpoints")
    result.add_argument("--shape", type=_shape, help="one sample's shape, e.g. 3,224,224 (default: the checkpoint's)")
    result.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return result


def load(arguments: argparse.Namespace) -> list[LoadedModel]:
    """Load the models that a tool's arguments name, and check that they take their inputs.

    Raises:
        ModelError: a model does not take inputs of its shape.
    """
    paths, arch = arguments.checkpoints, arguments.arch
    loaded = []
    for path, name in zip(paths, short_names(paths), strict=True):
        checkpoint = load_checkpoint(path, arguments.trust_pickle)
        is_told = checkpoint.arch is not None and not is_factory(checkpoint.arch)  # a user's code is named to be run
        model, checkpoint = model_of(checkpoint, path, None if is_told else arch)
        example = example_input(checkpoint, arguments.shape)
        try:
            with torch.no_grad():
                logits_of(model(example))
        except Exception as error:  # the network's own code may raise anything
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(
                f"{path} does not take inputs of {tuple(example.shape)}; pass --shape ({reason})"
            ) from error
        loaded.append(LoadedModel(name, model, example))
    return loaded


def short_names(paths: Sequence[Path]) -> list[str]:
    """File names without suffix; with the name of the folder if they are not unique."""
    stems = [path.stem for path in paths]
    return [path.stem if stems.count(path.stem) == 1 else f"{path.parent.name}/{path.stem}" for path in paths]


def guarded(main: Callable[[], int]) -> int:
    """Run a tool, print an error of the user as one line on stderr, and return the exit code."""
    try:
        return main()
    except BiseError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return error.exit_code


def _shape(text: str) -> tuple[int, ...]:
    """The shape that a text such as 3,224,224 names."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape such as 3,224,224") from error
