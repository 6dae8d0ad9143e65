"""The export stage: it writes the slim network in every form that was asked for, and checks each of them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ...checkpoint.networks import save_slim
from ...config import RunConfig
from ...export.image_input import AsImages
from ...export.onnx_file import export_onnx
from ...export.precision import half_overflow, write_half, write_int8
from ...export.program import export_program
from ...export.runtime import onnx_latencies, onnx_predictions, open_session
from ...export.triton import write_repository
from ...metrics.accuracy import Evaluation
from ...pruning.plan import PruningPlan
from ...pruning.verification import Verification
from ...report.files import HALF_FILE, IMAGES_FILE, INT8_FILE, ONNX_FILE, PLAN_FILE, PROGRAM_FILE, SLIM_FILE
from ...report.record import preprocessing_record
from ...report.results import LATENCY_BATCHES, ExportedFile
from ..checks import model_name
from ..session import Session
from .widths import exported


def export_all(
    session: Session, slim: nn.Module, plan: PruningPlan, accuracy: Evaluation
) -> tuple[dict[str, Verification], list[ExportedFile]]:
    """Write the slim network and its plan into the output folder of the run.

    Args:
        session: inputs of the run.
        slim: slim network.
        plan: plan by which channels were removed.
        accuracy: accuracies of the slim network, with which those of files in lower precision are compared.

    Returns:
        Comparisons of the exported files with the network by name, and the ONNX files, slim.onnx first.

    Raises:
        VerificationError: slim.onnx or slim.pt2 computes something else.
    """
    config, example, output, fused = session.config, session.example, session.config.output, exported(session, slim)
    metadata = _onnx_metadata(session, plan)
    output.mkdir(parents=True, exist_ok=True)
    plain = output / ONNX_FILE
    checks = {
        "onnx_against_slim": export_onnx(fused, plain, example, metadata=metadata, opset=config.opset),
        "program_against_slim": export_program(fused, output / PROGRAM_FILE, example),
    }
    made: dict[Path, dict[str, Any]] = {plain: {"precision": "float32"}}
    if config.half:
        write_half(plain, output / HALF_FILE)
        overflow = half_overflow(fused, session.held_out[1], config.search.seed)
        made[output / HALF_FILE] = {"precision": "float16", "refused": overflow}
    if config.int8:
        sample = write_int8(plain, output / INT8_FILE, session.splits.train, config.search.seed)
        made[output / INT8_FILE] = {"precision": "int8", "details": {"calibration": sample}}
    if config.image_input:
        path, train = output / IMAGES_FILE, session.splits.train
        assert isinstance(train.inputs, Tensor)  # checked before the search
        images = train.inputs[:2].permute(0, 2, 3, 1).contiguous()
        wrapped = AsImages(fused, train.mean, train.std)
        about = {**metadata, "input": "uint8 (N, height, width, channels)", "output": "probabilities"}
        checks["images_against_slim"] = export_onnx(
            wrapped, path, images, metadata=about, opset=config.opset, output_name="probabilities"
        )
        made[path] = {"precision": "float32", "details": {"input": "uint8 images"}}
    files = _judged(session, made, accuracy)
    _save(session, slim, plan)
    return checks, files


def export_dense(session: Session, path: Path) -> Path:
    """Write the dense network as an ONNX file, in the way in which the slim network is exported.

    Args:
        session: inputs of the run.
        path: file to write.

    Returns:
        The file.

    Raises:
        ConfigError: the network cannot be written in the operator set of the settings.
        ModelError: torch cannot export the network.
        VerificationError: the exported network computes something else.
    """
    dense = exported(session, session.dense)
    export_onnx(dense, path, session.example, metadata=_onnx_metadata(session), opset=session.config.opset)
    return path


def publish(session: Session) -> None:
    """Add the dense and the slim network to the Triton repository of the settings, if there is one."""
    config = session.config
    if config.triton is not None:
        assert session.dense_file is not None
        versions = [session.dense_file, config.output / ONNX_FILE]
        write_repository(config.triton, model_name(config.checkpoint), versions, session.splits.classes)


def _onnx_metadata(session: Session, plan: PruningPlan | None = None) -> dict[str, str]:
    """Metadata of an ONNX file, for a slim network with its plan; without paths or names of the machine."""
    crop = session.checkpoint.preprocessing.get("crop")
    about = {
        "sparsity": "0" if plan is None else f"{plan.sparsity:.6f}",
        "source_sha256": session.checkpoint.sha256,
        "preprocessing": json.dumps(preprocessing_record(session.splits.train, crop)),
        "classes": json.dumps(list(session.splits.classes)),
    }
    return about if plan is None else {**about, "plan_fingerprint": plan.fingerprint}


def _save(session: Session, slim: nn.Module, plan: PruningPlan) -> None:
    """Write slim.safetensors, which can be finetuned, and the plan."""
    completed = dataclasses.replace(
        session.checkpoint,
        data=None,
        preprocessing=preprocessing_record(session.splits.train, session.checkpoint.preprocessing.get("crop")),
        classes=tuple(session.splits.classes) or session.checkpoint.classes,
    )
    save_slim(session.config.output / SLIM_FILE, slim, completed, plan)
    plan.save(session.config.output / PLAN_FILE)


def _judged(session: Session, made: Mapping[Path, Mapping[str, Any]], accuracy: Evaluation) -> list[ExportedFile]:
    """Measure size, latency and accuracy of each ONNX file; files in lower precision that lose too much are deleted."""
    held_out = session.held_out[1]
    latencies = onnx_latencies(list(made), held_out, LATENCY_BATCHES[-1])
    files = []
    for (path, about), latency in zip(made.items(), latencies, strict=True):
        found = session.scored(onnx_predictions(path, held_out, as_images=path.name == IMAGES_FILE))
        refused = about.get("refused")
        if about["precision"] != "float32":
            refused = _refusal(f"{path.name} ({about['precision']})", refused, accuracy, found, session.config)
        files.append(
            ExportedFile(
                name=path.name,
                precision=about["precision"],
                opset=int(open_session(path).get_modelmeta().custom_metadata_map["opset"]),
                size_bytes=path.stat().st_size,
                latency=latency,
                evaluation=found,
                refused=refused,
                details=about.get("details", {}),
            )
        )
        if refused is not None:
            path.unlink()
    return files


def _refusal(name: str, unfit: str | None, network: Evaluation, file: Evaluation, config: RunConfig) -> str | None:
    """The reason to refuse a file: it is unfit, or its accuracy falls by more than the tolerance; None to keep it."""
    if unfit is not None:
        return f"{name}: {unfit}"
    drops = {
        "accuracy": (network.accuracy, file.accuracy),
        "unbiased accuracy": (network.unbiased_accuracy, file.unbiased_accuracy),
        "worst group accuracy": (network.worst_group_accuracy, file.worst_group_accuracy),
    }
    figure, (before, after) = max(drops.items(), key=lambda drop: drop[1][0] - drop[1][1])
    if before - after <= config.format_tolerance + 1e-9:
        return None
    return (
        f"{name} loses {before - after:.1%} of {figure} ({before:.1%} to {after:.1%}), allowed "
        f"{config.format_tolerance:.1%} (--format-tolerance)"
    )
