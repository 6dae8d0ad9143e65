"""The paper's figures: mean and standard deviation over three seeds, accuracies and sparsities in percent."""

from __future__ import annotations

from dataclasses import dataclass

GROUPS = ("aligned, aligned", "aligned, conflicting", "conflicting, aligned", "conflicting, conflicting")
"""Of Multi-Color MNIST: which of the left and the right colour a sample is aligned with."""


@dataclass(frozen=True)
class Row:
    """One figure of the paper, and where ours stands in the records.

    Attributes:
        label: of the row, in words.
        mean: the paper's.
        std: the paper's.
        rho: share of bias-aligned samples; 0 where there is nothing to choose.
        method: the run of ours.
        row: its row.
        key: its figure.
        scale: from ours to the paper's unit.
        digits: behind the point, as the paper prints them.
    """

    label: str
    mean: float
    std: float
    rho: float
    method: str
    row: str
    key: str = "unbiased"
    scale: float = 100.0
    digits: int = 1


@dataclass(frozen=True)
class Table:
    """One table of the paper at its full size."""

    name: str
    title: str
    setting: str
    rows: tuple[Row, ...]


def _biased_mnist() -> list[Table]:
    accuracy, size = [], []
    for rho, vanilla, best, tuned, last in (
        (0.99, (88.9, 0.4), (96.1, 0.5), (98.1, 0.1), (95.7, 0.6)),
        (0.995, (75.1, 4.2), (92.2, 1.9), (96.3, 0.7), (91.2, 1.9)),
        (0.997, (66.1, 1.7), (90.8, 0.6), (95.9, 0.4), (88.3, 3.2)),
    ):
        accuracy += [
            Row(f"vanilla, rho {rho}", *vanilla, rho, "vanilla", "vanilla"),
            Row(f"BISE, rho {rho}", *best, rho, "bise", "best"),
            Row(f"BISE + finetuning, rho {rho}", *tuned, rho, "finetuned", "finetuned"),
            Row(f"BISE (last), rho {rho}", *last, rho, "bise", "last"),
        ]
    for rho, best, last in (
        (0.99, (20.9, 4.4, 328.3, 18.2), (18.9, 4.3, 336.4, 17.7)),
        (0.995, (29.9, 7.5, 290.8, 31.0), (30.0, 6.8, 290.7, 28.3)),
        (0.997, (35.0, 1.5, 269.6, 6.2), (33.8, 4.0, 274.6, 16.7)),
    ):
        for label, row, figures in (("BISE", "best", best), ("BISE (last)", "last", last)):
            size += [
                Row(f"{label}, S, rho {rho}", *figures[:2], rho, "bise", row, "sparsity"),
                Row(f"{label}, MFLOPs, rho {rho}", *figures[2:], rho, "bise", row, "flops", 1e-6),
            ]
    extreme = [
        Row("vanilla", 10.0, 0.1, 0.999, "vanilla", "vanilla"),
        Row("BISE", 15.7, 1.3, 0.999, "bise", "best"),
        Row("BISE, S", 85.6, 4.0, 0.999, "bise", "best", "sparsity"),
        Row("BISE, MFLOPs", 59.8, 16.7, 0.999, "bise", "best", "flops", 1e-6),
        Row("BISE + finetuning", 60.5, 9.4, 0.999, "finetuned", "finetuned"),
        Row("BISE (last)", 14.7, 2.5, 0.999, "bise", "last"),
        Row("BISE (last), S", 78.2, 2.9, 0.999, "bise", "last", "sparsity"),
        Row("BISE (last), MFLOPs", 90.5, 11.9, 0.999, "bise", "last", "flops", 1e-6),
    ]
    losses = [
        Row(f"{label}, {what}", *figures, 0.99, method, "best", key)
        for label, method, accuracy_of, sparsity_of in (
            ("neither", "loss-plain", (91.9, 0.7), (5.8, 2.6)),
            ("reweighting alone", "loss-reweighted", (96.0, 0.4), (18.5, 6.5)),
            ("information alone", "loss-information", (91.1, 0.5), (18.7, 0.5)),
            ("both", "bise", (96.1, 0.5), (20.9, 4.4)),
        )
        for what, key, figures in (("accuracy", "unbiased", accuracy_of), ("S", "sparsity", sparsity_of))
    ]
    sensitivity = [
        Row(f"{label}, {what}", *figures, 0.99, method, "best", key)
        for label, method, accuracy_of, sparsity_of in (
            ("E = 1", "head-epochs-1", (95.9, 0.4), (18.9, 7.3)),
            ("E = 5", "head-epochs-5", (96.0, 0.5), (17.6, 7.1)),
            ("E = 10", "head-epochs-10", (96.0, 0.4), (20.0, 6.1)),
            ("E = 20", "head-epochs-20", (95.7, 0.5), (17.2, 7.6)),
            ("E = 50", "head-epochs-50", (96.1, 0.5), (20.9, 4.4)),
            ("kappa = .1", "kappa-0.1", (96.0, 0.4), (20.6, 3.9)),
            ("kappa = .8", "kappa-0.8", (96.2, 0.6), (18.9, 7.6)),
            ("upsilon = 1", "upsilon-1", (95.9, 0.5), (22.4, 6.3)),
            ("upsilon = 5", "upsilon-5", (95.8, 0.5), (18.3, 6.2)),
            ("upsilon = 10", "upsilon-10", (96.1, 0.5), (20.9, 4.4)),
            ("upsilon = 20", "upsilon-20", (96.0, 0.5), (19.2, 6.3)),
            ("upsilon = 50", "upsilon-50", (96.5, 0.3), (19.8, 8.0)),
            ("tau_min = .1", "tau-min-0.1", (95.9, 0.6), (20.4, 5.0)),
            ("tau_min = .01", "tau-min-0.01", (96.1, 0.5), (20.9, 4.4)),
            ("tau_min = .0001", "tau-min-0.0001", (96.1, 0.5), (20.9, 4.4)),
        )
        for what, key, figures in (("accuracy", "unbiased", accuracy_of), ("S", "sparsity", sparsity_of))
    ]
    norms = [
        Row(f"{label}, {what}, rho {rho}", *figures, rho, method, "best", key)
        for rho, statistics, affine in (
            (0.99, ((97.3, 0.1), (18.3, 6.8)), ((96.9, 0.4), (32.7, 7.7))),
            (0.995, ((94.9, 1.1), (26.5, 4.0)), ((92.2, 1.9), (45.7, 3.9))),
            (0.997, ((94.0, 1.2), (33.3, 7.9)), ((90.1, 3.7), (48.2, 12.0))),
        )
        for label, method, pair in (
            ("avg, std", "batchnorm-statistics", statistics),
            ("avg, std, beta, gamma", "batchnorm-affine", affine),
        )
        for what, key, figures in zip(("accuracy", "S"), ("unbiased", "sparsity"), pair, strict=True)
    ]
    pseudo = [
        Row(f"{label}, {what}, rho {rho}", *figures, rho, "unsupervised", row, key)
        for rho, best, last in (
            (0.99, ((95.8, 0.5), (19.9, 4.4)), ((95.4, 0.7), (19.7, 3.6))),
            (0.995, ((92.0, 2.0), (26.2, 4.7)), ((90.6, 1.9), (28.8, 4.9))),
            (0.997, ((90.4, 0.6), (30.9, 2.3)), ((90.0, 0.2), (28.8, 4.5))),
        )
        for label, row, pair in (("unsupervised BISE", "best", best), ("unsupervised BISE (last)", "last", last))
        for what, key, figures in zip(("accuracy", "S"), ("unbiased", "sparsity"), pair, strict=True)
    ]
    read = [
        Row("vanilla", 97.6, 1.0, 0.99, "probe", "vanilla", "bias_read"),
        Row("BISE", 82.1, 7.3, 0.99, "probe", "BISE", "bias_read"),
    ]
    name = "biased_mnist"
    return [
        Table("1", "BiasedMNIST, unbiased accuracy in %", name, tuple(accuracy)),
        Table("2", "BiasedMNIST, size", name, tuple(size)),
        Table("G.1", "BiasedMNIST at rho .999", name, tuple(extreme)),
        Table("8", "parts of the objective, BiasedMNIST at rho .99", name, tuple(losses)),
        Table("H", "sensitivity, BiasedMNIST at rho .99", name, tuple(sensitivity)),
        Table("I", "batch norms that follow, BiasedMNIST", name, tuple(norms)),
        Table("K", "pseudo bias labels, BiasedMNIST", name, tuple(pseudo)),
        Table("M", "colour read by a linear head, in %, BiasedMNIST at rho .99", name, tuple(read)),
    ]


def _multi_color_mnist() -> Table:
    rows = []
    for label, method, row, figures in (
        ("vanilla", "vanilla", "vanilla", ((100.0, 0.0), (97.2, 0.8), (30.3, 1.4), (5.2, 0.3), (58.2, 0.6))),
        ("BISE (last)", "bise", "last", ((100.0, 0.0), (88.8, 2.2), (44.5, 2.3), (7.7, 0.4), (60.3, 1.0))),
        ("BISE (last) + finetuning", "finetuned", "finetuned",
         ((100.0, 0.0), (97.5, 0.7), (71.1, 6.4), (13.7, 1.8), (70.6, 1.6))),
    ):  # fmt: skip
        keys = [*[f"group {group}" for group in GROUPS], "unbiased"]
        for key, pair in zip(keys, figures, strict=True):
            rows.append(Row(f"{label}, {key.removeprefix('group ')}", *pair, 0.0, method, row, key))
    rows += [
        Row("BISE (last), S", 17.1, 5.3, 0.0, "bise", "last", "sparsity"),
        Row("BISE (last), kFLOPs", 212.3, 13.5, 0.0, "bise", "last", "flops", 1e-3),
    ]
    return Table("7", "Multi-Color MNIST, accuracy in %", "multi_color_mnist", tuple(rows))


def _corrupted_cifar10() -> list[Table]:
    accuracy, size = [], []
    for rho, vanilla, last, tuned, figures in (
        (0.995, (22.03, 0.39), (21.94, 5.18), (34.18, 2.14), (77.8, 2.3, 15.5, 0.9)),
        (0.99, (26.89, 0.25), (23.14, 11.42), (42.44, 0.36), (92.2, 1.0, 15.7, 1.1)),
        (0.98, (33.42, 0.65), (42.80, 1.61), (50.53, 1.13), (89.6, 0.6, 19.2, 0.8)),
        (0.95, (47.18, 0.34), (55.38, 1.96), (57.22, 1.81), (82.3, 0.6, 22.5, 0.6)),
    ):
        accuracy += [
            Row(f"vanilla, rho {rho}", *vanilla, rho, "vanilla", "vanilla", digits=2),
            Row(f"BISE (last), rho {rho}", *last, rho, "bise", "last", digits=2),
            Row(f"BISE (last) + finetuning, rho {rho}", *tuned, rho, "finetuned", "finetuned", digits=2),
        ]
        size += [
            Row(f"BISE (last), S, rho {rho}", *figures[:2], rho, "bise", "last", "sparsity"),
            Row(f"BISE (last), MFLOPs, rho {rho}", *figures[2:], rho, "bise", "last", "flops", 1e-6),
        ]
    return [
        Table("3", "Corrupted CIFAR-10, unbiased accuracy in %", "corrupted_cifar10", tuple(accuracy)),
        Table("4", "Corrupted CIFAR-10, size", "corrupted_cifar10", tuple(size)),
    ]


TABLES = [*_biased_mnist(), _multi_color_mnist(), *_corrupted_cifar10()]


def table_of(name: str) -> Table:
    """The paper's table of that name."""
    return next(table for table in TABLES if table.name == name)


# Figures of ours, by table and row, that are more than two of the paper's standard deviations away, and why.
_FINETUNING = (
    "Eq. (B.9) gives the 25 training images that conflict with both biases a weight of 2,000. Ours learns more of what "
    "they show and loses some of the rest, and its last epoch varies from seed to seed. By experiment (next table): "
    "with weights for two groups, aligned with both biases or not, all five figures are within two of the paper's "
    "standard deviations, on the same extracted networks. So the weights decide the balance; which ones the paper's "
    "runs had cannot be known from here. Its text has Eq. (B.9), and the table keeps to it."
)
EXPLAINED: dict[tuple[str, str], str] = {
    ("7", f"BISE (last) + finetuning, {group}"): _FINETUNING
    for group in ("aligned, aligned", "aligned, conflicting", "conflicting, conflicting")
}

# Table E.1: weights and mask parameters.
COUNTS = {
    "BiasedMNIST": (531_210, 240),
    "CelebA": (11_177_538, 3_840),
    "Corrupted CIFAR-10": (11_181_642, 3_840),
    "Multi-Color MNIST": (256_510, 300),
    "CivilComments": (109_361_664, 46_848),
}
