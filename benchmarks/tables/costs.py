"""The section on cost: what was measured, the growth that fits it, and where that leads."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

IMAGES, MASK_EPOCHS, HEAD_EPOCHS, VANILLA_EPOCHS = 1_281_167, 100, 550, 90
PHASES = 11  # of the head, with features of their own


def power_law(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The a and b of y = a x^b, by least squares on the logarithms.

    >>> [round(value, 6) for value in power_law([1, 2, 4], [3, 6, 12])]
    [3.0, 1.0]
    """
    u, v = [math.log(value) for value in x], [math.log(value) for value in y]
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    slope = sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / sum((a - mean_u) ** 2 for a in u)
    return math.exp(mean_v - slope * mean_u), slope


def cost_section(folder: Path) -> list[str]:
    """Tables of the record, fits, and the extrapolation, marked as one."""
    record = json.loads((folder / "cost.json").read_text())
    steps, searches = record["steps"], record["searches"]
    lines = [
        *textwrap.wrap(
            "Measured on one CPU thread "
            "([record](https://github.com/bise-prune/bise-prune/blob/main/benchmarks/records/cost.json), `python "
            "benchmarks/cost.py`). A mask step compared with a vanilla training step on the same batch:",
            120,
        ),
        "",
        *_table(
            ("", "MFLOPs", "vanilla step, s", "mask step, s", "time", "memory"),
            [
                [
                    f"{row['network']}, {row['size']}x{row['size']}, batch {row['batch']}", f"{row['flops'] / 1e6:.0f}",
                    f"{row['vanilla_step_seconds']:.3f}", f"{row['mask_step_seconds']:.3f}",
                    f"x {row['time_ratio']:.2f}", f"x {row['memory_ratio']:.2f}",
                ]
                for row in steps
            ],
        ),
        *textwrap.wrap(
            "A whole search compared with vanilla training (16 epochs of the demo's network, 2 of another), on digits "
            "of 16x16. The default search learns on half of the validation images, and the paper's (20 mask epochs) on "
            "the training images:",
            120,
        ),
        "",
        *_table(
            (
                "network", "training images", "search", "vanilla, CPU s", "search, CPU s", "search, in vanilla epochs",
                "process peak after vanilla", "after the search",
            ),
            [
                [
                    "the demo's" if row["network"] == "demo" else row["network"],
                    f"{row['samples']:,}", "default" if row["search"] == "gradual" else "the paper's",
                    f"{row['vanilla_cpu_seconds']:.0f}", f"{row['search_cpu_seconds']:.0f}",
                    f"{row['vanilla_epochs'] * row['search_cpu_seconds'] / row['vanilla_cpu_seconds']:.1f}",
                    f"{row['vanilla_peak_bytes'] / 1e6:.0f} MB", f"{row['search_peak_bytes'] / 1e6:.0f} MB",
                ]
                for row in searches
            ],
        ),
        "The removal (plan, surgery, verification in float64, batch-norm fusion) and the ONNX export at 224x224, once "
        "per network:",
        "",
        *_table(
            ("", "removal, CPU s", "export, CPU s"),
            [
                [row["network"], f"{row['removal_cpu_seconds']:.1f}", f"{row['export_cpu_seconds']:.1f}"]
                for row in record["removals"]
            ],
        ),
    ]  # fmt: skip
    return lines + _extrapolated(record)


def _extrapolated(record: dict[str, Any]) -> list[str]:
    rows = [row for row in record["steps"] if row["batch"] == 16]
    fits = {
        kind: power_law([row["flops"] for row in rows], [row[f"{kind}_step_seconds"] / row["batch"] for row in rows])
        for kind in ("vanilla", "mask")
    }
    of_paper = [row for row in record["searches"] if row["search"] == "paper"]
    _, by_data = power_law([row["samples"] for row in of_paper], [row["search_cpu_seconds"] for row in of_paper])
    worst = max(
        abs(math.log(row[f"{kind}_step_seconds"] / row["batch"] / (a * row["flops"] ** b)))
        for kind, (a, b) in fits.items()
        for row in rows
    )
    about = record["imagenet"]
    seconds = {kind: a * about["flops"] ** b for kind, (a, b) in fits.items()}
    search = MASK_EPOCHS * IMAGES * seconds["mask"]
    forward = PHASES * IMAGES * seconds["vanilla"] / 3  # a training step is some three forward passes
    heads = forward + HEAD_EPOCHS * IMAGES * about["head_cpu_seconds_per_sample"]
    vanilla = VANILLA_EPOCHS * IMAGES * seconds["vanilla"]
    ratio = (search + heads) / vanilla
    text = (
        f"Growth: the seconds per sample grow with the FLOPs to the power {fits['vanilla'][1]:.2f} for vanilla steps "
        f"and {fits['mask'][1]:.2f} for mask steps. A whole search of the paper grows with the number of "
        f"samples to the power {by_data:.2f}. No measured step is further than {worst:.0%} from these fits."
    )
    far = (
        f"**Extrapolated, not measured**: for {IMAGES:,} images and a ResNet-50 at 224x224 "
        f"({about['flops'] / 1e9:.1f} GFLOPs), the paper's whole schedule ({MASK_EPOCHS} mask epochs, {HEAD_EPOCHS} "
        f"epochs of the auxiliary head, no early stop) would take {ratio:.1f} times as long as {VANILLA_EPOCHS} "
        f"epochs of vanilla training; the auxiliary head takes {heads / (search + heads):.0%} of it. On several GPUs, "
        f"a mask step sums the gradients of {about['gates']:,} gates ({4 * about['gates'] / 1e6:.2f} MB), where "
        f"training sums the gradients of all weights ({4 * about['params'] / 1e6:.0f} MB), so communication does not "
        "limit it. The auxiliary head trains on features that are computed once per temperature; its epochs could be "
        "reduced first (they hardly matter, Appendix H of the paper)."
    )
    return [*textwrap.wrap(text, 120), "", *textwrap.wrap(far, 120), ""]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---"] + ["---:"] * (len(header) - 1)
    return [*(f"| {' | '.join(line)} |" for line in (header, marks, *rows)), ""]
