"""What networks are worth by how much of them may change, at shares of the FLOPs: the page and the figure of it.

    python benchmarks/run.py --table rungs rungs-digits rungs-cifar rungs-texts --seeds 0-4 --data-root data
    python benchmarks/run.py --table rungs-multi-color --size full --seeds 0-4 --data-root data
    python benchmarks/rungs.py

The first two commands make the records, the third draws docs/pages/images/rungs.png from them (needs matplotlib);
``benchmarks/results.py`` writes the page.
"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import replace
from statistics import fmean, stdev

from records import RECORDS
from tables.comparisons import CRITERION_NAMES, RECORDS_URL, title_of
from tables.methods import RE_ESTIMATED, SHARES
from tables.peers import CRITERIA
from tables.recorded import Recorded, Where, mean, seeds_of, spread, write_table
from tables.settings import NAMES, Setting, Size, setting_of

from bise_prune.report.ladder import NAMES as RUNG_NAMES
from bise_prune.tuning.ladder import Rung

PAGE = RECORDS.parents[1] / "docs" / "pages" / "evidence" / "rungs.md"
FIGURE = RECORDS.parents[1] / "docs" / "pages" / "images" / "rungs.png"
_SETS: dict[str, Size] = {
    "digits": "small", "biased_mnist": "small", "corrupted_cifar10": "small", "toxic_comments": "small",
    "multi_color_mnist": "full",
}  # fmt: skip
_ACROSS = 3  # panels of the figure side by side
_NETWORKS = {"dense": "dense", "1": "slim, no target", **{f"{share:g}": f"slim, {share:.0%}" for share in SHARES}}
_RUNGS = {**{rung.value: RUNG_NAMES[rung] for rung in Rung}, "all": "all weights"}
_PEERS = {
    "last layer refitted on the validation set (DFR), dense": ("last-layer", "DFR, validation set"),
    "finetuned as in the paper, dense": ("finetuned", "dense, finetuned"),
    "GroupBalance (SpuCo), dense": ("spuco-group-balance", "GroupBalance"),
    "GroupDRO (SpuCo), dense": ("spuco-group-dro", "GroupDRO"),
    "JTT (SpuCo), dense": ("spuco-jtt", "JTT"),
}


def markdown(records: Recorded) -> str:
    """The records as a page."""
    lines = [
        "# What each rule allows",
        "",
        "This page says what networks are worth by how much of them may change, dense and at shares of the FLOPs, over "
        "seeds on settings of the paper's data.",
        "",
        "**How it was measured.** Masks are those of the default search, widths are not rounded. The rungs are those "
        "of `bise-prune --tune`: masks, offsets, norm layers and head are fitted to half of the validation samples "
        "and decided on the other half, heads on each half of that by a fit to all others; all but masks and "
        "statistics are then fitted again to all of them. `all`: 20 epochs of finetuning with balanced draws from the "
        "training set and from the first half of the validation samples, from the refitted network on, with the "
        "refitted dense network as its teacher; the epoch is selected on the other half. The dense network has the "
        "same treatment. Torch-Pruning's criteria prune to the same FLOPs by its own graph, and have the same "
        "changes, fitted to and decided on the same samples; re-estimated Taylor scores refit statistics and head in "
        "60 steps on the way. The validation samples are balanced in all sets that have some. Commands: "
        "`python benchmarks/run.py --table rungs rungs-digits rungs-cifar rungs-texts --seeds 0-4 --data-root data`, "
        "`--table rungs-multi-color --size full`, "
        f"[records]({RECORDS_URL}), [protocols](protocols.md).",
        "",
        "Unbiased accuracy on test data in %, mean ± sample standard deviation, and in brackets the mean accuracy of "
        "the worst subgroup. The search without `--tune` serves all rungs; with `--tune norms` and `--tune head`, it "
        "starts from the network with trained norm layers where that helps, and for a head judges masks by a refitted "
        "last layer. Each record names its commit; where those of a set differ, the networks of the same seeds may "
        "have been trained anew between them.",
        "",
        "![Unbiased accuracy by share of the FLOPs, one line for each rule](../images/rungs.png)",
        "",
    ]
    for setting, rho in _places(records):
        where = Where(setting.name, setting.size, rho, "rungs", "dense, none")
        lines += [f"## {title_of(setting, rho)}, {seeds_of(records.of(where))}", ""]
        if setting.rule == "last":
            lines += [
                "There is no validation set here: all is fitted to training samples, and the last epoch counts.",
                "",
            ]
        lines += _table(records, setting, rho)
        lines += [f"[Records]({RECORDS_URL}/{setting.folder}).", ""]
    return "\n".join(lines).rstrip() + "\n"


def _places(records: Recorded) -> list[tuple[Setting, float]]:
    """The settings that there are records of."""
    settings = [setting_of(name, size) for name, size in _SETS.items()]
    return [(each, rho) for each in settings for rho in records.rhos(each.name, each.size, "rungs")]


def _table(records: Recorded, setting: Setting, rho: float) -> list[str]:
    """A row per rule and network; then other methods, for comparison."""

    def where(network: str, rung: str) -> Where:
        return Where(setting.name, setting.size, rho, "rungs", f"{network}, {rung}")

    has_norms = _has_norms(records, setting, rho)
    rungs = {rung: label for rung, label in _RUNGS.items() if rung != "norms" or has_norms}
    rows = []
    for rung, label in rungs.items():
        cells = []
        for network in _NETWORKS:
            worst = mean(records.values(where(network, rung), "worst_group")) or 0.0
            cells.append(f"{spread(records.values(where(network, rung), 'unbiased'))} ({100 * worst:.0f})")
        rows.append([label, *cells])
    rows = [
        row for rung, row in zip(rungs, rows, strict=True) for row in (row, *_peer_rows(records, setting, rho, rung))
    ]
    last: list[list[str]] = []
    for rung in ("norms", "head"):
        known = {name: Where(setting.name, setting.size, rho, f"rungs-{rung}", f"{name}, {rung}") for name in _NETWORKS}
        searched = seeds_of(records.of(known["1"]))
        if not records.of(known["1"]):
            continue
        cells, own_left = [], []
        for network, at in known.items():
            found, worst = records.values(at, "unbiased"), mean(records.values(at, "worst_group")) or 0.0
            gain = records.gain(where(network, rung), at, "unbiased")
            cells.append(f"{spread(found)} ({100 * worst:.0f}), {gain}" if found else "–")
            own_left.append(spread(records.values(at, "flops_left")) or "–")
        label = f"{_RUNGS[rung]}, by the search of --tune {rung} ({searched}), and points ahead on these"
        rows.insert([row[0] for row in rows].index(_RUNGS[rung]) + 1, [label, *cells])
        last.append([f"FLOPs left by the search of --tune {rung} ({searched}), %", *own_left])
    left = [spread(records.values(where(network, "none"), "flops_left")) for network in _NETWORKS]
    lines = write_table(("may change", *_NETWORKS.values()), [*rows, ["FLOPs left, %", *left], *last])
    whole = sum(share == 1 for share in records.values(where("1", "none"), "flops_left"))
    if whole:
        lines += [f"Without a target, the search has left the whole network in {whole} of these seeds.", ""]
    lines += _lower_worst(records, setting, rho)
    seeds = records.seeds(where("dense", "none"))
    view = records.only(seeds)
    others = [
        f"{label} {spread(found)}" + (f" ({len(found)} seeds)" if len(found) < len(seeds) else "")
        for label, run in _PEERS.items()
        if (found := view.values(Where(setting.name, setting.size, rho, *run), "unbiased"))
    ]
    if others:
        about = "For comparison, the same seeds; these do not train on validation samples, but for DFR: "
        lines += [*textwrap.wrap(about + "; ".join(others) + ".", 120), ""]
    lines += _clean_start(records, setting, rho)
    return lines


# The README's data sets: one in the paper's size, the others small.
_README: tuple[tuple[str, Size, float], ...] = (
    ("digits", "small", 0.95),
    ("biased_mnist", "small", 0.98),
    ("corrupted_cifar10", "small", 0.95),
    ("toxic_comments", "small", 0.0),
    ("multi_color_mnist", "full", 0.0),
)


def overview(records: Recorded) -> list[str]:
    """The README's table: a data set in a line, dense and slim networks by what may change."""
    rows = []
    for name, size, rho in _README:
        setting = setting_of(name, size)
        dense = Where(name, size, rho, "rungs", "dense, none")
        if not records.of(dense):
            continue
        free, half = replace(dense, row="1, none"), replace(dense, row="0.5, none")
        pairs = {
            rung: [
                records.values(place, "unbiased")
                for place in (
                    replace(dense, row=f"dense, {rung}"),
                    _best_place(records, replace(half, row=f"0.5, {rung}"), rung),
                )
            ]
            for rung in ("norms", "head", "all")
        }
        if not _has_norms(records, setting, rho):
            pairs["norms"] = [[]]
        peer = _best_criterion(records, half)
        rows.append([
            f"[{title_of(setting, rho)}](benchmarks/records/{setting.folder})",
            str(len(records.of(dense))),
            *(spread(records.values(place, "unbiased")) for place in (dense, free)),
            spread(records.values(free, "flops_left"), digits=0),
            spread(records.values(half, "unbiased")),
            f"{spread(peer[1])} ({CRITERION_NAMES[peer[0]]})" if peer else "–",
            *(" → ".join(map(spread, pair)) or "–" for pair in pairs.values()),
        ])  # fmt: skip
    header = (
        "unbiased accuracy, %", "seeds", "dense", "slim", "FLOPs left, %", "slim, half", "best criterion, half",
        "norm layers, dense → half", "last layer, dense → half", "all weights, dense → half",
    )  # fmt: skip
    return write_table(header, rows)


def _has_norms(records: Recorded, setting: Setting, rho: float) -> bool:
    """Whether the networks have norm layers: there is a search for that rung, or it differs from that of offsets."""
    if records.of(Where(setting.name, setting.size, rho, "rungs-norms", "")):
        return True
    norms, shift = (
        [
            records.values(Where(setting.name, setting.size, rho, "rungs", f"{name}, {rung}"), "unbiased")
            for name in _NETWORKS
        ]
        for rung in ("norms", "shift")
    )
    return norms != shift


def _clean_start(records: Recorded, setting: Setting, rho: float) -> list[str]:
    """What the weights are worth that vanilla training starts from, which have not learned the bias."""
    place = Where(setting.name, setting.size, rho, "rungs-clean", "")
    if not (runs := records.of(place)):
        return []
    none, head, every, half = (
        spread(records.values(replace(place, row=row), "unbiased"))
        for row in ("dense, none", "dense, head", "dense, all", "0.5, all")
    )
    told = (
        "From the weights that vanilla training starts from, which have not learned the bias "
        f"({seeds_of(runs)}), dense: as they are {none}, with the last layer {head}, with all weights {every}; with "
        f"the masks of half of the FLOPs and all weights {half}."
    )
    return [*textwrap.wrap(told, 120), ""]


def _lower_worst(records: Recorded, setting: Setting, rho: float) -> list[str]:
    """Where the worst subgroup is lower than the dense network's at the same rung, beyond the noise between seeds."""
    told = []
    if len(records.seeds(Where(setting.name, setting.size, rho, "rungs", ""))) < 3:
        return []
    for rung, label in _RUNGS.items():
        place = Where(setting.name, setting.size, rho, "rungs", f"dense, {rung}")
        for name in list(_NETWORKS)[1:]:
            slim = _best_place(records, replace(place, row=f"{name}, {rung}"), rung)
            worst, unbiased = (records.changes(place, slim, key) for key in ("worst_group", "unbiased"))
            if len(worst) > 2 and fmean(worst) < -2 * stdev(worst) / len(worst) ** 0.5:
                told.append(
                    f"{label}, {_NETWORKS[name]} ({100 * fmean(worst):+.0f}; unbiased {100 * fmean(unbiased):+.1f})"
                )
    about = "Where the worst subgroup is below the dense network's at the same rung by more than two standard errors "
    return [*textwrap.wrap(f"{about}over seeds, in points: {'; '.join(told) or 'nowhere'}.", 120), ""]


def _best_place(records: Recorded, place: Where, rung: str) -> Where:
    """The network of a rung by the search that knows it, if there is one; otherwise by the search that serves all."""
    own = replace(place, method=f"rungs-{rung}")
    return own if records.of(own) else place


def _peer_rows(records: Recorded, setting: Setting, rho: float, rung: str) -> list[list[str]]:
    """At a rung, the best of Torch-Pruning's criteria at each share, and re-estimated Taylor scores."""

    def place(network: str) -> Where:
        return Where(setting.name, setting.size, rho, "rungs", f"{network}, {rung}")

    targets = list(_NETWORKS)[2:]
    rows = []
    best = [found for network in targets if (found := _best_criterion(records, place(network)))]
    if best:
        cells = [f"{spread(values)} ({CRITERION_NAMES[name]})" for name, values in best]
        rows.append(["best of Torch-Pruning's five criteria, the same change", "–", "–", *cells])
    again = [spread(_by_criterion(records, RE_ESTIMATED, place(network))) for network in targets]
    if all(again):
        rows.append(["re-estimated Taylor scores, the same change", "–", "–", *again])
    return rows


def _best_criterion(records: Recorded, place: Where) -> tuple[str, list[float]] | None:
    """That of Torch-Pruning's criteria with the highest mean at the share and rung of a place, and its accuracies."""
    found = {name: values for name in CRITERIA if (values := _by_criterion(records, name, place))}
    return max(found.items(), key=lambda item: mean(item[1]) or 0.0, default=None)


def _by_criterion(records: Recorded, criterion: str, place: Where) -> list[float]:
    """Accuracies by a criterion at the share and rung of a place."""
    return records.values(replace(place, method="rungs-criteria", row=f"{criterion} {place.row}"), "unbiased")


def main() -> int:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    records = Recorded(RECORDS)
    places = _places(records)
    height = -(-len(places) // _ACROSS)
    figure, axes = plt.subplots(
        height, _ACROSS, figsize=(3.6 * _ACROSS, 0.4 + 3.4 * height), layout="constrained", squeeze=False
    )
    for axis in axes.flat[len(places) :]:
        axis.axis("off")
    colours = ("#8a97a8", "#c08a3e", "#4f8f5f", "#2f6f8f", "#7a3e8f")
    for axis, (setting, rho) in zip(axes.flat, places, strict=False):
        for (rung, label), colour in zip(_RUNGS.items(), colours, strict=True):
            points = []
            for network in _NETWORKS:
                place = Where(setting.name, setting.size, rho, "rungs", f"{network}, {rung}")
                place = place if network == "dense" else _best_place(records, place, rung)
                values = [mean(records.values(place, key)) or 0.0 for key in ("flops_left", "unbiased")]
                points.append((100 * values[0], 100 * values[1]))
            dense, *slim = points
            slim.sort(reverse=True)
            axis.plot(*zip(*slim, strict=True), color=colour, marker="o", markersize=4, label=f"slim, {label}")
            axis.plot(*dense, color=colour, marker="D", markersize=6, linestyle="none", label=f"dense, {label}")
        axis.set_title(NAMES[setting.name] + (f", rho {rho:g}" if rho else ""), fontsize=9)
        axis.set_xlabel("FLOPs left, %")
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[:, 0]:
        axis.set_ylabel("unbiased accuracy, %")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(FIGURE, dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
