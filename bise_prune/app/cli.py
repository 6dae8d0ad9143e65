"""The command line: arguments to settings, settings to the pipeline, outcomes to exit codes; nothing else prints."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..config import (
    BATCHNORMS,
    CRITERIA,
    JOINS,
    OPTIMIZERS,
    PLACEMENTS,
    PRECISIONS,
    ROUND_FILLS,
    SCHEDULES,
    SELECTS,
    WEIGHTINGS,
    FinetuneConfig,
    RunConfig,
    SearchConfig,
)
from ..errors import BiseError, ConfigError
from ..version import __version__
from .settings import FINETUNE, SETTINGS, read_settings, run_config

if TYPE_CHECKING:
    from rich.progress import TaskID

_EPILOG = """\
exit codes: 0 done, 1 failed, 2 wrong usage, 3 a quality gate missed, 4 verification failed, 130 interrupted

examples:
  bise-prune --demo
  bise-prune resnet18.pt --data waterbirds/ --target-sparsity auto --output slim/
  bise-prune resnet18.pt --data waterbirds/ --target-flops 0.33 --finetune 50 --output third/
  bise-prune resnet18.pt --data waterbirds/ --targets 0.3,0.5,0.7 --output frontier/
  bise-prune minilm/ --data comments.csv --output slim/
  bise-prune --config settings.toml --output slim/
  bise-prune compare slim/ third/ frontier/ --output comparison.html
  torchrun --nproc-per-node 4 -m bise_prune resnet18.pt --data waterbirds/ --output slim/
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see bise-prune --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is returned."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0] == "compare":
            return _compare(argv[1:])
        return _run(_parsed(argv))
    except BiseError as error:
        print(f"bise-prune: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"bise-prune: error: {error.strerror or error}{where}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bise-prune: interrupted; the same command takes the search up where it stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bise-prune",
        usage="bise-prune CHECKPOINT [--data PATH] [--target-sparsity auto|FRACTION] [--output DIR] [options]",
        description="Turn a biased classifier into a smaller, less biased one, without retraining it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint", nargs="?", type=Path,
        help="trained classifier: .pt, .pth, .safetensors, .pt2, or a folder of a Hugging Face model",
    )  # fmt: skip
    parser.add_argument("--demo", action="store_true", help="train and debias the embedded example")
    parser.add_argument(
        "--config", metavar="FILE", type=Path,
        help="settings from a .toml or .yaml file, by the names of the options below; the command line overrides it",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print what was understood and a time estimate, stop"
    )
    parser.add_argument("--resume", action="store_true", help="go on with a stopped search; an error if there is none")
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--print-completion", metavar="SHELL", choices=("bash", "zsh", "tcsh"), help="print a completion script: bash, "
        "zsh or tcsh",
    )  # fmt: skip

    group = _Options(parser, "checkpoint", RunConfig)
    group.add(
        "--arch", "architecture, if the checkpoint does not tell it: torchvision:NAME, timm:NAME, hf:FOLDER or "
        "package.module:factory, with arguments as in NAME(key=value)", metavar="NAME",
    )  # fmt: skip
    group.switch("--trust-pickle", "unpickle whatever is in the checkpoint, which can run any code")
    group.add("--masks", "prune by these masks instead of searching", metavar="FILE", type=Path)
    group.add("--plan", "carry out the plan of an earlier run again", metavar="FILE", type=Path)

    group = _Options(parser, "data", RunConfig)
    group.add(
        "--data", "folder of images, CSV file of images or texts, parquet, or NAME:DIR, e.g. biased_mnist:DIR",
        metavar="PATH",
    )  # fmt: skip
    group.add("--label-column", "of the class labels in a table (default: found by its name)", metavar="NAME")
    group.add(
        "--bias-column", "of bias labels, likewise; several times for several biases", metavar="NAME", action="append",
        dest="bias_columns",
    )  # fmt: skip
    group.add("--split-column", "of train, val and test, likewise", metavar="NAME")
    group.add("--file-column", "of the images' files, likewise", metavar="NAME")
    group.add("--text-column", "of the texts, likewise", metavar="NAME")
    group.switch("--skip-bad", "go on without images that cannot be read, and report them")
    group.add(
        "--mean", "of the images' channels, on the [0, 1] scale (default: the checkpoint's, or ImageNet's)",
        metavar="X,...", type=_numbers,
    )  # fmt: skip
    group.add("--std", "likewise", metavar="X,...", type=_numbers)
    group.add(
        "--size", "height and width to resize images to (default: the checkpoint's, or the images' own)",
        metavar="N[,N]", type=_size,
    )  # fmt: skip

    group = _Options(parser, "result", RunConfig)
    group.add("--output", "folder for the results (default: CHECKPOINT-slim)", metavar="DIR", type=Path)
    group.add(
        "--target-sparsity", "auto: what the search closes; a number: the share of parameters to remove",
        metavar="auto|FRACTION", type=_auto_or(float, "a number in (0, 1)"),
    )  # fmt: skip
    group.add("--target-flops", "the share of the FLOPs that may stay, instead", metavar="FRACTION", type=float)
    group.add(
        "--target-latency", "the share of the measured latency that may stay, instead", metavar="FRACTION", type=float
    )
    group.add(
        "--targets", "several target sparsities, e.g. 0.3,0.5,0.7: one result each, from shared work",
        metavar="FRACTIONS", type=_numbers,
    )  # fmt: skip
    group.add("--layer-floor", "the share of every layer that a target leaves open", metavar="X", type=float)
    group.add(
        "--joins", "where gates disagree: keep what any has open, or put zeros back; auto: the faster one",
        choices=JOINS,
    )  # fmt: skip
    group.add(
        "--round-to", "round kept channels up to a multiple; auto: 16 on a CPU, 8 on a GPU", metavar="auto|N",
        type=_auto_or(int, "an integer >= 1"),
    )  # fmt: skip
    group.add("--round-fill", "fill up with zeros, or with the best closed channels, opened again", choices=ROUND_FILLS)
    group.switch("--fuse", "fold batch norms into their layers in slim.onnx and slim.pt2")
    group.add("--criterion", "what decides: learned masks, or for comparison another score", choices=CRITERIA)
    group.switch("--sweep", "report accuracy against sparsity over thresholds")
    group.switch("--probe", "report what a linear head reads of the bias")

    group = _Options(parser, "files and gates", RunConfig)
    group.add("--opset", "of the ONNX files (default: the exporter's)", metavar="N", type=int)
    group.switch("--half", "write slim.fp16.onnx as well")
    group.switch("--int8", "write slim.int8.onnx as well, calibrated on as many samples of every subgroup")
    group.switch("--image-input", "write slim.images.onnx as well: uint8 images in, probabilities out")
    group.number("--format-tolerance", "the most accuracy that such a file may lose, in all or of the worst subgroup")
    group.add(
        "--triton", "add dense and slim network to this model repository of NVIDIA Triton", metavar="DIR", type=Path
    )
    group.add("--min-worst-group", "gate: the least worst-group accuracy", metavar="X", type=float)
    group.add("--max-accuracy-drop", "gate: the most accuracy to lose", metavar="X", type=float)
    group.add("--min-speedup", "gate: the least latency ratio, dense to slim", metavar="X", type=float)
    group.add(
        "--log", "send figures to tensorboard, mlflow or wandb, several with commas; NAME:PLACE names a folder, an "
        "experiment or a project", metavar="NAMES", type=_names,
    )  # fmt: skip

    group = _Options(parser, "search", SearchConfig)
    group.add("--placement", "who shares a mask", choices=PLACEMENTS)
    group.add(
        "--select", "which epoch's masks: by validation accuracy with bias labels (best, worst-group), without "
        "(accuracy, worst-class), or the last; auto: the first that the data allow", choices=SELECTS,
    )  # fmt: skip
    group.number("--anneal-every", "epochs between temperature cuts")
    group.number("--anneal-factor", "factor of a temperature cut")
    group.number("--min-temperature", "temperature below which the search ends")
    group.number("--initial-logit", "mask logits before the first step")
    group.number("--mi-weight", "weight of the mutual information")
    group.number("--mi-pool", "samples of past batches to estimate the information with")
    for what, name in (("mask", "of the masks"), ("head", "of the auxiliary head")):
        group.number(f"--{what}-lr", f"learning rate {name}")
        group.number(f"--{what}-momentum", f"momentum {name}")
        group.number(f"--{what}-weight-decay", f"weight decay {name}")
    group.number("--head-epochs", "epochs of the auxiliary head before the search and after each cut")
    group.add("--weighting", "sample weights of the cross-entropy", choices=WEIGHTINGS)
    group.add("--rho", "nominal share of aligned samples per bias", metavar="SHARES", type=_numbers)
    group.add("--batchnorm", "what of batch norms follows", choices=BATCHNORMS)
    group.add("--seed", "of everything that is drawn", metavar="N", type=int)
    group.switch("--early-stop", "end the search once no mask can move any more")
    group = group.also(RunConfig)
    group.number("--batch-size", "samples per batch")
    group.switch("--stratified", "give every batch its share of every subgroup")
    group.number("--budget-weight", "weight of what exceeds a target during the search")
    group.number("--budget-descent", "part of the schedule over which a target's budget comes down")

    group = _Options(parser, "bias labels", RunConfig)
    group.switch("--unsupervised", "find pseudo bias labels, even if there are bias labels")
    group.number("--identification-epochs", "of the model that finds them")
    group.number("--bias-noise", "share of bias labels to make wrong")

    group = _Options(parser, "finetuning of the slim network", FinetuneConfig)
    group.group.add_argument(
        "--finetune",
        metavar="EPOCHS",
        type=int,
        default=0,
        help="train the slim network on, with the search's sample weights (default: 0)",
    )
    group.number("--finetune-lr", "learning rate")
    group.number("--finetune-momentum", "of SGD")
    group.number("--finetune-weight-decay", "of the optimiser")
    group.add("--finetune-optimizer", "which", choices=OPTIMIZERS)
    group.add("--finetune-schedule", "of the learning rate", choices=SCHEDULES)
    for flag, options in (("weighting", {"choices": WEIGHTINGS}), ("select", {"choices": SELECTS}),
                          ("rho", {"metavar": "SHARES", "type": _numbers})):  # fmt: skip
        group.group.add_argument(f"--finetune-{flag}", help=f"default: as --{flag}", **options)

    group = _Options(parser, "machine", RunConfig)
    group.add("--device", "auto, cpu, cuda or cuda:N", metavar="DEVICE")
    group.number("--workers", "threads that prepare batches ahead of the search")
    group = group.also(SearchConfig)
    group.add("--precision", "of the search", choices=PRECISIONS)
    group.switch("--channels-last", "run the search with channels last")
    group.switch("--compile", "compile the network for the search")
    group.switch("--cuda-graphs", "compile it and replay it as CUDA graphs")
    group.number("--cache-bytes", "the most that is kept of each thing to be computed once")
    return parser


def _compare(argv: Sequence[str]) -> int:
    """Runs side by side."""
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
    from rich.console import Console

    Console().print(comparison_table(rows))
    if arguments.output is not None:
        print(f"written to {arguments.output}")
    return 0


class _Options:
    """A group of options whose defaults are those of a configuration's fields of the same names."""

    def __init__(self, parser: argparse.ArgumentParser, title: str, config: type) -> None:
        self.group = parser.add_argument_group(title)
        self.config = config

    def also(self, config: type) -> _Options:
        """The same group, for fields of another configuration."""
        self.config = config
        return self

    def add(self, flag: str, text: str, **options: Any) -> None:
        """An option with a value."""
        default = self._default(options.get("dest", flag))
        known = default not in (None, ()) and not isinstance(default, bool)
        self.group.add_argument(
            flag, default=default, help=f"{text} (default: {default})" if known else text, **options
        )

    def number(self, flag: str, text: str) -> None:
        """An option that is a number, of its default's type."""
        kind = type(self._default(flag))
        self.add(flag, text, metavar="N" if kind is int else "X", type=kind)

    def switch(self, flag: str, text: str) -> None:
        """An option that is on or off, for ``--flag`` and ``--no-flag``."""
        default = self._default(flag)
        state = "on" if default else "off"
        self.group.add_argument(
            flag, action=argparse.BooleanOptionalAction, default=default, help=f"{text} (default: {state})"
        )

    def _default(self, flag: str) -> Any:
        name = flag.lstrip("-").replace("-", "_")
        if self.config is FinetuneConfig:
            name = FINETUNE[name]
        (found,) = (field for field in fields(self.config) if field.name == name)
        return None if found.default is MISSING else found.default


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    """The command line's arguments over those of the file that it names, if it names one."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.config is None:
        return arguments
    values = read_settings(arguments.config)
    checkpoint = values.pop("checkpoint", None)
    if arguments.bias_columns is not None:
        values.pop("bias_columns", None)  # the command line's take their place
    given = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(_TARGETS, _ABSENT)))
    if any(getattr(given, name) is not _ABSENT for name in _TARGETS):
        values = {name: value for name, value in values.items() if name not in _TARGETS}  # likewise
    tokens = [token for name, value in values.items() for token in _tokens(name, value)]
    try:
        parser.parse_args(tokens)
    except ConfigError as error:
        raise ConfigError(f"{arguments.config}: {error}") from error
    arguments = parser.parse_args([*tokens, *argv])
    if arguments.checkpoint is None and checkpoint is not None:
        arguments.checkpoint = Path(str(checkpoint))
    return arguments


_TARGETS = ("target_sparsity", "target_flops", "target_latency", "targets", "plan")
_ABSENT = object()


def _tokens(name: str, value: Any) -> list[str]:
    """A setting of a file as the command line has it."""
    if name == "bias_columns":
        values = value if isinstance(value, list) else [value]
        return [f"--bias-column={column}" for column in values]
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if isinstance(value, list):
        return [f"{flag}={','.join(map(str, value))}"] if value else []
    return [f"{flag}={value}"]


def _auto_or(kind: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    """An argument that is either "auto" or of a kind; ``expected`` says which in the error."""

    def parse(text: str) -> Any:
        if text == "auto":
            return "auto"
        try:
            return kind(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is neither 'auto' nor {expected}") from error

    return parse


def _size(text: str) -> tuple[int, ...]:
    """Height and width, or one number for both."""
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 224 or 224,160") from error
    return numbers * 2 if len(numbers) == 1 else numbers


def _names(text: str) -> tuple[str, ...]:
    """Names with commas between them."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0.3,0.5,0.7") from error


def _run(arguments: argparse.Namespace) -> int:
    if arguments.print_completion is not None:
        _print_completion(arguments.print_completion)
        return 0
    if arguments.demo == (arguments.checkpoint is not None):
        raise ConfigError("give either a checkpoint or --demo; see bise-prune --help")
    if arguments.demo:
        defaults = vars(_parser().parse_args(["--demo"]))
        fixed = [name for name, value in vars(arguments).items() if value != defaults[name] and name not in _DEMO]
        if fixed:
            raise ConfigError(f"--demo has settings of its own; it does not take --{fixed[0].replace('_', '-')}")
        output = arguments.output or Path("bise-demo")
        with _Display() as display:
            from .demo import run_demo

            device = "cpu" if arguments.device == "auto" else arguments.device
            record = run_demo(output, arguments.seed, device, display.progress)
        _show(record, output / "slim", arguments.json)
        if not arguments.json:
            print(f"Run it again yourself: bise-prune {output / 'dense.pt'} --target-sparsity auto --anneal-every 2")
        return 0
    is_folder = (arguments.checkpoint / "config.json").is_file()
    if not arguments.checkpoint.is_file() and not is_folder:  # before torch is imported
        raise BiseError(f"no checkpoint at {arguments.checkpoint}")
    given = {name: value for name, value in vars(arguments).items() if name in SETTINGS or name == "resume"}
    given["bias_columns"] = None if given["bias_columns"] is None else tuple(given["bias_columns"])
    config = run_config({**given, "output": arguments.output or _beside(arguments.checkpoint)})
    if arguments.dry_run:
        with _Display() as display:
            from .dry_run import dry_run

            understood = dry_run(config, display.progress)
        _show_dry_run(understood, arguments.json)
        return 0
    with _Display() as display:
        from .pipeline import run

        record = run(config, display.progress)
    if not record:  # one of several processes, of which the first one reports
        return 0
    if "frontier" in record:
        _show_frontier(record, config.output, arguments.json)
    else:
        _show(record, config.output, arguments.json)
    from ..report.outcome import shortcomings

    code, complaints = shortcomings(record)
    for complaint in complaints:
        print(f"bise-prune: error: {complaint}", file=sys.stderr)
    return code


_DEMO = ("output", "seed", "device", "json")


def _print_completion(shell: str) -> None:
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
    """Where results go if nothing is said."""
    place = checkpoint.resolve() if checkpoint.is_dir() else checkpoint
    return place.with_name(f"{place.name if checkpoint.is_dir() else place.stem}-slim")


def _show_dry_run(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(record))
        return
    from rich.console import Console

    from .dry_run import dry_run_tables

    Console().print(dry_run_tables(record))


def _show_frontier(record: dict[str, Any], output: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(record))
        return
    from rich.console import Console

    from ..report.tables import frontier_table

    Console().print(frontier_table(record))
    print(f"written to {output}: frontier.html, frontier.json, and a folder with all results for each target")


def _show(record: dict[str, Any], output: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(record))
        return
    from rich.console import Console

    from ..report.tables import comparison_table

    console = Console()
    console.print(comparison_table(record))
    check = record["verification"]["slim_against_masked"]
    print(
        f"sparsity {record['sparsity']:.1%} of the parameters; slim equals masked to {check['max_abs_error']:.1e} "
        f"(float64 logits); selection: {record['selection']['rule']}"
    )
    for warning in record["warnings"]:
        print(f"warning: {warning}")
    files = ["report.html", "report.json", "README.md", "masks.safetensors", "plan.json", "slim.safetensors"]
    files += [form["file"] for form in record["formats"] if not form["refused"]]
    print(f"written to {output}: {', '.join([*files, 'slim.pt2', 'config.toml'])}")


class _Display:
    """Progress on stderr, with the time left of each stage that has steps."""

    def __enter__(self) -> _Display:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("left"))
        quiet = os.environ.get("RANK", "0") != "0"  # of several processes the first one shows
        self.bars = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=quiet)
        self.stages: dict[str, TaskID] = {}
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def progress(self, stage: str, done: int, total: int) -> None:
        """Show a stage's state; the stage before it is complete."""
        if stage not in self.stages:
            for task in self.stages.values():
                self.bars.update(task, total=1, completed=1)
            self.stages[stage] = self.bars.add_task(stage, total=None)
        if total:
            self.bars.update(self.stages[stage], total=total, completed=done)


if __name__ == "__main__":
    sys.exit(main())
