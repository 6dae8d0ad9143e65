"""Exactness of the removal, a row a model: every torchvision classifier, timm and Hugging Face networks.

Each network has random weights, batch-norm statistics and affine parameters (defaults hide errors with constants) and
random masks that close about 30 and 70 % of the channels, in both placements and both lowerings. Its slim network is
compared with its masked one in float64 at batches 1 and 7 and two resolutions; once per network also after a deepcopy,
after saving and loading, compiled, and as ONNX.

    python benchmarks/removal.py                      every torchvision classifier
    python benchmarks/removal.py --family timm        needs the extra [timm]
    python benchmarks/removal.py --family hf          needs the extra [transformers]
    python benchmarks/removal.py --models resnet18 swin_t
    python benchmarks/removal.py --markdown     docs/pages/evidence/removal.md from the committed records
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from records import RECORDS, base_record
from torch import nn

from bise_prune import MaskSet, export_onnx, gate_sites, load_slim, prune, save_slim, verify
from bise_prune.errors import BiseError
from bise_prune.files import write_json
from bise_prune.tracing import Inputs, logits_of, run

PAGE = RECORDS.parents[1] / "docs" / "pages" / "evidence" / "removal.md"
RECORDS_URL = "https://github.com/bise-prune/bise-prune/blob/main/benchmarks/records"
SHARES = (0.3, 0.7)
LOWERINGS = ("intersection", "expand")
LARGE, GIANT = 30_000_000, 200_000_000
CLASSES = 7
BATCHES = (1, 7)
TOLERANCE = 1e-9

TIMM = {
    "resnet26d": 64, "seresnet50": 64, "resnest14d": 64, "cspresnet50": 64, "gernet_s": 64, "repvgg_a0": 64,
    "ghostnet_100": 64, "mobilenetv3_small_100": 64, "tf_efficientnetv2_b0": 64, "efficientnet_lite0": 64,
    "regnetx_002": 64, "densenet121": 64, "dla34": 64, "hrnet_w18_small": 64, "inception_v4": 96, "xception41": 64,
    "dm_nfnet_f0": 64, "convnextv2_atto": 64, "mobilevit_xs": 64, "poolformer_s12": 64, "vit_tiny_patch16_224": 224,
    "deit_tiny_patch16_224": 224, "mixer_s32_224": 224, "resmlp_12_224": 224,
}  # fmt: skip
HUGGING_FACE = ("bert", "distilbert", "roberta", "electra", "mobilebert", "deberta")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=("torchvision", "timm", "hf"), default="torchvision")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--no-onnx", action="store_true", help="leave the ONNX export out")
    parser.add_argument("--output", type=Path, help="the record (default: records/removal_FAMILY.json); rows are kept")
    parser.add_argument("--markdown", action="store_true", help="write docs/pages/evidence/removal.md, run nothing")
    arguments = parser.parse_args()
    if arguments.markdown:
        PAGE.write_text(markdown())
        return
    warnings.simplefilter("ignore")
    output = arguments.output or RECORDS / f"removal_{arguments.family}.json"
    protocol = (
        "random weights, batch norms and masks; error = largest logit difference of slim and masked network in float64 "
        "as a share of the largest logit, over placements, shares closed, lowerings, batches 1 and 7, two resolutions"
    )
    record = base_record([0], protocol, "cpu") | {"rows": {}}
    if output.exists():
        record["rows"] = json.loads(output.read_text())["rows"]
    table = FAMILIES[arguments.family]
    names = arguments.models or sorted(table(), key=lambda name: any(part in name for part in _BIG))
    for name in names:
        if name in record["rows"] and not arguments.models:
            continue
        start = time.perf_counter()
        row = _row(arguments.family, name, not arguments.no_onnx)
        row["seconds"] = round(time.perf_counter() - start, 1)
        record["rows"][name] = row
        print(_line(name, row), flush=True)
        write_json(output, record)
    _summarise(record["rows"])


_BIG = ("vit", "vgg", "convnext", "regnet", "maxvit", "swin", "wide", "resnext")  # last, for their size


def torchvision_names() -> list[str]:
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


FAMILIES: dict[str, Callable[[], list[str]]] = {
    "torchvision": torchvision_names,
    "timm": lambda: list(TIMM),
    "hf": lambda: list(HUGGING_FACE),
}


def network(family: str, name: str) -> tuple[nn.Module, Inputs, Inputs | None]:
    """A network with random weights, example inputs, and inputs of another resolution where it takes them."""
    torch.manual_seed(0)
    if family == "torchvision":
        import torchvision

        options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
        model = torchvision.models.get_model(name, weights=None, num_classes=CLASSES, **options)
        fixed = name.startswith(("vit", "maxvit"))
        large = sum(p.numel() for p in model.parameters()) >= LARGE
        size = 224 if fixed else 96 if name.startswith("inception") else 32 if large and name != "alexnet" else 64
    elif family == "timm":
        import timm

        model, size = timm.create_model(name, num_classes=CLASSES), TIMM[name]
        fixed = size == 224
    else:
        model, inputs = hugging_face(name)
        scramble(model)
        return model.eval().double(), inputs, {key: value[:, :-3] for key, value in inputs.items()}
    scramble(model)
    # In float64 from the start, so that nothing is rounded; the few largest in float32, for memory.
    dtype = torch.float64 if sum(p.numel() for p in model.parameters()) < GIANT else torch.float32
    other = None if fixed else torch.randn(2, 3, size + 32, size + 32, dtype=dtype)
    inputs = torch.randn(max(BATCHES), 3, size, size, dtype=dtype)
    settle(model.to(dtype), inputs)
    return model, inputs, other


def hugging_face(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    import transformers

    names = {
        "bert": "Bert", "distilbert": "DistilBert", "roberta": "Roberta", "electra": "Electra",
        "mobilebert": "MobileBert", "deberta": "DebertaV2",
    }  # fmt: skip
    sizes: dict[str, Any] = {
        "vocab_size": 200, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 96, "num_labels": CLASSES,
    }  # fmt: skip
    if name == "distilbert":
        sizes = {"vocab_size": 200, "dim": 48, "n_layers": 3, "n_heads": 4, "hidden_dim": 96, "num_labels": CLASSES}
    if name == "mobilebert":
        sizes |= {"intra_bottleneck_size": 24, "embedding_size": 24, "true_hidden_size": 24}
    config = getattr(transformers, f"{names[name]}Config")(**sizes)
    model = getattr(transformers, f"{names[name]}ForSequenceClassification")(config)
    tokens = torch.randint(5, 200, (max(BATCHES), 16))
    return model, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def scramble(model: nn.Module) -> None:
    """Random values where initialisation left zeros, ones or tiny scales."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.normal_(0, 0.5, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.1, generator=generator)
                elif float(parameter.flatten()[0]) == 0:
                    parameter.normal_(0, 0.5, generator=generator)
                else:
                    parameter.uniform_(0.5, 1.5, generator=generator)


def settle(model: nn.Module, images: torch.Tensor) -> None:
    """Batch-norm statistics of the images, without which deep networks with random weights are blind to their input."""
    for module in model.eval().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            module.train()
    with torch.no_grad():
        run(model, images)
    model.eval()


def random_masks(model: nn.Module, inputs: Inputs, placement: str, share: float) -> MaskSet:
    generator = torch.Generator().manual_seed(int(share * 100))
    logits = {}
    for site in gate_sites(model, inputs, placement):
        logits[site.name] = torch.rand(site.num_channels, generator=generator) - share
        logits[site.name][0] = 1.0  # no layer is closed altogether
    return MaskSet(logits)


def _row(family: str, name: str, with_onnx: bool) -> dict[str, Any]:
    try:
        model, inputs, other = network(family, name)
    except (ImportError, AttributeError, RuntimeError, ValueError) as error:
        return {"refused": f"cannot be built here: {str(error).splitlines()[0]}"}
    with torch.no_grad():
        logits = logits_of(run(model, inputs))
    # How far the logits of different inputs lie apart: what an error is to be seen against.
    spread = float((logits.max(0).values - logits.min(0).values).max() / logits.abs().max())
    row: dict[str, Any] = {
        "params": sum(p.numel() for p in model.parameters()), "spread": spread, "cases": {}, "kept": {},
    }  # fmt: skip
    last: nn.Module | None = None
    try:
        for placement in ("tied", "paper"):
            try:
                gate_sites(model, inputs, placement)
            except BiseError as error:
                row[f"{placement}_refused"] = str(error)
                continue
            for i, share in enumerate(SHARES):
                if row["params"] >= GIANT and i != (placement == "paper"):
                    continue
                masks = random_masks(model, inputs, placement, share)
                # Of large networks only .3 by intersection and .7 by expansion; of giants one share a placement.
                for joins in LOWERINGS if row["params"] < LARGE else LOWERINGS[i : i + 1]:
                    result = prune(model, masks, inputs, joins=joins, batch_sizes=BATCHES, tolerance=TOLERANCE)
                    errors = [result.verification.max_abs_error / max(result.verification.max_abs_logit, 1e-30)]
                    if other is not None:
                        again = verify(result.masked, result.model, other, batch_sizes=(2,), tolerance=1e-3)
                        errors.append(again.max_abs_error / max(again.max_abs_logit, 1e-30))
                    row["cases"][f"{placement} {share:g} {joins}"] = {
                        "gates": masks.num_channels,
                        "closed": masks.num_closed / masks.num_channels,
                        "sparsity": result.plan.sparsity,
                        "flops_left": result.plan.macs[1] / result.plan.macs[0],
                        "error": max(errors),
                        "edited_calls": len(result.plan.edits),
                    }
                    last = result.model
                    if placement == "paper" and joins == "expand":
                        causes: Counter[str] = Counter()
                        for reasons in result.plan.reasons.values():
                            for why, channels in reasons.items():
                                causes[why] += len(channels)
                        row["kept"][f"{share:g}"] = dict(causes.most_common(5))
    except BiseError as error:
        row["refused"] = str(error)
        return row
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
        return row
    if last is None:
        return row | {"refused": row["paper_refused"]}
    row["error"] = max(case["error"] for case in row["cases"].values())
    row["ways"] = _ways(family, name, last, inputs)
    if with_onnx and row["params"] < 2 * LARGE:
        positional = inputs[:2] if isinstance(inputs, torch.Tensor) else tuple(v[:2] for v in inputs.values())
        with tempfile.TemporaryDirectory() as folder:
            try:
                check = export_onnx(last, Path(folder) / "slim.onnx", positional, tolerance=1e-3)
                row["onnx_error"] = check.max_abs_error / max(check.max_abs_logit, 1e-30)
            except BiseError as error:
                row["onnx_refused"] = str(error)[:200]
    return row


def _ways(family: str, name: str, slim: nn.Module, inputs: Inputs) -> dict[str, float]:
    """Largest difference of a network's logits after a deepcopy, after saving and loading, and compiled."""
    with torch.no_grad():
        expected = logits_of(run(slim, inputs))

        def difference(model: nn.Module) -> float:
            return float((logits_of(run(model, inputs)) - expected).abs().max() / expected.abs().max())

        ways = {"deepcopy": difference(copy.deepcopy(slim))}
        with tempfile.TemporaryDirectory() as folder:
            save_slim(Path(folder) / "slim.safetensors", slim)
            ways["load_slim"] = difference(load_slim(Path(folder) / "slim.safetensors", network(family, name)[0]))
        if sum(p.numel() for p in slim.parameters()) < LARGE:
            torch.compiler.reset()
            ways["compile"] = difference(torch.compile(slim, backend="eager"))
    return ways


_INTRODUCTION = f"""\
# Exactness of the removal, network by network

This page answers on which networks the removal of closed channels was checked, and how exact it is. It is written by
`python benchmarks/removal.py --markdown` from the records of
[torchvision]({RECORDS_URL}/removal_torchvision.json), [timm]({RECORDS_URL}/removal_timm.json) and
[Hugging Face]({RECORDS_URL}/removal_hf.json) networks.

**How it was measured.** Weights, normalisation layers and masks are random. "Error" is the largest difference between
the logits of the slim and the masked network in float64, as a share of the largest logit: the worst over both
placements, the shares of closed channels, both lowerings, batches of 1 and 7 samples, and two resolutions. Networks
of more than 30 million parameters run at 32 x 32 and with half of the lowerings; networks of more than 200 million
run with one share per placement and in float32, but the check itself is in float64.

**Columns.** Sparsity and FLOPs left are for the paper's placement with 30 % of the channels closed (`intersection`)
and 70 % closed (`expand`). "ONNX error" is the same difference between the ONNX file in onnxruntime and the slim
network in float32, for networks of up to 60 million parameters. "Copies" is the largest difference after a deep copy,
after saving and loading, and under `torch.compile` (up to 30 million parameters). "Closed but kept" counts the closed
channels that stay when 70 % are closed, with the commonest reason.

**Attention.** The rows of swin_v2_b, swin_v2_s, vit_h_14, vit_l_16 and vit_l_32 are older than the count of attention,
so that their FLOPs left are too low; the other rows count it.

**Batch-norm statistics.** They are random in these records, and {{count}} networks (EfficientNet, MNASNet, MobileNet,
GoogLeNet) hardly depended on their input then. With statistics of their inputs these networks agree as well, with a
worst error of {{worst}} ([record]({RECORDS_URL}/removal_settled.json)); the benchmark sets the statistics this way
now.
"""
# Reasons as the records hold them, in the words of today.
_REASONS = {"it is read where it is not closed": "another layer reads this channel while its gate is open"}
_TITLES = {"torchvision": "torchvision", "timm": "timm", "hf": "Hugging Face text classifiers"}


def markdown() -> str:
    """The committed records as tables."""
    settled = json.loads((RECORDS / "removal_settled.json").read_text())["rows"]
    worst = max(row["error"] for row in settled.values())
    lines = _INTRODUCTION.format(count=len(settled), worst=f"{worst:.0e}").splitlines()
    for family in FAMILIES:
        path = RECORDS / f"removal_{family}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text())
        rows = record["rows"]
        exact = sum(row.get("error", 1.0) <= TOLERANCE for row in rows.values())
        lines += [
            "",
            f"## {_TITLES[family]}",
            "",
            f"{exact} of {len(rows)} networks are exact to {TOLERANCE:g} (commit {record['commit']}).",
            "",
        ]
        lines += ["| network | gates | sparsity, % | FLOPs left, % | error | ONNX error | copies | closed but kept |"]
        lines += ["| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |"]
        lines += [_markdown_row(name, rows[name]) for name in sorted(rows)]
    return "\n".join(lines) + "\n"


def _markdown_row(name: str, row: dict[str, Any]) -> str:
    if "error" not in row:
        return f"| {name} | | | | | | | refused: {row.get('refused', row.get('failed'))} |"
    cases = [case for key in ("paper 0.3 intersection", "paper 0.7 expand") if (case := row["cases"].get(key))]
    kept = row["kept"].get("0.7", {})
    why = max(kept, key=kept.get) if kept else ""
    stays = f"{sum(kept.values())}: {_REASONS.get(why, why)}" if kept else "none"
    onnx = f"{row['onnx_error']:.0e}" if "onnx_error" in row else "not exported"
    sparsity, flops = (" / ".join(f"{case[key] * 100:.1f}" for case in cases) for key in ("sparsity", "flops_left"))
    return (
        f"| {name} | {cases[0]['gates']} | {sparsity} | {flops} | {row['error']:.0e} | {onnx} | "
        f"{max(row['ways'].values()):.0e} | {stays} |"
    )


def _line(name: str, row: dict[str, Any]) -> str:
    if "error" not in row:
        return f"{name:28s} {'REFUSED ' + row['refused'] if 'refused' in row else 'FAILED ' + row['failed']}"
    case = row["cases"]["paper 0.7 expand"]
    return (
        f"{name:28s} error {row['error']:.1e} onnx {row.get('onnx_error', float('nan')):.1e} "
        f"S {case['sparsity']:.3f} "
        f"FLOPs {case['flops_left']:.3f} ways {max(row['ways'].values()):.0e} {row['seconds']} s"
    )


def _summarise(rows: dict[str, Any]) -> None:
    exact = [name for name, row in rows.items() if row.get("error", 1.0) <= TOLERANCE]
    rest = [name for name in rows if name not in exact]
    print(f"{len(exact)} of {len(rows)} networks exact to {TOLERANCE:g}; not: {', '.join(rest) or 'none'}")


if __name__ == "__main__":
    main()
