"""What can be removed from networks of timm and Hugging Face, a row a model, by default and with streams.

    python benchmarks/other_networks.py                     all; rows of a record that is there are kept
    python benchmarks/other_networks.py --models gpt2 convnextv2_atto
    python benchmarks/other_networks.py --markdown          docs/pages/evidence/other-networks.md from the record

Small networks with random weights, statistics of their inputs, and gains and offsets that are not 0 or 1. For each
share, that part of every mask is closed at random, at least one entry stays open, and the slim network is compared
with the masked one in float64 at batches 1 and 7; images also at another resolution, texts at another length, where
the network takes them. At half, slim network and ONNX file are compared in float32. FLOPs are multiply-accumulates of
convolutions, linear layers and attention. Writes benchmarks/records/other_networks.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from records import RECORDS, base_record
from removal import scramble, settle
from torch import Tensor, nn

from bise_prune import MaskSet, export_onnx, gate_sites, prune, verify
from bise_prune.config import Placement
from bise_prune.errors import BiseError
from bise_prune.files import write_json
from bise_prune.tracing import Inputs, logits_of, run

PAGE = RECORDS.parents[1] / "docs" / "pages" / "evidence" / "other-networks.md"
RECORD = RECORDS / "other_networks.json"
SHARES = (0.3, 0.5, 0.7)
_OTHERS: tuple[Placement, ...] = ("tied", "streams")  # besides the default
CLASSES = 7
_ONE_EACH = {"depths": (1, 1, 1, 1)}
# Image size, and options that make the network smaller.
TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "deit_tiny_patch16_224": (64, {"img_size": 64, "depth": 3}),
    "deit_tiny_distilled_patch16_224": (64, {"img_size": 64, "depth": 3}),
    "vit_small_patch16_224": (64, {"img_size": 64, "depth": 3}),
    "vit_small_patch16_dinov3": (64, {"img_size": 64, "depth": 2}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56, "depth": 3}),
    "swin_tiny_patch4_window7_224": (64, {"img_size": 64, "depths": (1, 1, 2, 1), "embed_dim": 48}),
    "swinv2_tiny_window8_256": (64, {"img_size": 64, "depths": (1, 1, 2, 1), "embed_dim": 48}),
    "maxvit_pico_rw_256": (64, {"img_size": 64, **_ONE_EACH}),
    "levit_128s": (64, {"img_size": 64}),
    "mobilevit_xxs": (64, {}),
    "efficientvit_b0": (64, {}),
    "fastvit_t8": (64, {}),
    "repvit_m0_9": (64, {}),
    "mobilenetv4_conv_small": (64, {}),
    "resnetv2_50": (64, {"layers": (1, 1, 1, 1)}),
    "resnetv2_50x1_bit": (64, {}),
    "nf_resnet26": (64, {}),
    "eca_nfnet_l0": (64, {"channels": (256, 256, 256, 256), **_ONE_EACH}),
    "dm_nfnet_f0": (64, {"channels": (256, 256, 256, 256), **_ONE_EACH}),
    "hgnetv2_b0": (64, {}),
    "convnext_atto": (64, _ONE_EACH),
    "convnextv2_atto": (64, _ONE_EACH),
    "ecaresnet26t": (64, {}),
    "lambda_resnet26t": (64, {}),
}
_WIDTHS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
_TEXT: dict[str, Any] = _WIDTHS | {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_IMAGE: dict[str, Any] = _WIDTHS | {"image_size": 32, "patch_size": 8}
_SHARED = _TEXT | {"num_key_value_heads": 2}
_BY_NUMBER = {"vocab_size": 50, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "n_embd": 32, "n_head": 4}
# Prefix of the classes, kind of input, configuration.
HUGGING_FACE: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("Bert", "text", _TEXT),
    "distilbert": ("DistilBert", "text", {"vocab_size": 50, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}),
    "roberta": ("Roberta", "text", _TEXT | {"pad_token_id": 1}),
    "debertav2": ("DebertaV2", "text", _TEXT | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "modernbert": ("ModernBert", "text", _TEXT | {"cls_token_id": 1, "sep_token_id": 2}),
    "albert": ("Albert", "text", _TEXT | {"embedding_size": 16}),
    "vit": ("ViT", "image", _IMAGE),
    "deit": ("DeiT", "image", _IMAGE),
    "dinov2": ("Dinov2", "image", _IMAGE),
    "beit": ("Beit", "image", _IMAGE | {"use_relative_position_bias": True}),
    "siglip": ("Siglip", "image", {"vision_config": _IMAGE, "text_config": _WIDTHS}),
    "clip": ("CLIP", "image", {"vision_config": _IMAGE, "text_config": _WIDTHS}),
    "swinv2": ("Swinv2", "image", {
        "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4,
    }),
    "ast": ("AST", "spectrogram", _WIDTHS | {"max_length": 32, "num_mel_bins": 32}),
    "wav2vec2": ("Wav2Vec2", "sound", _TEXT | {
        "conv_dim": (16, 16), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "classifier_proj_size": 16,
    }),
    "gpt2": ("GPT2", "text", _BY_NUMBER | {"n_layer": 2}),
    "llama": ("Llama", "text", _SHARED),
    "mistral": ("Mistral", "text", _SHARED),
    "qwen3": ("Qwen3", "text", _SHARED | {"head_dim": 8}),
    "phi3": ("Phi3", "text", _SHARED),
    "gptj": ("GPTJ", "text", _BY_NUMBER | {"n_layer": 2, "rotary_dim": 4}),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--markdown", action="store_true", help="write the page from the record, run nothing")
    arguments = parser.parse_args()
    if arguments.markdown:
        PAGE.write_text(markdown())
        return
    warnings.simplefilter("ignore")
    protocol = (
        "small networks with random weights; a random share of each mask closed; error = largest logit difference of "
        "slim and masked network in float64 as a share of the largest logit, batches 1 and 7, another resolution or "
        "length; ONNX error likewise in float32, at half"
    )
    record = base_record([0], protocol, "cpu") | {"rows": {}}
    if RECORD.exists():
        record["rows"] = json.loads(RECORD.read_text())["rows"]
    for name in arguments.models or [*TIMM, *HUGGING_FACE]:
        if arguments.models or name not in record["rows"]:
            start = time.perf_counter()
            record["rows"][name] = _row(name) | {"seconds": round(time.perf_counter() - start, 1)}
            write_json(RECORD, record)
            print(name, {k: v for k, v in record["rows"][name].items() if k not in ("kept", "seconds")}, flush=True)


def network(name: str) -> tuple[nn.Module, Inputs, Inputs | None]:
    """A network with random weights, example inputs, and inputs of another resolution or length where it takes them."""
    torch.manual_seed(0)
    other: Inputs | None = None
    inputs: Inputs
    if name in TIMM:
        import timm

        size, options = TIMM[name]
        model: nn.Module = timm.create_model(name, num_classes=CLASSES, **options)
        inputs = torch.randn(7, 3, size, size).double()
        other = None if "img_size" in options else torch.randn(2, 3, size + 32, size + 32).double()
    else:
        import transformers

        prefix, kind, config = HUGGING_FACE[name]
        task = {"text": "Sequence", "image": "Image", "spectrogram": "Audio", "sound": "Sequence"}[kind]
        settings = getattr(transformers, f"{prefix}Config")(num_labels=CLASSES, **config)
        model = getattr(transformers, f"{prefix}For{task}Classification")(settings)
        if kind == "text":
            tokens = torch.randint(4, 50, (7, 9))
            inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
            inputs["attention_mask"][1, -3:] = 0  # padded, unlike the shorter ones
            other = {key: value[:, :-3] for key, value in inputs.items()}
        else:
            shape = {"image": (3, 32, 32), "spectrogram": (32, 32), "sound": (800,)}[kind]
            inputs = torch.randn(7, *shape).double()
    _spread_out(model)
    settle(model.double(), inputs)
    return model.eval(), inputs, other


def _spread_out(model: nn.Module) -> None:
    """Random gains and offsets, and weights large enough that attention is not uniform."""
    scramble(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() == 1 and float(parameter) == 0:
                parameter.fill_(0.5)  # a gain that training starts from 0
            elif parameter.ndim == 4 and parameter.shape[1:] == (1, 1, 1):
                parameter.uniform_(0.5, 1.5, generator=generator)  # gains of standardised weights
            elif parameter.ndim == 2 and 0 < float(parameter.std()) < 0.05:
                parameter.mul_(0.1 / parameter.std())


def _row(name: str) -> dict[str, Any]:
    try:
        model, inputs, other = network(name)
        with torch.no_grad():
            logits = logits_of(run(model, inputs))
        return {
            "params": sum(p.numel() for p in model.parameters()),
            "spread": float((logits.max(0).values - logits.min(0).values).max() / logits.abs().max()),
            **_removed(model, inputs, other, "all"),
            **{placement: _removed(model, inputs, other, placement) for placement in _OTHERS},
        }
    except BiseError as error:
        return {"refused": str(error)}


def _removed(model: nn.Module, inputs: Inputs, other: Inputs | None, placement: Placement) -> dict[str, Any]:
    """What is left with a placement at each share, and the largest error."""
    row: dict[str, Any] = {"flops_left": {}, "sparsity": {}, "error": 0.0}
    sites = gate_sites(model, inputs, placement)
    row["gates"] = sum(site.num_channels for site in sites)
    row["inside_attention"] = sum("@heads" in s.name or "@values" in s.name or "@pairs" in s.name for s in sites)
    row["on_streams"] = sum(site.is_stream for site in sites)
    for share in SHARES:
        generator = torch.Generator().manual_seed(int(share * 100))
        masks = {site.name: torch.rand(site.num_channels, generator=generator) - share for site in sites}
        for scores in masks.values():
            scores[0] = 1.0
        result = prune(model, MaskSet(masks), inputs, joins="expand", batch_sizes=(1, 7))
        checks = [result.verification]
        if other is not None:
            checks.append(verify(result.masked, result.model, other, batch_sizes=(2,), tolerance=1e-3))
        row["error"] = max(row["error"], *(c.max_abs_error / max(c.max_abs_logit, 1e-30) for c in checks))
        row["flops_left"][f"{share:g}"] = result.plan.macs[1] / result.plan.macs[0]
        row["sparsity"][f"{share:g}"] = result.plan.sparsity
        if share == 0.5:
            causes: Counter[str] = Counter()
            for reasons in result.plan.reasons.values():
                causes.update({str(why): len(channels) for why, channels in reasons.items()})
            row["kept"] = dict(causes.most_common(3))
            row |= _exported(result.model, inputs)
    return row


def _exported(slim: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The ONNX file's error at half, or why there is none."""
    slim.float()
    given: Any = inputs
    if isinstance(inputs, Tensor):
        given = inputs[:2].float()
    elif isinstance(inputs, dict):
        given = tuple(value[:2] for value in inputs.values())
    with tempfile.TemporaryDirectory() as folder:
        try:
            check = export_onnx(slim, Path(folder) / "slim.onnx", given, tolerance=1e-3)
        except BiseError as error:
            return {"onnx_refused": str(error)[:200]}
        finally:
            slim.double()
    return {"onnx_error": check.max_abs_error / max(check.max_abs_logit, 1e-30)}


def markdown() -> str:
    """The committed record as a table."""
    record = json.loads(RECORD.read_text())
    rows = record["rows"]
    done = [row for row in rows.values() if "error" in row]
    url = "https://github.com/bise-prune/bise-prune/blob/main/benchmarks/records/other_networks.json"
    lines = [
        "# Networks of timm and Hugging Face",
        "",
        "This page answers how much of other libraries' networks can be removed, and how exactly: by default, without",
        "gates on residual streams (`--placement tied`), and with norms over open channels (`streams`). It is",
        f"written by `python benchmarks/other_networks.py --markdown` from a [record]({url}).",
        "",
        f"**How it was measured.** {record['protocol'][0].upper()}{record['protocol'][1:]}.",
        f"Every lowering is `expand`, commit {record['commit']}, seed 0.",
        "",
        f"{len(done)} of {len(rows)} networks are pruned, with a largest error of "
        f'{max(part["error"] for row in done for part in _parts(row)):.0e}. "Inside" counts the sites inside '
        "attention, a dash stands where there is no stream to gate. Errors are the largest of the three placements.",
        "",
        "| network | gates | inside | FLOPs left at 30 / 50 / 70 % closed, % | tied | streams | error | ONNX error | "
        "kept at half |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    return "\n".join([*lines, *(_line(name, rows[name]) for name in (*TIMM, *HUGGING_FACE) if name in rows)]) + "\n"


def _line(name: str, row: dict[str, Any]) -> str:
    if "error" not in row:
        return f"| {name} | | | | | | | | refused: {row['refused']} |"
    shares = [
        " / ".join(f"{part['flops_left'][f'{share:g}'] * 100:.1f}" for share in SHARES)
        if row["on_streams"] or part is row
        else "–"
        for part in _parts(row)
    ]
    errors = [max(part[key] for part in _parts(row) if key in part) for key in ("error", "onnx_error") if key in row]
    onnx = f"{errors[1]:.0e}" if len(errors) > 1 else "not exported"
    kept = row["kept"]
    why = f"{sum(kept.values())}: {next(iter(kept))}" if kept else "none"
    counts = f"{row['gates']} | {row['inside_attention']}"
    return f"| {name} | {counts} | {' | '.join(shares)} | {errors[0]:.0e} | {onnx} | {why} |"


def _parts(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The figures of the default placement and of the others."""
    return [row, *(row[placement] for placement in _OTHERS)]


if __name__ == "__main__":
    main()
