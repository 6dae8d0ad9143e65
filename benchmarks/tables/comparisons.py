"""Comparisons beyond the paper: peers, conflicting samples, wrong labels, other test sets."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from .cases import LATENCY_BATCH
from .methods import BUDGETS, SHARES, SHORT
from .recorded import Recorded, Where, mean, seeds_of, spread, write_table
from .settings import NAMES, Setting, setting_of

RECORDS_URL = "https://github.com/bise-prune/bise-prune/blob/main/benchmarks/records"

CRITERION_NAMES = {"magnitude": "magnitude", "lamp": "LAMP", "taylor": "Taylor", "fpgm": "FPGM", "random": "random"}

# -- peers -----------------------------------------------------------------------------------------


def peer_rows(setting: Setting) -> list[tuple[str, str, str, str]]:
    """Kind, label, run and row of everything that is compared on a data set."""
    cut = [(label, f"tp-{criterion}") for criterion, label in CRITERION_NAMES.items()]
    return [
        ("", "vanilla", "vanilla", "vanilla"),
        ("", "the weights it started from", "vanilla", "starting weights"),
        ("not trained", "BISE", "bise", setting.rule),
        ("not trained", "BISE, widths rounded up", "rounded", "rounded"),
        *(("not trained", f"{label} (torch-pruning)", run, "as is") for label, run in cut),
        ("not trained", "FFW, gates on weights", "ffw", "FFW"),
        ("last layer refitted", "reweighted, training set", "last-layer", "last layer, reweighted"),
        ("last layer refitted", "DFR, validation set", "last-layer", "DFR, validation set"),
        ("finetuned", "BISE", "finetuned", "finetuned"),
        *(("finetuned", f"{label} (torch-pruning)", run, "finetuned") for label, run in cut),
        ("finetuned", "dense", "finetuned", "dense, finetuned"),
        ("trained from the start", "ERM (SpuCo)", "spuco-erm", "ERM"),
        ("trained from the start", "GroupBalance (SpuCo)", "spuco-group-balance", "GroupBalance"),
        ("trained from the start", "GroupDRO (SpuCo)", "spuco-group-dro", "GroupDRO"),
        ("trained from the start", "JTT (SpuCo)", "spuco-jtt", "JTT"),
    ]


_NO_LABELS = ("vanilla", "starting weights", "ERM", "as is")  # rows that need none to train on, nor to select by
_NOT_SELECTED = ("FFW", "last layer, reweighted")


def _needs(setting: Setting, row: str) -> str:
    """Which bias labels a row needs, to train on and to select by."""
    if row in _NO_LABELS:
        return "none"
    trained = ["training"] if row not in ("JTT", "DFR, validation set") else []
    selected = ["validation"] if setting.rule == "best" and row not in _NOT_SELECTED else []
    return ", ".join(trained + selected) or "none"


def peer_table(records: Recorded, setting: Setting, rho: float) -> list[str]:
    """Everything that is compared on a data set, and which methods have a higher mean than the search."""
    header = (
        "method", "weights", "seeds", "unbiased accuracy, %", "worst group, %", "aligned - conflicting, points",
        "parameters, k", "kFLOPs", "latency / dense", "cost, vanilla epochs", "bias labels in",
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
        rows.append([label, kind or "–", str(len(found)), *cells])
    if len(rows) < 2:
        return []
    counts = used[0]["n"]
    disagreeing = " and ".join(f"{count:,}" for count in counts["conflicting"])  # one a bias
    about = (
        f"{counts['train']:,} training samples, {disagreeing} of them bias-conflicting (seed {used[0]['seed']}), "
        f"{counts['test']:,} test samples ([records]({RECORDS_URL}/{setting.folder})). Latency is onnxruntime's on "
        f"one thread at batch {LATENCY_BATCH}, measured by turns with the dense network. The cost is the CPU time "
        "beyond the checkpoint, in epochs of the vanilla training; it includes validation after each epoch for BISE "
        "and finetuning, but not for the methods that train from the start."
    )
    ours = means.get(("not trained", "BISE"), 0.0)
    better = [
        f"{label} ({kind})" if kind else label
        for (kind, label), found in means.items()
        if found > ours and "BISE" not in label
    ]
    says = (
        f"Higher mean unbiased accuracy than BISE without training: {'; '.join(better)}."
        if better
        else "No method has a higher mean unbiased accuracy than BISE."
    )
    return [
        f"## {title_of(setting, rho)}",
        "",
        *textwrap.wrap(about, 120),
        "",
        *write_table(header, rows),
        *textwrap.wrap(says, 120),
        "",
    ]


# -- checks beyond the paper -----------------------------------------------------------------------


def conflicting(records: Recorded) -> list[str]:
    """The gain by the number of bias-conflicting training samples."""
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
        "rho", "seeds", "bias-conflicting samples", "vanilla", "BISE", "gain, points", "FLOPs left",
        "last layer, reweighted", "dense, finetuned", "BISE, finetuned",
    )  # fmt: skip
    return write_table(header, rows)


def noise(records: Recorded) -> list[str]:
    """The search with wrong bias labels and with pseudo bias labels."""
    rho = setting_of("biased_mnist", "small").rhos[0]
    records = records.matched(Where("biased_mnist", "small", rho, method, "") for method in ("bise", "noise-0.1"))
    rows = []
    for label, method in (
        ("true bias labels", "bise"),
        *((f"{share:.0%} of the bias labels wrong", f"noise-{share:g}") for share in (0.1, 0.3, 0.5, 0.8)),
        ("pseudo labels, one epoch", "unsupervised"),
        ("pseudo labels, three epochs", "unsupervised-3"),
    ):
        best, last = (Where("biased_mnist", "small", rho, method, row) for row in ("best", "last"))
        keys = ((best, "unbiased"), (last, "unbiased"), (best, "sparsity"), (best, "precision"), (best, "recall"))
        rows.append([label, str(len(records.of(best))), *(spread(records.values(*key)) for key in keys)])
    vanilla = records.values(Where("biased_mnist", "small", rho, "vanilla", "vanilla"), "unbiased")
    rows.append(["vanilla network, no search", str(len(vanilla)), spread(vanilla), "", "", "", ""])
    header = (
        "", "seeds", "unbiased accuracy, %", "last epoch, %", "sparsity, %", "conflicting: precision, %", "recall, %"
    )  # fmt: skip
    return write_table(header, rows)


def transfer(records: Recorded, name: str) -> list[str]:
    """The same masks evaluated on other test sets."""
    rows = []
    rhos = setting_of(name, "small").rhos
    seeds = seeds_of(records.of(Where(name, "small", rhos[0], "transfer", "")))
    named = records.row_names(Where(name, "small", rhos[0], "transfer", ""))
    for condition in dict.fromkeys(row.rpartition(", ")[0] for row in named):
        cells = [condition]
        for rho in rhos:
            vanilla = Where(name, "small", rho, "transfer", f"{condition}, vanilla")
            ours = Where(name, "small", rho, "transfer", f"{condition}, BISE")
            cells += [spread(records.values(where, "accuracy")) for where in (vanilla, ours)]
            cells.append(records.gain(vanilla, ours, "accuracy"))
        rows.append(cells)
    header = [f"{NAMES[name]}, {seeds}"]
    for rho in rhos:
        header += [f"vanilla, rho {rho:g}", "BISE", "gain"]
    return write_table(header, rows)


def after_finetuning(records: Recorded) -> list[str]:
    """Criteria at equal FLOPs, before and after finetuning."""
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


def searches(records: Recorded) -> list[str]:
    """The default search beside the paper's: unbiased accuracy at shares of the FLOPs."""
    rows = []
    for name, size, rho in _SEARCHED:
        setting = setting_of(name, size)
        own = Where(name, size, rho, "gradual", "1")
        if not records.of(own):
            continue
        view = records.only(records.seeds(own))
        title = f"{title_of(setting, rho)}, {seeds_of(view.of(own))}"
        frees = {"gradual": own, "budgets": Where(name, size, rho, "bise", setting.rule)}
        for run, free in frees.items():
            if not view.of(free):
                continue
            cells = [title, "gradual" if run == "gradual" else "paper"]
            cells += [spread(view.values(free, "unbiased")), spread(view.values(free, "flops_left"))]
            for share in SHARES:
                cells.append(spread(view.values(Where(name, size, rho, run, f"{share:g}"), "unbiased")) or "–")
            rows.append(cells)
    header = ("data", "search", "without a target", "FLOPs left", *(f"{share:.0%} of the FLOPs" for share in SHARES))
    return write_table(header, rows)


def title_of(setting: Setting, rho: float) -> str:
    """Name, size and share of aligned samples of a setting."""
    return f"{NAMES[setting.name]}, {setting.size}" + (f", rho {rho:g}" if rho else "")


# Where the two searches are compared.
_SEARCHED = (
    ("digits", "small", 0.95),
    ("biased_mnist", "small", 0.95),
    ("biased_mnist", "small", 0.98),
    ("corrupted_cifar10", "small", 0.95),
    ("multi_color_mnist", "full", 0.0),
    ("biased_mnist", "full", 0.99),
)


def all_evidence(records: Recorded) -> list[str]:
    """The paper's search beside cheap alternatives, on every data set and share of aligned samples, a table a size."""
    names = ("digits", "biased_mnist", "corrupted_cifar10", "toxic_comments")
    small = [(each, rho) for each in map(setting_of, names, ["small"] * 4) for rho in each.rhos or (0.0,)]
    return [
        "The paper's data and network:", "",
        *_evidence(records, [(setting_of("multi_color_mnist", "full"), 0.0)]),
        "Small settings for a CPU, with protocols of their own:", "",
        *_evidence(records, small),
    ]  # fmt: skip


def _evidence(records: Recorded, places: Sequence[tuple[Setting, float]]) -> list[str]:
    """One data set in a line, over the seeds that all its cells have."""
    rows = []
    for setting, rho in places:
        place = (setting.name, setting.size, rho)
        criteria = {title: Where(*place, f"tp-{criterion}", "as is") for criterion, title in CRITERION_NAMES.items()}
        columns = [
            Where(*place, *run)
            for run in (
                ("vanilla", "vanilla"),
                ("bise", setting.rule),
                ("last-layer", "last layer, reweighted"),
                ("last-layer", "DFR, validation set"),
                ("finetuned", "dense, finetuned"),
                ("finetuned", "finetuned"),
            )
        ]
        shared = records.matched([*columns, *criteria.values()])
        vanilla, bise, *cures = (shared.values(where, "unbiased") for where in columns)
        if not bise:
            continue
        others = {title: shared.values(where, "unbiased") for title, where in criteria.items()}
        others = {title: found for title, found in others.items() if len(found) == len(bise)}
        best = max(others, key=lambda name: mean(others[name]) or 0.0, default="")
        rows.append([
            f"[{title_of(setting, rho)}]({RECORDS_URL}/{setting.folder})",
            str(len(bise)), spread(vanilla), spread(bise), spread(shared.values(columns[1], "flops_left")),
            f"{spread(others[best])} ({best})" if best else "–", *(spread(values) or "–" for values in cures),
        ])  # fmt: skip
    header = (
        "unbiased accuracy, %", "seeds", "vanilla", "BISE", "FLOPs left", "other criterion",
        "last layer, reweighted", "last layer, unbiased data", "dense, finetuned", "BISE, finetuned",
    )  # fmt: skip
    return write_table(header, rows)
