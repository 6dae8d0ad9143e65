"""A BERT-family classifier on toxic comments with identity mentions: worst-group accuracy, both placements.

    python benchmarks/text_toxicity.py --csv jigsaw_toxic_12k.csv.gz --encoder FOLDER_OF_MINILM --seeds 0 1 2

Protocol, small since it runs on a CPU: the first two layers of MiniLM-L6 (384 wide, pretrained as a sentence encoder)
with a new head; 1,200 training texts of at most 24 tokens, 600 to validate and 2,000 to test on, drawn by seed from
the random 70/10/20 split; y = toxic, b = any identity word (a word list, not human labels). Vanilla: AdamW 5e-5,
weight decay 1e-4, 3 epochs, batch 32. Masks: the paper's settings, but for a temperature cut every epoch and 10
epochs of the head; batch 32; selected by worst-group accuracy on the validation texts ("best" in CivilComments'
terms) and last. "tied" = feed-forward and pooler neurons behind the nonlinearity; "paper" = in front of it, and what
feed-forward blocks add to the stream, with layer norms that leave closed channels out. Both are removed exactly. S =
share of neurons that have a mask and are closed, as in the paper's Table 6. No figure compares with the paper's,
which are CivilComments and BERT-base.
Writes benchmarks/records/text_toxicity.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from records import RECORDS, base_record, peak_memory_bytes, plus_minus, summary
from rich.console import Console

from bise_prune import SearchConfig, evaluate, prune, search
from bise_prune.data import BatchLoader
from bise_prune.data.text import load_text, load_tokenizer
from bise_prune.evaluation import Evaluation
from bise_prune.files import write_json
from bise_prune.report import side_by_side
from bise_prune.subgroups import aligned_values
from bise_prune.training import train_vanilla

LAYERS, TOKENS = 2, 24
SIZES = {"train": 1200, "val": 600, "test": 2000}
SETTINGS: dict[str, Any] = {"anneal_every": 1, "head_epochs": 10, "select": "worst-group"}
PAPER = {"vanilla": "59.6 +- 2.7", "BISE": "80.4 +- 0.2", "BISE (last)": "67.9 +- 1.8"}  # Table 6, WGA


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, required=True, help="jigsaw_toxic_12k.csv.gz")
    parser.add_argument("--encoder", type=Path, required=True, help="folder of MiniLM-L6: config, weights, tokenizer")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--initial-logit", type=float, default=0.0)
    parser.add_argument("--placements", nargs="+", default=["tied", "paper"])
    parser.add_argument("--output", type=Path, default=RECORDS / "text_toxicity.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    runs = [one_seed(arguments, seed) for seed in arguments.seeds]
    record = base_record(arguments.seeds, (__doc__ or "").split("Protocol, ")[1].split("Writes")[0].strip(), "cpu")
    record["settings"] = {**SETTINGS, "initial_logit": arguments.initial_logit}
    record["paper_wga_on_civilcomments"] = PAPER
    record["rows"] = {
        name: {key: summary([run[name][key] for run in runs]) for key in runs[0][name]} for name in runs[0]
    }
    record["peak_memory_bytes"] = peak_memory_bytes()
    write_json(arguments.output, record)
    keys = ("worst_group", "unbiased", "accuracy", "closed", "sparsity")
    table = [
        (name, [plus_minus(figures[key], 100) if key in figures else "" for key in keys])
        for name, figures in record["rows"].items()
    ]
    headings = ("worst of 4 groups, %", "unbiased, %", "accuracy, %", "neurons closed, %", "parameters gone, %")
    Console().print(side_by_side(headings, table, f"Toxic comments, MiniLM of {LAYERS} layers, {len(runs)} seeds"))
    print(json.dumps({name: figures["worst_group"]["mean"] for name, figures in record["rows"].items()}))
    return 0


def one_seed(arguments: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    splits = load_text(
        arguments.csv, load_tokenizer(arguments.encoder), bias_columns=["identity_any"], max_length=TOKENS, seed=seed
    )
    generator = torch.Generator().manual_seed(seed)
    parts = {}
    for name, size in SIZES.items():
        data = getattr(splits, name)
        parts[name] = data.subset(torch.randperm(len(data), generator=generator)[:size])
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(arguments.encoder, num_labels=2, num_hidden_layers=LAYERS)
    model = AutoModelForSequenceClassification.from_pretrained(arguments.encoder, config=config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=1e-4)
    train_vanilla(model, BatchLoader(parts["train"], 32, shuffle=True, seed=seed), optimizer, epochs=3)
    aligned = aligned_values(parts["train"].target, parts["train"].bias, 2)
    val, test = BatchLoader(parts["val"], 128), BatchLoader(parts["test"], 128)
    rows = {"vanilla": _figures(evaluate(model, test, aligned))}
    print(f"seed {seed}: vanilla {rows['vanilla']}", file=sys.stderr, flush=True)
    for placement in arguments.placements:
        settings = SearchConfig(**SETTINGS, placement=placement, initial_logit=arguments.initial_logit, seed=seed)
        start = time.perf_counter()
        found = search(model, BatchLoader(parts["train"], 32, shuffle=True, seed=seed), settings, val)
        seconds = time.perf_counter() - start
        for name, masks in ((placement, found.masks), (f"{placement} (last)", found.last)):
            pruned = prune(model, masks, parts["train"].example(), batch_sizes=(1, 2))
            rows[name] = {
                **_figures(evaluate(pruned.model, test, aligned)),
                "closed": masks.num_closed / masks.num_channels,
                "sparsity": pruned.plan.sparsity,
                "max_abs_error": pruned.verification.max_abs_error,
                "seconds": seconds,
            }
            print(f"seed {seed}: {name} {rows[name]}", file=sys.stderr, flush=True)
        validation = [dataclasses.asdict(epoch.validation)["worst_group_accuracy"] for epoch in found.history]
        print(f"seed {seed}: {placement} validation {validation}", file=sys.stderr, flush=True)
    return rows


def _figures(evaluation: Evaluation) -> dict[str, float]:
    return {
        "worst_group": evaluation.worst_group_accuracy,
        "unbiased": evaluation.unbiased_accuracy,
        "accuracy": evaluation.accuracy,
    }


if __name__ == "__main__":
    sys.exit(main())
