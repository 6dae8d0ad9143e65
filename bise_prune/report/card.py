"""The model card of a slim network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .ladder import CHANGES, ladder_rows, ladder_sentence
from .rendering import FEW_SAMPLES, write_text
from .verdict import verdict_sentence


def write_card(path: Path, record: Mapping[str, Any]) -> None:
    """Write the model card: Markdown with a header that the Hugging Face hub reads.

    Args:
        path: file to write.
        record: report record of the run.
    """
    from huggingface_hub import EvalResult, ModelCardData

    task = "text-classification" if "inputs" in record["data"]["preprocessing"] else "image-classification"
    data = record["data"]["specification"]
    results = [
        EvalResult(
            task_type=task,
            dataset_type=data.partition(":")[0],
            dataset_name=data,
            dataset_split=record["evaluated_on"],
            metric_type="accuracy",
            metric_name=name,
            metric_value=round(record["slim"][key], 4),
        )
        for name, key in (
            ("accuracy", "accuracy"),
            ("unbiased accuracy (mean over subgroups)", "unbiased_accuracy"),
            ("worst-group accuracy", "worst_group_accuracy"),
        )
    ]
    about = ModelCardData(
        library_name="bise-prune",
        pipeline_tag=task,
        tags=["pruning", "debiasing", "fairness", "onnx"],
        model_name=f"{Path(record['config']['checkpoint']).stem}, slim",
        eval_results=results,
    )
    sentence = verdict_sentence(record)
    rungs: dict[str, Any] = {"ladder": None, "delivered": None, "changed": ""}
    if record["ladder"]:
        (delivered,) = (row for row in record["ladder"]["rows"] if row["delivered"])
        rungs = {
            "ladder": ladder_rows(record["ladder"]),
            "ladder_words": ladder_sentence(record),
            "delivered": delivered,
            "changed": " and ".join(CHANGES[change] for change in delivered["changes"]),
        }
    write_text(path, "card.md.jinja", r=record, verdict=sentence, head=about.to_yaml(), few=FEW_SAMPLES, **rungs)
