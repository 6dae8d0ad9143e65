"""Comparisons beyond the paper: peers, conflicting samples, wrong labels, other conditions, the README's table."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .cases import LATENCY_BATCH
from .methods import BUDGETS, SHORT
from .recorded import Recorded, Where, mean, seeds_of, spread, write_table
from .settings import NAMES, Setting, setting_of

_CRITERIA = {"magnitude": "magnitude", "lamp": "LAMP", "taylor": "Taylor", "fpgm": "FPGM", "random": "random"}

# -- peers -----------------------------------------------------------------------------------------


def peer_rows(setting: Setting) -> list[tuple[str, str, str, str]]:
    """Kind, label, run and row of everything that is compared on a data set."""
    cut = [(label, f"tp-{criterion}") for criterion, label in _CRITERIA.items()]
    return [
        ("", "vanilla", "vanilla", "vanilla"),
        ("", "the weights it started from", "vanilla", "starting weights"),
        ("no weight touched", "BISE", "bise", setting.rule),
        ("no weight touched", "BISE, widths rounded up", "rounded", "rounded"),
        *(("no weight touched", f"{label} (torch-pruning)", run, "as is") for label, run in cut),
        ("no weight touched", "FFW, gates on weights", "ffw", "FFW"),
        ("last layer", "reweighted, training set", "last-layer", "last layer, reweighted"),
        ("last layer", "DFR, validation set", "last-layer", "DFR, validation set"),
        ("finetuned", "BISE", "finetuned", "finetuned"),
        *(("finetuned", f"{label} (torch-pruning)", run, "finetuned") for label, run in cut),
        ("finetuned", "dense", "finetuned", "dense, finetuned"),
        ("trained anew", "ERM (SpuCo)", "spuco-erm", "ERM"),
        ("trained anew", "GroupBalance (SpuCo)", "spuco-group-balance", "GroupBalance"),
        ("trained anew", "GroupDRO (SpuCo)", "spuco-group-dro", "GroupDRO"),
        ("trained anew", "JTT (SpuCo)", "spuco-jtt", "JTT"),
    ]


_NO_LABELS = ("vanilla", "starting weights", "ERM", "as is")  # rows that need none to train on, nor to select by
_NOT_SELECTED = ("FFW", "last layer, reweighted")


def _needs(setting: Setting, row: str) -> str:
    """Which bias labels a row needs, to train on and to select by."""
    if row in _NO_LABELS:
        return "no"
    trained = ["training"] if row not in ("JTT", "DFR, validation set") else []
    selected = ["validation"] if setting.rule == "best" and row not in _NOT_SELECTED else []
    return ", ".join(trained + selected) or "no"


def peer_table(records: Recorded, setting: Setting, rho: float) -> list[str]:
    """Everything that is compared on a data set, and in words what beats the search."""
    header = (
        "", "", "seeds", "unbiased, %", "worst group, %", "aligned - conflicting", "parameters, k", "kFLOPs",
        "latency, of dense", "vanilla epochs", "bias labels",
    )  # fmt: skip
    rows, used, means = [], [], dict[tuple[str, str], float]()
    places = [
        (Where(setting.name, setting.size, rho, run, row), kind, label) for kind, label, run, row in peer_rows(setting)
    ]
    records = records.matched(where for where, _, _ in places)
    for where, kind, label in places:
        found = records.values(where, "unbiased")
        if not found:
            continue
        used += records.of(where)
        means[kind, label] = mean(found) or 0.0
        epochs = spread(records.values(where, "epochs"), 1) if kind else "0" * (label == "vanilla")
        cells = [spread(records.values(where, key)) for key in ("unbiased", "worst_group", "gap")]
        cells += [spread(records.values(where, key), 10.0**-n) for key, n in (("params", 3), ("flops", 3))]
        cells += [spread(records.values(where, "latency_ratio"), 1, 2), epochs, _needs(setting, where.row)]
        rows.append([kind, label, str(len(found)), *cells])
    if len(rows) < 2:
        return []
    counts = used[0]["n"]
    disagreeing = " and ".join(f"{count:,}" for count in counts["conflicting"])  # one a bias
    about = (
        f"{counts['train']:,} training samples, {disagreeing} of them conflicting (seed {used[0]['seed']}), "
        f"{counts['test']:,} test samples. Latency: onnxruntime, one thread, batch {LATENCY_BATCH}, by turns with the "
        "dense network. Vanilla epochs: CPU time on top of the checkpoint, in epochs of the vanilla training; "
        "validation after each epoch counts for BISE and finetuning, not for those that train anew."
    )
    ours = means.get(("no weight touched", "BISE"), 0.0)
    better = [
        f"{label} ({kind})" if kind else label
        for (kind, label), found in means.items()
        if found > ours and "BISE" not in label
    ]
    says = (
        f"More unbiased than BISE as it is, in the mean: {'; '.join(better)}."
        if better
        else "Nothing is ahead of BISE."
    )
    return [
        f"### {_title(setting, rho)}",
        "",
        *textwrap.wrap(about, 120),
        "",
        *write_table(header, rows),
        *textwrap.wrap(says, 120),
        "",
    ]


# -- checks beyond the paper -----------------------------------------------------------------------


def conflicting(records: Recorded) -> list[str]:
    """Gain against the number of bias-conflicting training samples."""
    rows = []
    for rho in records.rhos("biased_mnist", "small", "bise"):

        def where(method: str, row: str, rho: float = rho) -> Where:
            return Where("biased_mnist", "small", rho, method, row)

        found = records.of(where("vanilla", "vanilla"))
        rows.append([
            f"{rho:g}", str(len(found)), spread([record["n"]["conflicting"][0] for record in found], 1, 0),
            spread(records.values(where("vanilla", "vanilla"), "unbiased")),
            spread(records.values(where("bise", "best"), "unbiased")),
            records.gain(where("vanilla", "vanilla"), where("bise", "best"), "unbiased"),
            spread(records.values(where("bise", "best"), "flops_left")),
            spread(records.values(where("last-layer", "last layer, reweighted"), "unbiased")),
            spread(records.values(where("finetuned", "dense, finetuned"), "unbiased")),
            spread(records.values(where("finetuned", "finetuned"), "unbiased")),
        ])  # fmt: skip
    header = (
        "rho", "seeds", "conflicting samples", "vanilla", "BISE", "gain", "FLOPs left", "last layer, reweighted",
        "dense, finetuned", "BISE, finetuned",
    )  # fmt: skip
    return write_table(header, rows)


def noise(records: Recorded) -> list[str]:
    """Wrong bias labels, and labels that a briefly trained network made up."""
    rho = setting_of("biased_mnist", "small").rhos[0]
    records = records.matched(Where("biased_mnist", "small", rho, method, "") for method in ("bise", "noise-0.1"))
    rows = []
    for label, method in (
        ("true labels", "bise"),
        *((f"{share:.0%} of the labels wrong", f"noise-{share:g}") for share in (0.1, 0.3, 0.5, 0.8)),
        ("pseudo labels, one epoch", "unsupervised"),
        ("pseudo labels, three epochs", "unsupervised-3"),
    ):
        best, last = (Where("biased_mnist", "small", rho, method, row) for row in ("best", "last"))
        keys = ((best, "unbiased"), (last, "unbiased"), (best, "sparsity"), (best, "precision"), (best, "recall"))
        rows.append([label, str(len(records.of(best))), *(spread(records.values(*key)) for key in keys)])
    vanilla = records.values(Where("biased_mnist", "small", rho, "vanilla", "vanilla"), "unbiased")
    rows.append(["(vanilla)", str(len(vanilla)), spread(vanilla), "", "", "", ""])
    header = (
        "", "seeds", "unbiased, %", "last epoch, %", "parameters gone, %", "what conflicts: precision, %", "recall, %"
    )  # fmt: skip
    return write_table(header, rows)


def transfer(records: Recorded, name: str) -> list[str]:
    """The masks of the tables on other test sets."""
    rows = []
    rhos = setting_of(name, "small").rhos
    seeds = seeds_of(records.of(Where(name, "small", rhos[0], "transfer", "")))
    named = records.row_names(Where(name, "small", rhos[0], "transfer", ""))
    for condition in dict.fromkeys(row.rpartition(", ")[0] for row in named):
        cells = [condition]
        for rho in rhos:
            both = [Where(name, "small", rho, "transfer", f"{condition}, {model}") for model in ("vanilla", "BISE")]
            cells += [spread(records.values(where, "accuracy")) for where in both]
            cells.append(records.gain(*both, "accuracy"))
        rows.append(cells)
    header = [f"{NAMES[name]}, {seeds}"]
    for rho in rhos:
        header += [f"vanilla, rho {rho:g}", "BISE", "gain"]
    return write_table(header, rows)


def after_finetuning(records: Recorded) -> list[str]:
    """Whether the criterion matters once the weights are trained on."""
    lines: list[str] = []
    for rho in records.rhos("biased_mnist", "small", "after-finetuning"):
        rows = []
        for budget in BUDGETS:
            for by in ("BISE", "magnitude", "random"):
                cells = [f"{budget:.0%} of the FLOPs, {by}"]
                for epochs in (0, *SHORT):
                    where = Where("biased_mnist", "small", rho, "after-finetuning", f"{by} {budget:g}, {epochs}")
                    cells.append(spread(records.values(where, "unbiased")))
                rows.append(cells)
        epochs = [f"{count} epoch{'s' * (count > 1)}" for count in SHORT]
        seeds = seeds_of(records.of(Where("biased_mnist", "small", rho, "after-finetuning", "")))
        lines += write_table((f"rho {rho:g}, {seeds}", "as it is", *epochs), rows)
    return lines


def _title(setting: Setting, rho: float) -> str:
    return f"{NAMES[setting.name]}, {setting.size}" + (f", rho {rho:g}" if rho else "")


def evidence(records: Recorded) -> list[str]:
    """The README's tables, one a size: each data set in a line, over the seeds that all its cells have."""
    names = ("digits", "biased_mnist", "corrupted_cifar10", "toxic_comments")
    return [
        "The paper's data and network:", "",
        *_evidence(records, [setting_of("multi_color_mnist", "full")]),
        "Smaller ones, as far as a CPU goes, with protocols of their own:", "",
        *_evidence(records, [setting_of(name, "small") for name in names]),
    ]  # fmt: skip


def _evidence(records: Recorded, settings: Sequence[Setting]) -> list[str]:
    rows = []
    for setting, rho in [(each, rho) for each in settings for rho in each.rhos or (0.0,)]:
        place = (setting.name, setting.size, rho)
        criteria = {title: Where(*place, f"tp-{criterion}", "as is") for criterion, title in _CRITERIA.items()}
        columns = [
            Where(*place, *run)
            for run in (
                ("vanilla", "vanilla"),
                ("bise", setting.rule),
                ("last-layer", "last layer, reweighted"),
                ("finetuned", "dense, finetuned"),
                ("finetuned", "finetuned"),
            )
        ]
        shared = records.matched([*columns, *criteria.values()])
        vanilla, bise, last_layer, dense, finetuned = (shared.values(where, "unbiased") for where in columns)
        if not bise:
            continue
        others = {title: shared.values(where, "unbiased") for title, where in criteria.items()}
        others = {title: found for title, found in others.items() if len(found) == len(bise)}
        title = max(others, key=lambda name: mean(others[name]) or 0.0, default="")
        rows.append([
            f"[{_title(setting, rho)}](benchmarks/records/{setting.folder})",
            str(len(bise)), spread(vanilla), spread(bise), spread(shared.values(columns[1], "flops_left")),
            f"{spread(others[title])} ({title})" if title else "", spread(last_layer), spread(dense),
            spread(finetuned),
        ])  # fmt: skip
    header = (
        "unbiased accuracy, %", "seeds", "vanilla", "BISE", "FLOPs left", "best other criterion there",
        "last layer, reweighted", "dense, finetuned", "BISE, finetuned",
    )  # fmt: skip
    return write_table(header, rows)
