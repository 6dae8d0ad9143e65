"""The command line: arguments to settings, settings to the pipeline, outcomes to exit codes; nothing else prints."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .config import (
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
from .errors import BiseError, ConfigError
from .version import __version__

if TYPE_CHECKING:
    from rich.progress import TaskID

_EPILOG = """\
exit codes: 0 done, 1 failed, 2 wrong usage, 4 verification failed, 130 interrupted

examples:
  bise-prune --demo
  bise-prune resnet18.pt --data waterbirds/ --target-sparsity auto --output slim/
  bise-prune resnet18.pt --data waterbirds/ --target-flops 0.33 --finetune 50 --output third/
  bise-prune resnet18.pt --data waterbirds/ --targets 0.3,0.5,0.7 --output frontier/
  bise-prune minilm/ --data comments.csv --output slim/
  torchrun --nproc-per-node 4 -m bise_prune resnet18.pt --data waterbirds/ --output slim/
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see bise-prune --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is returned."""
    try:
        arguments = _parser().parse_args(argv)
        return _run(arguments)
    except BiseError as error:
        print(f"bise-prune: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("bise-prune: interrupted; the same command takes the search up where it stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bise-prune",
        description="Turn a biased classifier into a smaller, less biased one, without retraining it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_EPILOG,
    )
    parser.add_argument(
        "checkpoint",
        nargs="?",
        type=Path,
        help="weights: a state dict, a file of this package, or a Hugging Face classifier's folder",
    )
    parser.add_argument("--demo", action="store_true", help="train and debias the embedded example")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print what was understood and a time estimate, stop"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON instead of a table")
    group = parser.add_argument_group("input")
    group.add_argument(
        "--data", metavar="PATH", help="folder with metadata.csv, CSV file of texts, or NAME:DIR, e.g. biased_mnist:DIR"
    )
    group.add_argument(
        "--arch", metavar="NAME",
        help="architecture, if the checkpoint does not tell it: torchvision:NAME, timm:NAME, hf:FOLDER or "
        "package.module:factory, with arguments as in NAME(key=value)",
    )  # fmt: skip
    group.add_argument(
        "--trust-pickle", action="store_true", help="unpickle whatever is in the checkpoint, which can run any code"
    )
    group.add_argument(
        "--mean", metavar="X,...", type=_numbers, help="of the images' channels, on the [0, 1] scale "
        "(default: the checkpoint's, or ImageNet's)",
    )  # fmt: skip
    group.add_argument("--std", metavar="X,...", type=_numbers, help="likewise")
    group.add_argument(
        "--size", metavar="N[,N]", type=_size, help="height and width to resize images to (default: the checkpoint's, "
        "or the images' own)",
    )  # fmt: skip
    group.add_argument("--masks", metavar="FILE", type=Path, help="prune by these masks instead of searching")
    group.add_argument("--plan", metavar="FILE", type=Path, help="carry out the plan of an earlier run again")
    group = parser.add_argument_group("result")
    group.add_argument("--output", metavar="DIR", type=Path, help="folder for the results (default: CHECKPOINT-slim)")
    group.add_argument(
        "--target-sparsity",
        metavar="auto|FRACTION",
        type=_auto_or(float, "a number in (0, 1)"),
        default="auto",
        help="auto: what the search closes; a number: the share of parameters to remove (default: auto)",
    )
    group.add_argument(
        "--target-flops", metavar="FRACTION", type=float, help="the share of the FLOPs that may stay, instead"
    )
    group.add_argument(
        "--target-latency",
        metavar="FRACTION",
        type=float,
        help="the share of the measured latency that may stay, instead",
    )
    group.add_argument(
        "--joins", choices=JOINS, default="auto",
        help="where gates disagree: keep what any has open, or put zeros back; auto: the faster one (default: auto)",
    )  # fmt: skip
    group.add_argument(
        "--round-to", metavar="auto|N", type=_auto_or(int, "an integer >= 1"), default=1,
        help="round kept channels up to a multiple; auto: 16 on a CPU, 8 on a GPU (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--round-fill", choices=ROUND_FILLS, default="zero",
        help="fill up with zeros, or with the best closed channels, opened again (default: zero)",
    )  # fmt: skip
    group.add_argument(
        "--no-fuse", dest="fuse", action="store_false", help="keep batch norms in slim.onnx and slim.pt2"
    )
    group.add_argument(
        "--targets", metavar="FRACTIONS", type=_numbers, default=(),
        help="several target sparsities, e.g. 0.3,0.5,0.7: one result each, from shared work",
    )  # fmt: skip
    group.add_argument(
        "--layer-floor", metavar="X", type=float, default=0.05,
        help="the share of every layer that ranking to a target leaves open (default: 0.05)",
    )  # fmt: skip
    group.add_argument(
        "--criterion", choices=CRITERIA, default="learned",
        help="what decides: learned masks, or for comparison another score (default: learned)",
    )  # fmt: skip
    group.add_argument("--sweep", action="store_true", help="report accuracy against sparsity over thresholds")
    group.add_argument("--probe", action="store_true", help="report what a linear head reads of the bias")
    group.add_argument("--resume", action="store_true", help="go on with a stopped search; an error if there is none")
    group = parser.add_argument_group("search")
    group.add_argument("--placement", choices=PLACEMENTS, default="tied", help="who shares a mask (default: tied)")
    group.add_argument(
        "--select", choices=SELECTS, default="auto",
        help="which epoch's masks: by validation accuracy with bias labels (best, worst-group), without (accuracy, "
        "worst-class), or the last; auto: the first that the data allow (default: auto)",
    )  # fmt: skip
    for flag, kind, default, text in (
        ("--anneal-every", int, 10, "epochs between temperature cuts"),
        ("--anneal-factor", float, 0.5, "factor of a temperature cut"),
        ("--min-temperature", float, 1e-3, "temperature below which the search ends"),
        ("--head-epochs", int, 50, "epochs of the auxiliary head"),
        ("--mi-weight", float, 1.0, "weight of the mutual information"),
        ("--mi-pool", int, 0, "samples of past batches to estimate the information with"),
        ("--initial-logit", float, 0.0, "mask logits before the first step"),
        ("--mask-lr", float, 0.01, "learning rate of the masks"),
        ("--budget-weight", float, 20.0, "weight of what exceeds a target during the search"),
    ):
        metavar = "N" if kind is int else "X"
        group.add_argument(flag, metavar=metavar, type=kind, default=default, help=f"{text} (default: {default:g})")
    group.add_argument(
        "--weighting", choices=WEIGHTINGS, default="auto", help="sample weights of the cross-entropy (default: auto)"
    )
    group.add_argument(
        "--rho", metavar="SHARES", type=_numbers, default=None, help="nominal share of aligned samples per bias"
    )
    group.add_argument(
        "--batchnorm", choices=BATCHNORMS, default="frozen", help="what of batch norms follows (default: frozen)"
    )
    group.add_argument("--stratified", action="store_true", help="give every batch its share of every subgroup")
    group.add_argument("--batch-size", metavar="N", type=int, default=100, help="samples per batch (default: 100)")
    group = parser.add_argument_group("bias labels")
    group.add_argument(
        "--unsupervised", action="store_true", help="find pseudo bias labels, even if there are bias labels"
    )
    group.add_argument(
        "--identification-epochs", metavar="N", type=int, default=1, help="of the model that finds them (default: 1)"
    )
    group.add_argument(
        "--bias-noise", metavar="X", type=float, default=0.0, help="share of bias labels to make wrong (default: 0)"
    )
    group = parser.add_argument_group("finetuning of the slim network")
    group.add_argument("--finetune", metavar="EPOCHS", type=int, default=0, help="with the search's sample weights")
    group.add_argument("--finetune-lr", metavar="X", type=float, default=1e-3, help="default: 0.001")
    group.add_argument("--finetune-optimizer", choices=OPTIMIZERS, default="sgd", help="default: sgd")
    group.add_argument("--finetune-schedule", choices=SCHEDULES, default="constant", help="default: constant")
    group = parser.add_argument_group("machine")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    group.add_argument("--precision", choices=PRECISIONS, default="float32", help="of the search (default: float32)")
    group.add_argument("--channels-last", action="store_true", help="run the search with channels last")
    group.add_argument("--compile", action="store_true", help="compile the network for the search")
    group.add_argument(
        "--no-early-stop", dest="early_stop", action="store_false", help="search on when no mask can move any more"
    )
    group.add_argument("--seed", type=int, default=0, help="default: 0")
    return parser


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


def _numbers(text: str) -> tuple[float, ...]:
    """Numbers with commas between them."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 0.3,0.5,0.7") from error


def _run(arguments: argparse.Namespace) -> int:
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
    given = vars(arguments)
    settings = {field.name: given[field.name] for field in fields(SearchConfig) if field.name in given}
    finetune = None
    if arguments.finetune:
        finetune = FinetuneConfig(
            epochs=arguments.finetune,
            lr=arguments.finetune_lr,
            optimizer=arguments.finetune_optimizer,
            schedule=arguments.finetune_schedule,
            weighting=arguments.weighting,
            rho=arguments.rho,
            select=arguments.select,
        )
    config = RunConfig(
        checkpoint=arguments.checkpoint,
        output=arguments.output or _beside(arguments.checkpoint),
        search=SearchConfig(**settings),
        finetune=finetune,
        **{field.name: given[field.name] for field in fields(RunConfig) if field.name in _PLAIN},
    )
    if arguments.dry_run:
        with _Display() as display:
            from .preview import preview

            understood = preview(config, display.progress)
        _show_preview(understood, arguments.json)
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
    return 0


_DEMO = ("output", "seed", "device", "json")
_PLAIN = (
    "data", "target_sparsity", "target_flops", "target_latency", "targets", "layer_floor", "criterion", "joins",
    "round_to", "round_fill", "fuse", "arch", "masks", "plan", "unsupervised", "identification_epochs", "bias_noise",
    "stratified", "budget_weight", "sweep", "probe", "resume", "device", "batch_size", "trust_pickle", "mean", "std",
    "size",
)  # fmt: skip


def _beside(checkpoint: Path) -> Path:
    """Where results go if nothing is said."""
    place = checkpoint.resolve() if checkpoint.is_dir() else checkpoint
    return place.with_name(f"{place.name if checkpoint.is_dir() else place.stem}-slim")


def _show_preview(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(record))
        return
    from rich.console import Console

    from .preview import preview_tables

    Console().print(preview_tables(record))


def _show_frontier(record: dict[str, Any], output: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(record))
        return
    from rich.console import Console

    from .report import frontier_table

    Console().print(frontier_table(record))
    print(f"written to {output}: frontier.json, and a folder with all results for each target")


def _show(record: dict[str, Any], output: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(record))
        return
    from rich.console import Console

    from .report import comparison_table

    console = Console()
    console.print(comparison_table(record))
    check = record["verification"]["slim_against_masked"]
    print(
        f"sparsity {record['sparsity']:.1%} of the parameters; slim equals masked to {check['max_abs_error']:.1e} "
        f"(float64 logits); selection: {record['selection']['rule']}"
    )
    for warning in record["warnings"]:
        print(f"warning: {warning}")
    print(f"written to {output}: masks.safetensors, plan.json, slim.safetensors, slim.onnx, slim.pt2, report.json")


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
