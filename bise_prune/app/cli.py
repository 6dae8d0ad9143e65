"""The command line: it turns arguments into settings, runs the pipeline, prints the results and returns an exit code.

Only :mod:`.display` prints as well, the progress on stderr.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NoReturn

from ..errors import BiseError, ConfigError, DataError, printable
from ..version import __version__
from .display import Display, show
from .options import SETTINGS, add_options
from .settings import merged, run_config
from .signals import signals, stopping, undisturbed

_EPILOG = """\
exit codes:
  0 done, 1 failed, 2 wrong usage, 3 a quality gate missed or the slim network no better than chance,
  4 verification failed or a file refused, 130 interrupted

examples:
  bise-prune --demo
  bise-prune resnet18.pt --data waterbirds/ --target-sparsity auto --output slim/
  bise-prune resnet18.pt --data waterbirds/ --target-flops 0.33 --finetune 50 --output third/
  bise-prune resnet18.pt --data waterbirds/ --targets 0.3,0.5,0.7 --output frontier/
  bise-prune minilm/ --data comments.csv --output slim/
  bise-prune --config settings.toml --output slim/
  bise-prune diagnose resnet18.pt --data waterbirds/
  bise-prune compare slim/ third/ frontier/ --output comparison.html
  torchrun --nproc-per-node 4 -m bise_prune resnet18.pt --data waterbirds/ --output slim/
"""


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises ``ConfigError`` instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``bise-prune``.

    Args:
        argv: arguments of the command; None for those of the process.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 3 a quality gate missed or the slim network no better than
        chance, 4 verification failed or a file refused, 130 interrupted.
    """
    argv = sys.argv[1:] if argv is None else argv
    sys.stdout, sys.stderr = (stream or Path(os.devnull).open("w") for stream in (sys.stdout, sys.stderr))  # closed
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show is no reason to fail at the end of a run
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with stopping() as stopped:
        try:
            code = _code_of(argv)
            stopped.set()  # what is done is done
            return code
        except (KeyboardInterrupt, Exception) as error:  # a signal during an import can become another error
            if not isinstance(error, KeyboardInterrupt) and not stopped.is_set():
                raise
            searches = argv[:1] not in (["compare"], ["diagnose"]) and "--dry-run" not in argv
            goes_on = "; the same command takes the search up where it stopped" if searches else ""
            print(f"bise-prune: interrupted{goes_on}", file=sys.stderr)
            return 130


def command() -> NoReturn:
    """Run the command ``bise-prune`` and end the process, which no signal changes any more once all is done."""
    for number in signals():
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # for the moment before the next lines
    try:
        code = main()
    except KeyboardInterrupt:  # before `main` had come to its first line
        code = 130
    for number in signals():
        signal.signal(number, signal.SIG_IGN)  # Python takes other handlers away before its end
    sys.exit(code)


def _code_of(argv: Sequence[str]) -> int:
    """Run the command, and print what is wrong; its exit code."""
    try:
        if argv and argv[0] == "compare":
            return _compare(argv[1:])
        if argv and argv[0] == "diagnose":
            return _diagnose(argv[1:])
        return _run(argv)
    except BiseError as error:
        _complain(str(error))
        return error.exit_code
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _complain(f"{error.strerror or error}{where}")
        return 1
    except MemoryError:
        _complain("there is not enough memory: try a smaller --batch-size, or smaller images with --size")
        return 1


def _complain(text: str) -> None:
    """Print an error as one line."""
    print(f"bise-prune: error: {printable(text)}", file=sys.stderr)


@contextmanager
def _contained() -> Iterator[None]:
    """A context in which the code of a user's network neither prints among the results nor ends the process."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except SystemExit as error:
        raise BiseError(
            f"code of the network, of its data or of a package that they use ended the run (exit {error.code!r}); take "
            "what exits out of it"
        ) from error


def _parser() -> argparse.ArgumentParser:
    """The parser of ``bise-prune`` with all its options."""
    parser = _Parser(
        prog="bise-prune",
        usage="bise-prune CHECKPOINT [--data PATH] [--target-sparsity auto|SHARE] [--output DIR] [options]",
        description="Turn a biased classifier into a smaller, less biased one, without retraining it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint", nargs="?", type=Path,
        help="trained classifier: a .pt, .pth, .safetensors or .pt2 file, or the folder of a Hugging Face model",
    )  # fmt: skip
    parser.add_argument("--demo", action="store_true", help="train the embedded example network and debias it")
    parser.add_argument(
        "--config", metavar="FILE", type=Path,
        help="read settings from a .toml or .yaml file, by the names of the options below (batch_size = 64); options "
        "on the command line come before it",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="read and check everything, print what was understood and how long the search may take, and stop",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true",
        help="stop with an error if there is no stopped search to continue; one that is there is continued in any case",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    parser.add_argument("--version", action="version", version=__version__, help="print the version and stop")
    parser.add_argument(
        "--print-completion", metavar="SHELL", choices=("bash", "zsh", "tcsh"),
        help="print a completion script for bash, zsh or tcsh and stop",
    )  # fmt: skip
    add_options(parser)
    return parser


def _compare(argv: Sequence[str]) -> int:
    """Run ``bise-prune compare``, which shows several runs side by side."""
    parser = _Parser(
        prog="bise-prune compare",
        description="Runs side by side: a table, and a page with their accuracies against their size.",
        allow_abbrev=False,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="output folder of a run or of a frontier")
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the page here")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON instead of a table")
    arguments = parser.parse_args(argv)
    from ..report.comparison import comparison_table, read_runs, summaries, write_comparison

    if arguments.output is not None and arguments.output.exists():
        raise ConfigError(f"{arguments.output} exists already; choose another file with --output")
    runs = read_runs(arguments.runs)
    rows = summaries(runs)
    if arguments.output is not None:
        write_comparison(arguments.output, runs)
    if arguments.json:
        print(json.dumps(rows))
        return 0
    show(comparison_table(rows))
    if arguments.output is not None:
        print(f"written to {arguments.output}")
    return 0


def _diagnose(argv: Sequence[str]) -> int:
    """Run ``bise-prune diagnose``, which looks at the dense network and its data; it takes the options of a run."""
    arguments, values = command_settings(argv)
    if arguments.demo or values["checkpoint"] is None:
        raise ConfigError("diagnose needs a checkpoint: bise-prune diagnose CHECKPOINT --data DATA")
    config = run_config({**values, "output": Path("unused")})
    with undisturbed():
        from .diagnose import diagnose, diagnosis_tables
    with _contained(), Display() as display:
        record = diagnose(config, display.progress)
    if arguments.json:
        print(json.dumps(record))
        return 0
    show(diagnosis_tables(record))
    print(record["advice"]["text"])
    if record["advice"]["flags"]:
        print(f"next: bise-prune {' '.join([*argv, *record['advice']['flags']])}")
    return 0


_DEMO = ("output", "seed", "device")  # settings that the demo takes


def command_settings(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Parse a command line, and merge its settings with those of a settings file and the defaults.

    Args:
        argv: arguments of the command.

    Returns:
        The parsed arguments, and the settings by name: those of the command line before those of the file before the
        defaults.

    Raises:
        ConfigError: an option or a setting in the file is unknown or has a wrong value.
    """
    arguments = _parser().parse_args(argv)
    given = {name: value for name, value in vars(arguments).items() if name in SETTINGS and value is not None}
    if arguments.demo:
        fixed = [name for name in given if name not in _DEMO]
        if "checkpoint" in given:
            raise ConfigError("give either a checkpoint or --demo; see bise-prune --help")
        if fixed or arguments.config or arguments.dry_run or arguments.resume:
            extra = SETTINGS[fixed[0]].flag if fixed else "--config, --dry-run or --resume"
            raise ConfigError(f"--demo has settings of its own; it does not take {extra}")
    return arguments, merged(given, arguments.config)


def _run(argv: Sequence[str]) -> int:
    """Run the pipeline, a dry run or the demo, as the arguments say."""
    arguments, values = command_settings(argv)
    if arguments.print_completion is not None:
        _print_completion(arguments.print_completion)
        return 0
    if arguments.demo:
        return _demo(values, arguments.json)
    checkpoint = values["checkpoint"]
    if checkpoint is None:
        raise ConfigError("give either a checkpoint or --demo; see bise-prune --help")
    is_model = checkpoint.is_file() or (checkpoint / "config.json").is_file()
    if not is_model:  # checked before torch is imported, which takes seconds
        reason = ": it is a folder without a config.json" if checkpoint.is_dir() else ""
        raise BiseError(f"no checkpoint at {checkpoint}{reason}")
    output = values["output"] or _beside(checkpoint)
    config = run_config({**values, "output": output, "resume": arguments.resume})
    with undisturbed():
        from .dry_run import dry_run  # they import torch, which --help does not wait for
        from .output_folder import check_inputs
        from .pipeline import run
    check_inputs(config, arguments.config)
    with _contained(), Display() as display:
        record = (dry_run if arguments.dry_run else run)(config, display.progress)
    if arguments.dry_run:
        _show_dry_run(record, arguments.json)
        if record["doubt"]:
            raise DataError(record["doubt"])
        return 0
    if not record:  # of several processes only the first one has a report
        return 0
    if "frontier" in record:
        _show_frontier(record, config.output, arguments.json)
    else:
        _show(record, config.output, arguments.json)
    from ..report.quality_gates import shortcomings

    code, complaints = shortcomings(record)
    for complaint in complaints:
        _complain(complaint)
    return code


def _demo(values: dict[str, Any], as_json: bool) -> int:
    """Run the demo and print its result."""
    output = values["output"] or Path("bise-demo")
    with undisturbed():
        from .demo import run_demo
    with _contained(), Display() as display:
        device = "cpu" if values["device"] == "auto" else values["device"]
        record = run_demo(output, values["seed"], device, display.progress)
    _show(record, output / "slim", as_json)
    if not as_json:
        print(f"Run it again yourself: bise-prune {output / 'dense.pt'} --target-sparsity auto")
    return 0


def _print_completion(shell: str) -> None:
    """Print a completion script for the given shell."""
    try:
        import shtab
    except ImportError as error:
        raise ConfigError("completion scripts need the package shtab: pip install 'bise-prune[completion]'") from error
    parser = _parser()
    for action in parser._actions:
        if action.type is Path or action.dest == "data":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=shell))


def _beside(checkpoint: Path) -> Path:
    """The default output folder: beside the checkpoint, with "-slim" at the end of its name."""
    place = checkpoint.resolve() if checkpoint.is_dir() else checkpoint
    return place.with_name(f"{place.name if checkpoint.is_dir() else place.stem}-slim")


def _show_dry_run(record: dict[str, Any], as_json: bool) -> None:
    """Print what a dry run found."""
    if as_json:
        print(json.dumps(record))
        return
    from .dry_run import dry_run_tables

    show(dry_run_tables(record))


def _show_frontier(record: dict[str, Any], output: Path, as_json: bool) -> None:
    """Print the results of a frontier."""
    if as_json:
        print(json.dumps(record))
        return
    from ..report.tables import frontier_table, is_slower
    from ..report.verdict import frontier_sentence

    print(frontier_sentence(record))
    for point in record["frontier"]:
        if is_slower(point["report"]):  # the first of its warnings says so
            print(f"warning: {point['folder']}: {point['report']['warnings'][0]}")
    show(frontier_table(record))
    print(f"written to {output}: frontier.html, frontier.json, and a folder with all results for each target")


def _show(record: dict[str, Any], output: Path, as_json: bool) -> None:
    """Print the result of a run."""
    if as_json:
        print(json.dumps(record))
        return
    from ..report import files
    from ..report.ladder import ladder_sentence, ladder_table
    from ..report.tables import comparison_table, is_slower, widths_table
    from ..report.verdict import verdict_sentence

    warnings = list(record["warnings"])
    if is_slower(record):
        print(f"warning: {warnings.pop(0)}")  # the first one says so
    print(verdict_sentence(record))
    if record["ladder"]:
        print(ladder_sentence(record))
    show(comparison_table(record))
    if record["ladder"]:
        show(ladder_table(record))
    if record["widths"]:
        show(widths_table(record))
    check = record["verification"]["slim_against_masked"]
    print(
        f"sparsity {record['sparsity']:.1%} of the parameters; slim equals masked to {check['max_abs_error']:.1e} "
        f"(float64 logits); selection: {record['selection']['rule']}"
    )
    for warning in warnings:
        print(f"warning: {warning}")
    written = [
        files.PAGE_FILE, files.REPORT_FILE, files.CARD_FILE, files.MASK_FILE, files.PLAN_FILE, files.SLIM_FILE,
        *(form["file"] for form in record["formats"] if not form["refused"]), files.PROGRAM_FILE, files.CONFIG_FILE,
    ]  # fmt: skip
    print(f"written to {output}: {', '.join(written)}")


if __name__ == "__main__":
    sys.exit(main())
