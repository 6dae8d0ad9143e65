"""The pages below docs/pages/evidence that are written from the records, and the tables that other pages take."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .comparisons import (
    RECORDS_URL,
    after_finetuning,
    all_evidence,
    conflicting,
    noise,
    peer_table,
    searches,
    transfer,
)
from .costs import cost_section
from .finetunings import EPOCHS, WAYS
from .methods import SPARSITIES
from .paper import EXPLAINED, GROUPS, TABLES, Row, Table, table_of
from .recorded import Recorded, Where, mean, seeds_of, spread, write_table
from .settings import NAMES, SETTINGS, setting_of
from .singles import demo, frontier, removal_cost, resnet18, search_speed, serving, speedup, transformers

_NOT_RUN = {
    "biased_mnist": "not run; this size needs hours on a GPU (see [cost](cost.md))",
    "corrupted_cifar10": "not run; this size needs a GPU and ImageNet weights, and neither was available",
}
_WRITTEN = (
    f"This page is written by `python benchmarks/results.py` from [the records]({RECORDS_URL}): one JSON file per run, "
    "with its command, commit, versions and seed. Figures are the mean ± the sample standard deviation over seeds."
)

# -- the paper's tables ----------------------------------------------------------------------------


def paper_table(records: Recorded, table: Table) -> list[str]:
    """The paper's figure, ours at its size, and the difference in the paper's standard deviations."""
    rows, missing = [], False
    for row in table.rows:
        values = records.values(Where(table.setting, "full", row.rho, row.method, row.row), row.key)
        missing |= not values
        theirs = f"{row.mean:.{row.digits}f} ± {row.std:.{row.digits}f}"
        count = str(len(values)) if values else ""
        rows.append([row.label, theirs, spread(values, row.scale) or "–", count, _deviation(row, values)])
    lines = [f"## Table {table.name}: {table.title}", ""]
    lines += write_table(("", "paper, 3 seeds", "ours", "seeds", "difference"), rows)
    for reason in dict.fromkeys(EXPLAINED.values()):
        labels = [label for (name, label), why in EXPLAINED.items() if name == table.name and why == reason]
        if labels:
            lines += [*textwrap.wrap(f"{'; '.join(labels)}: {reason}", 120), ""]
    return lines + ([f"–: {_NOT_RUN.get(table.setting, 'not run')}.", ""] if missing else [])


def _deviation(row: Row, values: Sequence[float]) -> str:
    found = mean(values)
    if found is None:
        return ""
    difference = found * row.scale - row.mean
    return f"{difference / row.std:+.1f} std" if row.std else f"{difference:+.1f} points"


def _finetunings(records: Recorded) -> list[str]:
    """Table 7's last row by other ways of finetuning, to find where its difference comes from."""
    keys = [*(f"group {group}" for group in GROUPS), "unbiased"]
    tried = {"as in the table: Eq. (B.9), Adam 1e-3": ("finetuned", "finetuned")}
    tried |= {way.label: (f"finetuned-{name}", f"{EPOCHS} epochs") for name, way in WAYS.items()}
    paper = [f"{row.mean:.1f} ± {row.std:.1f}" for row in table_of("7").rows if "finetuning" in row.label]
    lines = [
        "## Table 7, finetuned in other ways", "",
        *textwrap.wrap(
            "These runs only look for the cause of the difference above; no other result uses them. Accuracy in % on "
            "the "
            f"test images after {EPOCHS} epochs.", 120,
        ), "",
    ]  # fmt: skip
    for name, seeds in (("seeds 0 to 2", {0, 1, 2}), ("seed 0", {0})):
        rows, view = [], records.only(seeds)
        for label, run in tried.items():
            where = Where("multi_color_mnist", "full", 0.0, *run)
            if view.seeds(where) == seeds:
                rows.append([label, *(spread(view.values(where, key)) for key in keys)])
        lines += write_table((name, *GROUPS, "unbiased"), [*rows, ["the paper, 3 seeds", *paper]])
    return lines


def _counts(records: Recorded) -> list[str]:
    rows = json.loads((records.folder / "counts.json").read_text())["rows"]
    cells = [
        [name, *(f"{row[key]:,}" for key in ("paper_weights", "weights", "paper_masks", "masks"))]
        for name, row in rows.items()
    ]
    header = ("", "weights, paper", "weights, ours", "mask parameters, paper", "mask parameters, ours")
    return ["## Table E.1: parameters", "", *write_table(header, cells)]


def _trials(records: Recorded) -> list[str]:
    rows = [
        [
            f"{NAMES[row['setting']]}: {row['network']}", f"{row['rho']:g}", f"{row['samples']:,}", str(row["epochs"]),
            f"{100 * row['unbiased']:.1f}", f"{row['cpu_seconds']:.0f}",
        ]
        for row in json.loads((records.folder / "trials.json").read_text())["rows"]
    ]  # fmt: skip
    header = ("", "rho", "training images", "epochs", "unbiased accuracy, validation, %", "CPU s")
    return ["## How the small settings were chosen: vanilla networks, seed 0", "", *write_table(header, rows)]


# -- the same tables at a small size ---------------------------------------------------------------

Rows = tuple[tuple[str, str, str], ...]  # label, run, row


@dataclass(frozen=True)
class Small:
    """Runs side by side at the small size."""

    title: str
    setting: str
    rows: Rows


_MAIN: Rows = (
    ("vanilla", "vanilla", "vanilla"),
    ("BISE", "bise", "best"),
    ("BISE (last)", "bise", "last"),
    ("BISE + finetuning", "finetuned", "finetuned"),
    ("dense + the same finetuning", "finetuned", "dense, finetuned"),
)
_SENSITIVITY: Rows = (
    ("E = 10, kappa = .5, upsilon = 2, tau_min = .001", "bise", "best"),
    *((f"E = {value}", f"head-epochs-{value}", "best") for value in (1, 50)),
    *((f"kappa = {value:g}", f"kappa-{value:g}", "best") for value in (0.1, 0.8)),
    *((f"upsilon = {value}", f"upsilon-{value}", "best") for value in (1, 5)),
    *((f"tau_min = {value:g}", f"tau-min-{value:g}", "best") for value in (0.1, 0.01)),
)
SMALL = (
    Small("Tables 1 and 2", "biased_mnist", _MAIN),
    Small("Tables 3 and 4", "corrupted_cifar10", _MAIN),
    Small("Table 8, the parts of the objective", "biased_mnist", (
        ("neither", "loss-plain", "best"),
        ("reweighting alone", "loss-reweighted", "best"),
        ("mutual information alone", "loss-information", "best"),
        ("both", "bise", "best"),
    )),
    Small("Figure 3a, the weight of the mutual information", "biased_mnist", (
        ("gamma = 0", "loss-reweighted", "best"),
        ("gamma = .1", "gamma-0.1", "best"),
        ("gamma = 1", "bise", "best"),
        ("gamma = 3", "gamma-3", "best"),
        ("gamma = 10", "gamma-10", "best"),
    )),
    Small("Appendix H, sensitivity", "biased_mnist", _SENSITIVITY),
    Small("Appendix I, batch norms that are updated during the search", "biased_mnist", (
        ("frozen", "bise", "best"),
        ("avg, std", "batchnorm-statistics", "best"),
        ("avg, std, beta, gamma", "batchnorm-affine", "best"),
    )),
)  # fmt: skip


def small_table(records: Recorded, small: Small) -> list[str]:
    """Unbiased accuracy, sparsity and FLOPs left, at every share of aligned samples that all rows have."""
    setting = setting_of(small.setting, "small")
    ends = small.rows[0], small.rows[-1]
    rhos = [
        rho
        for rho in setting.rhos
        if all(records.of(Where(small.setting, "small", rho, method, row)) for _, method, row in ends)
    ]
    if not rhos:
        return []
    records = records.matched(
        Where(small.setting, "small", rho, method, row) for rho in rhos for _, method, row in small.rows
    )
    header, lines = ["", "seeds"], []
    for rho in rhos:
        header += [f"unbiased accuracy, rho {rho:g}", "sparsity", "FLOPs left"]
    counts = [
        min(len(records.of(Where(small.setting, "small", rho, method, row))) for rho in rhos)
        for _, method, row in small.rows
    ]
    for (label, method, row), count in zip(small.rows, counts, strict=True):
        cells = [label, str(count)]
        for rho in rhos:
            where = Where(small.setting, "small", rho, method, row)
            cells += [spread(records.values(where, key)) for key in ("unbiased", "sparsity", "flops_left")]
        if any(cells[2:]):
            lines.append(cells)
    return [
        f"## {small.title}: {NAMES[small.setting]}, small", "",
        "All figures in %.", "", *write_table(header, lines),
    ]  # fmt: skip


_TEXTS = (
    # label, the paper's worst group on CivilComments with BERT-base (Table 6), run, row
    ("vanilla", "59.6 ± 2.7", "vanilla", "vanilla"),
    ("BISE", "80.4 ± 0.2", "bise", "best"),
    ("BISE (last)", "67.9 ± 1.8", "bise", "last"),
    ("BISE + finetuning", "81.0 ± 0.1", "finetuned", "finetuned"),
    ("BISE, tied placement", "", "placement-tied", "best"),
    ("BISE (last), tied placement", "", "placement-tied", "last"),
    ("dense + the same finetuning", "", "finetuned", "dense, finetuned"),
    ("last layer, reweighted, training set", "", "last-layer", "last layer, reweighted"),
    ("last layer, refitted on the validation texts (DFR)", "", "last-layer", "DFR, validation set"),
)


def _texts(records: Recorded) -> list[str]:
    rows = []
    for label, theirs, method, row in _TEXTS:
        where = Where("toxic_comments", "small", 0.0, method, row)
        keys = ("worst_group", "unbiased", "closed", "sparsity", "flops_left")
        rows.append([label, theirs, *(spread(records.values(where, key)) for key in keys)])
    header = ("", "CivilComments, BERT-base (paper)", "worst group", "unbiased accuracy", "neurons closed", "sparsity",
              "FLOPs left")  # fmt: skip
    seeds = seeds_of(records.of(Where("toxic_comments", "small", 0.0, "bise", "best")))
    return [
        "## Table 6's protocol on other texts: toxic comments, small", "",
        *textwrap.wrap(
            f"All figures in %, {seeds} (`python benchmarks/run.py --table 6`, "
            f"[records]({RECORDS_URL}/toxic_comments/small)). The worst group is the subgroup with the lowest "
            "accuracy, out of four; it has about a hundred test texts. The texts are the 12,180 talk-page comments "
            "of Hongcheng-Gao/RobTest-Demo on GitHub. Our bias label says whether a text contains a word from a list "
            "of identities. The paper's column belongs to another data set and a larger network, so compare only "
            "rows within one column.",
            120,
        ),
        "",
        *write_table(header, rows),
    ]  # fmt: skip


def _curves(records: Recorded) -> list[str]:
    rho = setting_of("biased_mnist", "small").rhos[0]

    def seeds(method: str) -> str:
        return seeds_of(records.of(Where("biased_mnist", "small", rho, method, "")))

    def values(method: str, row: str, key: str = "unbiased") -> str:
        return spread(records.values(Where("biased_mnist", "small", rho, method, row), key))

    rows = [
        [f"{sparsity:.0%}", *(values("rankings", f"{by} {sparsity:g}") for by in ("m", "magnitude", "random"))]
        for sparsity in SPARSITIES
    ]
    lines = [
        f"## Figure 3b, channels ranked and removed without finetuning: BiasedMNIST, small, rho {rho:g}", "",
        f"Unbiased accuracy in %, {seeds('rankings')}.", "",
        *write_table(("sparsity", "by mask logit (BISE)", "by magnitude", "at random"), rows),
        f"## Figure J.1, the threshold zeta on the masks: BiasedMNIST, small, rho {rho:g}", "",
    ]  # fmt: skip
    zetas = records.row_names(Where("biased_mnist", "small", rho, "sweep", ""))
    rows = [[zeta, values("sweep", zeta), values("sweep", zeta, "sparsity")] for zeta in zetas]
    lines += write_table((f"zeta, {seeds('sweep')}", "unbiased accuracy, %", "sparsity, %"), rows)
    rows = [[name, values("probe", name, "bias_read")] for name in ("vanilla", "BISE")]
    lines += [f"## Table M.1, the colour predicted by a linear head: BiasedMNIST, small, rho {rho:g}", ""]
    return lines + write_table((seeds("probe"), "accuracy, %"), rows)


# -- pages -----------------------------------------------------------------------------------------


def paper_tables(records: Recorded) -> str:
    """docs/pages/evidence/paper-tables.md."""
    lines = _head(
        "The paper's tables at the paper's size",
        f'{_WRITTEN} Only runs with the paper\'s data, network and schedule stand here. "Difference" is our mean minus '
        "the paper's, in units of the paper's standard deviation. S is the sparsity: the share of the dense network's "
        "parameters that was removed. Unbiased accuracy is the unweighted mean over all subgroups of class and bias "
        "label; on Multi-Color MNIST, which has two bias labels, over the four groups that are aligned or conflicting "
        "with each. Masks are those of the epoch that is best on validation data; Multi-Color MNIST has none, so there "
        "the last epoch counts.",
    )
    for table in TABLES:
        lines += paper_table(records, table)
        if table.name == "7":
            lines += _finetunings(records)
    lines += _counts(records)
    lines += [
        "## Tables 5, 9 (CelebA) and 6 (CivilComments)", "",
        *textwrap.wrap(
            "Not run, because the data were not available. The loaders of these data sets are tested on small files. "
            "The "
            "protocol of Table 6 is run on [other texts](small-tables.md).", 120,
        ), "",
    ]  # fmt: skip
    return _joined(lines)


def small_tables(records: Recorded) -> str:
    """docs/pages/evidence/small-tables.md."""
    lines = _head(
        "The paper's tables at a small size",
        f"{_WRITTEN} The small settings fit a CPU: fewer or smaller images, smaller networks and shorter schedules "
        "([protocols](protocols.md)). Their figures are not comparable with the paper's. The rows of a table share "
        "their seeds. The settings were chosen by their vanilla networks alone, with one exception in favour of the "
        "search: a ResNet-20 on Corrupted CIFAR-10 was given up after the search had broken it, on validation images "
        "and on the test images of one seed ([decision](../decisions/2026-11-21-evidence.md)).",
    )
    lines += _trials(records)
    for small in SMALL:
        lines += small_table(records, small)
    lines += ["More variants, on the demo's digits, are on [a page of their own](variants.md).", ""]
    return _joined([*lines, *_curves(records), *_texts(records)])


def comparisons(records: Recorded) -> str:
    """docs/pages/evidence/comparisons.md."""
    lines = _head(
        "Compared with other methods",
        f"{_WRITTEN} Each section compares, on the same tensors and with the same seeds: networks in which no weight "
        "was trained, networks with a refitted last layer, finetuned networks, and networks that were trained from "
        "the start with a debiasing method. Pruning criteria are those of Torch-Pruning, at the FLOPs that BISE "
        "left. Unbiased accuracy is the unweighted mean over all subgroups. The worst group is the subgroup with the "
        "lowest accuracy; the smallest subgroups have 20 test images. [Protocols](protocols.md).",
    )
    compared = [setting_of(name, "small") for name in ("digits", "biased_mnist", "corrupted_cifar10")]
    for setting in (setting_of("multi_color_mnist", "full"), *compared):
        for rho in setting.rhos or (0.0,):
            lines += peer_table(records, setting, rho)
    return _joined(lines)


def cost(records: Recorded) -> str:
    """docs/pages/evidence/cost.md."""
    return _joined([*_head("What a search costs", _WRITTEN), *cost_section(records.folder)])


def protocols(records: Recorded) -> str:
    """docs/pages/evidence/protocols.md."""
    lines = _head(
        "Protocols of the experiments",
        "Data, network, training and selection of each setting, as the records hold them. This page is written by "
        "`python benchmarks/results.py`; `python benchmarks/run.py --table 1 8 peers --size small --seeds 0-2 "
        "--data-root data` makes the records that are missing.",
    )
    for setting in SETTINGS:
        about = f"- **{NAMES[setting.name]}, {setting.size}**: {setting.protocol}"
        lines += textwrap.wrap(about, 120, subsequent_indent="  ")
    return _joined(lines)


def _head(title: str, introduction: str) -> list[str]:
    return [f"# {title}", "", *textwrap.wrap(introduction, 120, break_on_hyphens=False), ""]


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


# Pages that are written as a whole, by their names below docs/pages/evidence.
WHOLE: dict[str, Callable[[Recorded], str]] = {
    "paper-tables.md": paper_tables,
    "small-tables.md": small_tables,
    "comparisons.md": comparisons,
    "cost.md": cost,
    "protocols.md": protocols,
}
# Tables that pages take between "<!-- NAME -->" and "<!-- end -->".
BLOCKS: dict[str, Callable[[Recorded], list[str]]] = {
    "all evidence": all_evidence,
    "conflicting": conflicting,
    "noise": noise,
    "transfer": lambda records: transfer(records, "biased_mnist") + transfer(records, "corrupted_cifar10"),
    "after finetuning": after_finetuning,
    "searches": searches,
    "demo": demo,
    "resnet18": resnet18,
    "frontier": frontier,
    "search speed": search_speed,
    "speedup": speedup,
    "transformers": transformers,
    "serving": serving,
    "removal cost": removal_cost,
}
