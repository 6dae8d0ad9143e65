"""What a run hands over: the slim network in every form asked for, each one checked before it takes its name."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..data import BiasedDataset
from ..export.image_input import AsImages
from ..export.onnx_file import export_onnx
from ..export.precision import half_overflow, write_half, write_int8
from ..export.program import export_program
from ..export.runtime import onnx_latencies, onnx_predictions, open_session
from ..export.triton import write_repository
from ..metrics.accuracy import Evaluation
from ..pruning.plan import PruningPlan
from ..report.files import HALF_FILE, IMAGES_FILE, INT8_FILE, ONNX_FILE, PROGRAM_FILE
from ..report.record import evaluation_record
from .findings import preprocessing_record
from .session import Session, model_name

LATENCY_BATCH = 16
_JUDGED = ("accuracy", "unbiased_accuracy", "worst_group_accuracy")


def onnx_metadata(session: Session, plan: PruningPlan | None = None) -> dict[str, str]:
    """What an ONNX file says of itself, of a slim network with its plan: no path, no name of the machine."""
    about = {
        "sparsity": "0" if plan is None else f"{plan.sparsity:.6f}",
        "source_sha256": session.checkpoint.sha256,
        "preprocessing": json.dumps(preprocessing_record(session.splits.train)),
        "classes": json.dumps(list(session.splits.classes)),
    }
    return about if plan is None else {**about, "plan_fingerprint": plan.fingerprint}


def deliver(session: Session, slim: nn.Module, plan: PruningPlan, accuracy: Evaluation) -> dict[str, Any]:
    """Write the programs of a run into its folder.

    Args:
        session: the run.
        slim: the slim network, batch norms folded or not.
        plan: what was removed.
        accuracy: of the slim network, by which its other precisions are judged.

    Returns:
        ``verification`` of slim.onnx and slim.pt2 against the network, and ``formats``: per ONNX file its size,
        latency and accuracies, and why it was refused, if it was.

    Raises:
        VerificationError: slim.onnx or slim.pt2 computes something else.
    """
    config, example, output = session.config, session.example, session.config.output
    metadata = onnx_metadata(session, plan)
    output.mkdir(parents=True, exist_ok=True)
    plain = output / ONNX_FILE
    checks = {
        "onnx_against_slim": export_onnx(slim, plain, example, metadata=metadata, opset=config.opset),
        "program_against_slim": export_program(slim, output / PROGRAM_FILE, example),
    }
    made: list[tuple[Path, dict[str, Any]]] = [(plain, {"precision": "float32"})]
    if config.half:
        write_half(plain, output / HALF_FILE)
        overflow = half_overflow(slim, session.held_out[1], config.search.seed)
        made.append((output / HALF_FILE, {"precision": "float16", "refused": overflow}))
    if config.int8:
        sample = write_int8(plain, output / INT8_FILE, session.splits.train, config.search.seed)
        made.append((output / INT8_FILE, {"precision": "int8", "calibration": sample}))
    if config.image_input:
        train = session.splits.train
        assert isinstance(train.inputs, Tensor)  # checked before the search
        images = train.inputs[:2].permute(0, 2, 3, 1).contiguous()
        wrapped = AsImages(slim, train.mean, train.std)
        about = {**metadata, "input": "uint8 (N, height, width, channels)", "output": "probabilities"}
        path = output / IMAGES_FILE
        checks["images_against_slim"] = export_onnx(
            wrapped, path, images, metadata=about, opset=config.opset, output_name="probabilities"
        )
        made.append((path, {"precision": "float32", "input": "uint8 images"}))
    return {
        "verification": {name: {**dataclasses.asdict(check), "passed": check.passed} for name, check in checks.items()},
        "formats": _judged(session, made, accuracy),
    }


def publish(session: Session, dense: nn.Module) -> None:
    """Add dense and slim network to the Triton repository of the run; the last thing that it does."""
    config = session.config
    if config.triton is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        versions = [Path(folder) / "dense.onnx", config.output / ONNX_FILE]
        about = onnx_metadata(session)
        export_onnx(dense, versions[0], session.example, metadata=about, opset=config.opset)
        write_repository(config.triton, model_name(config.checkpoint), versions, session.splits.classes)


def _judged(session: Session, made: list[tuple[Path, dict[str, Any]]], accuracy: Evaluation) -> list[dict[str, Any]]:
    """Size, latency and accuracy of each file; other precisions that fall too far behind are taken away again."""
    held_out: BiasedDataset = session.held_out[1]
    latencies = onnx_latencies([path for path, _ in made], held_out, LATENCY_BATCH)
    records = []
    for (path, about), latency in zip(made, latencies, strict=True):
        found = session.scored(onnx_predictions(path, held_out, as_images=path.name == IMAGES_FILE))
        record = {
            "file": path.name,
            "refused": None,
            **about,
            "opset": int(open_session(path).get_modelmeta().custom_metadata_map["opset"]),
            "size_bytes": path.stat().st_size,
            "latency_ms": latency.median_ms,
            "latency": dataclasses.asdict(latency),
            "latency_ratio": latency.median_ms / latencies[0].median_ms,
            **evaluation_record(found),
        }
        if record["precision"] != "float32":
            record["refused"] = _refused(evaluation_record(accuracy), record, session.config.format_tolerance)
        if record["refused"] is not None:
            path.unlink()
        records.append(record)
    return records


def _refused(network: Mapping[str, Any], file: Mapping[str, Any], tolerance: float) -> str | None:
    """Why a file is not handed over: it falls behind the network by more than the tolerance, or is unfit anyway."""
    name = f"{file['file']} ({file['precision']})"
    if file["refused"] is not None:
        return f"{name}: {file['refused']}"
    drops = {figure: network[figure] - file[figure] for figure in _JUDGED}
    worst = max(drops, key=lambda figure: drops[figure])
    if drops[worst] <= tolerance + 1e-9:
        return None
    return (
        f"{name} loses {drops[worst]:.1%} of {worst.replace('_', ' ')} ({network[worst]:.1%} to {file[worst]:.1%}), "
        f"allowed {tolerance:.1%} (--format-tolerance)"
    )
