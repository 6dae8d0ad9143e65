"""Whether weights alone tell the architecture: every image classifier of torchvision, dense and slim.

    python benchmarks/architectures.py                     all; rows of a record that is there are kept
    python benchmarks/architectures.py --names resnet18 "googlenet(aux_logits=False)"
    python benchmarks/architectures.py --markdown          docs/pages/evidence/architectures.md from the record

Protocol: each network has seven classes and random weights, in float32 and at full size; batch-norm statistics are
those of two random images, for with random ones some networks hardly see their input. Dense: the bare state dict is
saved as weights.pt and loaded without naming the architecture. Slim: random masks close 40 % of the channels in the
paper's placement, tensors of different widths are expanded, and the slim network, with the architecture that was told
from the dense weights, is saved and loaded as safetensors. Error = largest logit difference to the network that was
saved, on the two images; spread = that between the images. Each network has a process of its own, on one thread; a
slim half that takes more than two minutes is left out. Writes benchmarks/records/architectures.json.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import tempfile
import textwrap
import time
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torchvision
from records import RECORDS, base_record
from removal import random_masks, scramble, settle, torchvision_names
from torch import Tensor, nn

from bise_prune import load_model, load_slim, prune, save_slim
from bise_prune.checkpoint import Checkpoint, load_checkpoint
from bise_prune.errors import CheckpointError
from bise_prune.files import write_json
from bise_prune.models import identify_architecture, parse_architecture

CLASSES, SHARE = 7, 0.4
LIMITS_S = {"dense": 600, "slim": 120}
# Built with auxiliary heads by default; googlenet drops them where published weights are loaded.
WITH_HEADS = ("googlenet", "inception_v3")
PAGE = RECORDS.parents[1] / "docs" / "pages" / "evidence" / "architectures.md"
RECORD_URL = "https://github.com/bise-prune/bise-prune/blob/main/benchmarks/records/architectures.json"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", metavar="NAME", help="only these, anew")
    parser.add_argument("--output", type=Path, default=RECORDS / "architectures.json")
    parser.add_argument(
        "--markdown", action="store_true", help="write docs/pages/evidence/architectures.md from the record"
    )
    arguments = parser.parse_args(argv)
    if arguments.markdown:
        PAGE.write_text(markdown(json.loads(arguments.output.read_text())))
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    protocol = (__doc__ or "").split("Protocol: ")[1].split(" Writes")[0]
    record = base_record([0], " ".join(protocol.split()), "cpu") | {"first_look_s": _first_look(), "rows": {}}
    if arguments.output.exists():
        record["rows"] = json.loads(arguments.output.read_text())["rows"]
    names = [name for name in torchvision_names() if name not in WITH_HEADS]
    names += [f"{name}(aux_logits={heads})" for name in WITH_HEADS for heads in (False, True)]
    for name in arguments.names or names:
        if name not in record["rows"] or arguments.names:
            record["rows"][name] = _row(name)
            print(f"{name:32s} {json.dumps(record['rows'][name])}", flush=True)
            write_json(arguments.output, record)
    print(json.dumps(totals(record["rows"])))


def _first_look() -> float:
    """Seconds in which all architectures are gone through in vain."""
    start = time.perf_counter()
    with suppress(CheckpointError):
        identify_architecture({"of no network": torch.zeros(1)})
    return time.perf_counter() - start


def _row(name: str) -> dict[str, Any]:
    context = multiprocessing.get_context("fork")
    row: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_send_halves, args=(name, Path(folder), sender))
        process.start()
        sender.close()
        for half, limit in LIMITS_S.items():
            try:
                row[half] = receiver.recv() if receiver.poll(limit) else {"left_out": f"takes more than {limit} s"}
            except EOFError:
                process.join()
                row[half] = {"failed": f"the process ended with exit code {process.exitcode}"}
            if "max_abs_error" not in row[half]:
                break
        process.kill()
        process.join()
    return row


def _send_halves(name: str, folder: Path, sender: Connection) -> None:
    try:
        dense, model, checkpoint, images = _dense(name, folder / "weights.pt")
        sender.send(dense)
        (folder / "weights.pt").unlink()
        sender.send(_slim(model, checkpoint, images, folder / "slim.safetensors"))
    except Exception as error:  # one network's; the others go on
        sender.send({"failed": f"{type(error).__name__}: {error}".replace(f"{folder}/", "")})


def _dense(name: str, path: Path) -> tuple[dict[str, Any], nn.Module, Checkpoint, Tensor]:
    """The dense half, and for the slim one the network as it was loaded; by its name if need be."""
    arch, given = parse_architecture(name)
    if arch in WITH_HEADS:
        given["init_weights"] = False  # quicker
    torch.manual_seed(0)
    model = torchvision.models.get_model(arch, weights=None, num_classes=CLASSES, **given)
    scramble(model)
    size = 224 if arch.startswith(("vit", "maxvit")) else 96 if arch == "inception_v3" else 64
    images = torch.randn(2, 3, size, size)
    row: dict[str, Any] = {"params": sum(p.numel() for p in model.parameters()), "image": size}
    settle(model, images)
    with torch.no_grad():
        expected = model(images)
    torch.save(dict(model.state_dict()), path)  # not an OrderedDict with its modules' versions
    del model
    start = time.perf_counter()
    try:
        loaded, found = load_model(path)
        row |= {"told": found.arch, "num_classes": found.num_classes}
        row["right"] = (found.arch, found.num_classes) == (arch, CLASSES)
    except CheckpointError as error:
        several = re.search(r"several fit \((.*?)\)", str(error))
        row |= {"candidates": several[1].split(", ")} if several else {"not_told": str(error)}
        start = time.perf_counter()
        loaded, found = load_model(path, name)
    row["seconds"] = time.perf_counter() - start
    return row | _difference(loaded, expected, images), loaded, found, images


def _slim(model: nn.Module, dense: Checkpoint, images: Tensor, path: Path) -> dict[str, Any]:
    start = time.perf_counter()
    masks = random_masks(model, images, "paper", SHARE)
    result = prune(model, masks, images, joins="expand", batch_sizes=(2,))
    with torch.no_grad():
        expected = result.model(images)
    save_slim(path, result.model, dense, result.plan)
    arch = load_checkpoint(path).arch
    figures = {
        "arch": arch,
        "right": arch == dense.arch,
        "closed": masks.num_closed / masks.num_channels,
        "sparsity": result.plan.sparsity,
        "edited_calls": len(result.plan.edits),
    }
    figures |= _difference(load_slim(path), expected, images)
    return figures | {"seconds": time.perf_counter() - start}


def _difference(model: nn.Module, expected: Tensor, images: Tensor) -> dict[str, float]:
    with torch.no_grad():
        error = (model(images) - expected).abs().max()
    return {"max_abs_error": float(error), "spread": float((expected[0] - expected[1]).abs().max())}


def totals(rows: dict[str, Any]) -> dict[str, int]:
    dense, slim = ([row[half] for row in rows.values() if half in row] for half in LIMITS_S)
    return {
        "networks": len(rows),
        "told": sum(half.get("right", False) and half["max_abs_error"] == 0 for half in dense),
        "ambiguous": sum("candidates" in half for half in dense),
        "not told": sum("not_told" in half for half in dense),
        "slim": sum(half.get("right", False) and half["max_abs_error"] == 0 for half in slim),
        "slim left out": sum("left_out" in half for half in slim),
        "failed": sum("failed" in half for half in [*dense, *slim]),
    }


def markdown(record: dict[str, Any]) -> str:
    """The record as a page, a row a network."""
    rows, count = record["rows"], totals(record["rows"])
    outcome = (
        f"**Outcome.** Of {count['networks']} networks, {count['told']} are recognised from their weights, with the "
        f"right number of classes and exactly the same logits; {count['ambiguous']} are ambiguous and "
        f"{count['not told']} are not recognised. Of the slim networks, {count['slim']} come back from their files "
        f"with exactly the same logits, and {count['slim left out']} was left out because of the time limit; "
        f"{count['failed']} failed (commit {record['commit']}). Trying all architectures on weights that fit none "
        f"takes {record['first_look_s']:.1f} s."
    )
    how = (
        "**How it was measured.** Each network has seven classes and random weights, in float32 and at its full size. "
        "The statistics of batch norms are those of two random images. The dense network is saved as a bare state "
        "dict and loaded without naming its architecture. For the slim network, random masks close 40 % of the "
        "channels in the paper's placement, with the lowering `expand`; it is then saved and loaded as safetensors. "
        "Each network runs in a process of its own on one thread. A slim network that takes more than two minutes is "
        "left out."
    )
    columns = (
        '**Columns.** "Recognised as" is the architecture that the dense weights were taken for. "Error" is the '
        'largest difference between the logits before saving and after loading, on the two images, and "spread" is the '
        'largest difference between the logits of the two images. "Seconds" is the time for loading the dense file, or '
        'for pruning, saving and loading the slim one, while other work ran on the machine. "Changed calls" counts the '
        "function calls that pruning had to change. A slim file names its architecture, because its widths no longer "
        "tell it."
    )
    limits = (
        "**Limits.** Settings that leave no trace in the weights cannot be recognised, for example `transform_input`, "
        "which torchvision switches on for published weights of googlenet and inception_v3. These two have auxiliary "
        "classifier heads when torchvision builds them untrained, inception_v3 also with published weights."
    )
    lines = ["# Architectures recognised from the weights", ""]
    lines += textwrap.wrap(
        "This page answers which of torchvision's classifiers bise-prune recognises from their weights alone. It is "
        f"written by `python benchmarks/architectures.py --markdown` from [the record]({RECORD_URL}), which was made "
        "by "
        f"`{record['command']}`.", 120, break_on_hyphens=False,
    )  # fmt: skip
    for text in (outcome, how, columns, limits):
        lines += ["", *textwrap.wrap(text, 120, break_on_hyphens=False)]
    heads = ("network", "parameters, millions", "recognised as", "spread", "error", "seconds")
    heads += ("slim: sparsity, %", "changed calls", "spread", "error", "seconds")
    lines += ["", f"| {' | '.join(heads)} |", "| --- | ---: | --- |" + " ---: |" * 8]
    return "\n".join([*lines, *(_markdown_row(name, rows[name]) for name in sorted(rows))]) + "\n"


def _markdown_row(name: str, row: dict[str, Any]) -> str:
    dense, slim = row["dense"], row.get("slim", {})
    told = dense.get("told") or "one of " * ("candidates" in dense) + ", ".join(dense.get("candidates", ["no"]))
    cells = [f"{dense['params'] / 1e6:.1f}", told] if "params" in dense else ["", ""]
    cells += _cells(dense)
    cells += [f"{slim['sparsity'] * 100:.1f}", str(slim["edited_calls"])] if "sparsity" in slim else ["", ""]
    return f"| {name} | {' | '.join([*cells, *_cells(slim)])} |"


def _cells(half: dict[str, Any]) -> list[str]:
    """Spread, error and seconds, or why there are none."""
    if "seconds" not in half:
        return ["", half.get("failed") or half.get("left_out", ""), ""]
    return [f"{half['spread']:.2g}", f"{half['max_abs_error']:.0e}", f"{half['seconds']:.1f}"]


if __name__ == "__main__":
    main()
