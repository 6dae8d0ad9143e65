"""The report of a run as one HTML page, with its plots and sample images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..data import BiasedDataset
from .ladder import ladder_rows, ladder_sentence
from .plots import Line, plot
from .rendering import FEW_SAMPLES, write_text
from .verdict import verdict_of, verdict_sentence

_LARGEST = 96  # pixels of a thumbnail's longer side


def write_page(path: Path, record: Mapping[str, Any], images: Mapping[int, str]) -> None:
    """Write the report of a run as one HTML file that needs no other files.

    Args:
        path: file to write.
        record: report record, as in ``report.json``.
        images: sample images by row, as :func:`pictures` returns them.
    """
    outcome: dict[str, Any] = {"verdict": verdict_of(record["fairness"]).value, "sentence": verdict_sentence(record)}
    outcome["ladder"] = None
    if record["ladder"]:
        outcome |= {"ladder": ladder_rows(record["ladder"]), "ladder_words": ladder_sentence(record)}
    write_text(path, "report.html.jinja", r=record, images=images, plots=_plots(record), few=FEW_SAMPLES, **outcome)


def pictures(record: Mapping[str, Any], data: BiasedDataset) -> dict[int, str]:
    """Thumbnails of the samples that a report shows, as data URIs by row; none unless the inputs are uint8 images.

    Args:
        record: report record, whose ``changed_samples`` are shown.
        data: held-out split that the samples come from.
    """
    if not isinstance(data.inputs, Tensor) or data.inputs.ndim != 4 or data.inputs.shape[1] not in (1, 3):
        return {}
    if data.inputs.is_floating_point():
        return {}
    found = {}
    for sample in record["changed_samples"]:
        pixels = data.inputs[sample["row"]].permute(1, 2, 0).cpu().numpy()
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
        kind = "PNG" if max(image.size) <= _LARGEST // 2 else "JPEG"
        image.thumbnail((_LARGEST, _LARGEST))
        file = io.BytesIO()
        image.save(file, kind, quality=85)
        found[sample["row"]] = f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
    return found


def _plots(record: Mapping[str, Any]) -> dict[str, str]:
    """The plots of the page by name, as SVG: accuracy against sparsity, and the figures of the search by epoch."""
    made = {}
    if record["curve"]:
        points = record["curve"]
        x = [None if p["sparsity"] is None else 100 * p["sparsity"] for p in points]
        lines = [Line("accuracy", x, [100 * p["accuracy"] for p in points]),
                 Line("unbiased accuracy", x, [100 * p["unbiased_accuracy"] for p in points]),
                 Line("worst subgroup", x, [100 * p["worst_group_accuracy"] for p in points])]  # fmt: skip
        gaps = [_gap(p) for p in points]
        if any(gap is not None for gap in gaps):
            lines.append(Line("aligned - conflicting", x, gaps))
        here = (100 * record["sparsity"], "this network")
        words = "Accuracies against sparsity as the threshold zeta on the masks moves; the table below has its numbers."
        made["curve"] = plot("curve", words, lines, "parameters gone, %", "%, masked network", mark_x=here)
    if record["history"]:
        epochs = [e["epoch"] for e in record["history"]]

        def line(label: str, key: str, scale: float = 1) -> Line:
            """One figure of the search by epoch."""
            return Line(label, epochs, [scale * e[key] for e in record["history"]])

        made["losses"] = plot(
            "losses", "Loss terms of the search by epoch.",
            [line("cross-entropy", "cross_entropy"), line("mutual information", "mutual_information"),
             line("head's cross-entropy", "head_cross_entropy")], "epoch", "loss term",
        )  # fmt: skip
        made["flips"] = plot(
            "flips", "Masks that flipped and masks that are closed, by epoch.",
            [line("flipped", "mask_flips"), line("closed", "closed")], "epoch", "masks",
        )  # fmt: skip
        made["silent"] = plot(
            "silent", "Share of batches on which the mutual information is silent, by epoch.",
            [line("silent batches", "silent_share", 100)], "epoch", "%",
        )  # fmt: skip
        if all(e["temperature"] is not None for e in record["history"]):
            made["temperature"] = plot(
                "temperature", "Temperature by epoch.", [line("temperature", "temperature")], "epoch", "temperature",
                log_y=True,
            )  # fmt: skip
        if all(e["cost"] is not None for e in record["history"]):
            made["cost"] = plot(
                "cost", "Cost of the masked network by epoch, of the dense network's.", [line("cost", "cost", 100)],
                "epoch", "%",
            )  # fmt: skip
        validated = [e["validation"] for e in record["history"]]
        if all(validated):
            made["validation"] = plot(
                "validation", "Validation accuracies of the masked network by epoch.",
                [Line(label, epochs, [100 * v[key] for v in validated])
                 for label, key in (("accuracy", "accuracy"), ("unbiased accuracy", "unbiased_accuracy"),
                                    ("worst subgroup", "worst_group_accuracy"))], "epoch", "%",
                mark_x=(record["selection"]["epoch"], "epoch of these masks"),
            )  # fmt: skip
    return made


def _gap(point: Mapping[str, Any]) -> float | None:
    """Accuracy on bias-aligned minus accuracy on bias-conflicting samples, in percentage points; None if unknown."""
    sides = point["aligned_accuracy"], point["conflicting_accuracy"]
    return None if None in sides else 100 * (sides[0] - sides[1])
