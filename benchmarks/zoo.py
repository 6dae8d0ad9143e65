"""A zoo of small networks with a bias, as users bring them: it makes their data and trains them the vanilla way.

    python benchmarks/zoo.py --data-root data --work FOLDER
    python benchmarks/zoo.py --data-root data --work FOLDER --cells resnet18-tint mlp-halves

``--data-root`` holds mnist/, cifar10/, resnet_cifar/ and text/. Each cell becomes a folder that the command line takes
(``network.pt`` or a Hugging Face folder, and ``data/``), with a note of its vanilla training in ``about.json``. What is
there is not made again. Several processes may work on one zoo: a cell that another process has begun is left to it.

Every network is trained on one thread by Adam (AdamW for those with layer norms) and a cosine schedule, without
augmentation. Validation and test images are spread evenly over the subgroups, those of imbalanced cells over the bias
values of each class; the validation set has the class shares of the training set.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import gzip
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from bise_prune.app.progress import StageClock
from bise_prune.app.reading import read_session
from bise_prune.app.session import Session
from bise_prune.config import RunConfig
from bise_prune.data import BatchLoader, load_data
from bise_prune.data.biased_mnist import PALETTE, assign_bias
from bise_prune.data.cifar10 import load_cifar10
from bise_prune.data.corrupted_cifar10 import corrupt
from bise_prune.data.corruptions import CORRUPTIONS
from bise_prune.data.mnist import load_mnist
from bise_prune.files import write_json
from bise_prune.models import build_model, parse_architecture
from bise_prune.tuning.vanilla import train_vanilla

Validation = Literal["balanced", "natural", "none"]
Labels = Literal["cifar10", "animal", "cat", "digit", "odd"]
Bias = Literal["tint", "patch", "corruption", "background", "colour", "halves", "mention"]

_ANIMALS = (2, 3, 4, 5, 6, 7)
_NUM_VAL, _NUM_TEST = 1_000, 2_000
_TEXT_LENGTH = 32
_TEXTS = f"text:{{}},max_length={_TEXT_LENGTH}"


@dataclass(frozen=True)
class Cell:
    """One network of the zoo.

    Attributes:
        name: name of the folder.
        arch: architecture, as the option ``--arch`` takes it.
        labels: what the class is: CIFAR-10's classes, animal or vehicle, cat or dog, MNIST's digits, odd or even.
        bias: what the class is correlated with.
        rho: share of bias-aligned training samples.
        train: number of training samples.
        epochs: passes of the vanilla training.
        side: side of the images.
        imbalance: samples of class 0 per sample of class 1, for two classes.
        lr: learning rate of the vanilla training.
        clean: file of clean pretrained weights below the data root; "" = from scratch.
    """

    name: str
    arch: str
    labels: Labels
    bias: Bias
    rho: float
    train: int
    epochs: int
    side: int = 32
    imbalance: int = 1
    lr: float = 1e-3
    clean: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return 10 if self.labels in ("cifar10", "digit") else 2


_VIT = "timm:vit_tiny_patch16_224(img_size=32, patch_size=4, depth=4, embed_dim=96, num_heads=3)"
_CONVNEXT = "timm:convnext_atto(dims=[32, 64, 96, 128], depths=[1, 1, 2, 1], patch_size=2)"
_CONVNET = "simple_convnet(kernel_size=3, widths=[32, 64, 128, 128], strides=[1, 2, 2, 1])"
_DIGITS = "simple_convnet(kernel_size=3, strides=[2, 2, 2, 1])"
_RESNET20, _RESNET56 = "zoo_networks:CifarResNet(blocks=3)", "zoo_networks:CifarResNet(blocks=9)"
_CLEAN20, _CLEAN56 = (f"resnet_cifar/cifar10_resnet{depth}.safetensors" for depth in (20, 56))

CELLS = [
    Cell("resnet18-tint", "resnet18", "animal", "tint", 0.95, 3_000, 5),
    Cell("resnet18-tint-rare", "resnet18", "animal", "tint", 0.98, 3_000, 5),
    Cell("resnet18-cats-patch", "resnet18", "cat", "patch", 0.9, 3_000, 5),
    Cell("resnet18-corruption", "resnet18", "cifar10", "corruption", 0.9, 4_000, 5),
    Cell("resnet18-background", "resnet18", "odd", "background", 0.95, 3_000, 4),
    Cell("resnet18-large", "resnet18", "animal", "corruption", 0.95, 1_500, 4, side=64),
    Cell("resnet20-pretrained-tint", _RESNET20, "cifar10", "tint", 0.95, 3_000, 3, clean=_CLEAN20),
    Cell("resnet20-pretrained-corruption", _RESNET20, "cifar10", "corruption", 0.95, 3_000, 4, clean=_CLEAN20),
    Cell("resnet20-pretrained-few-positives", _RESNET20, "animal", "patch", 0.95, 2_500, 3, imbalance=4,
         clean=_CLEAN20),
    Cell("resnet56-pretrained-patch", _RESNET56, "cifar10", "patch", 0.95, 1_500, 3, clean=_CLEAN56),
    Cell("resnet20-tint", _RESNET20, "animal", "tint", 0.95, 4_000, 5, lr=2e-3),
    Cell("convnet-cats-tint", _CONVNET, "cat", "tint", 0.85, 5_000, 5),
    Cell("convnet-few-positives", _CONVNET, "animal", "patch", 0.9, 5_000, 4, imbalance=4),
    Cell("convnet-imbalance", _CONVNET, "cat", "tint", 0.6, 4_000, 5, imbalance=4),
    Cell("convnet-corruption", _CONVNET, "cifar10", "corruption", 0.8, 10_000, 5),
    Cell("vgg-tint", "zoo_networks:small_vgg", "animal", "tint", 0.95, 3_000, 5),
    Cell("vgg-background", "zoo_networks:small_vgg", "odd", "background", 0.9, 3_000, 4),
    Cell("mobilenet-tint", "mobilenet_v3_small", "animal", "tint", 0.95, 4_000, 8, side=64),
    Cell("mobilenet-few-positives", "mobilenet_v3_small", "animal", "corruption", 0.9, 4_000, 8, side=64,
         imbalance=4),
    Cell("efficientnet-tint", "efficientnet_b0", "animal", "tint", 0.95, 3_000, 5),
    Cell("regnet-patch", "timm:regnety_002", "animal", "patch", 0.95, 3_000, 6, side=64),
    Cell("convnext-tint", _CONVNEXT, "animal", "tint", 0.85, 4_000, 8),
    Cell("vit-patch", _VIT, "animal", "patch", 0.9, 4_000, 8),
    Cell("vit-background", _VIT, "digit", "background", 0.95, 4_000, 8),
    Cell("digits-colour", _DIGITS, "digit", "colour", 0.98, 12_000, 6),
    Cell("digits-colour-rare", _DIGITS, "digit", "colour", 0.99, 12_000, 6),
    Cell("mlp-halves", "mlp(in_features=2352)", "digit", "halves", 0.95, 12_000, 12, side=28),
    Cell("mlp-colour", "mlp(in_features=2352)", "digit", "colour", 0.9, 6_000, 12, side=28),
    Cell("text-mention", "text", "odd", "mention", 0.9, 4_000, 4, side=0),
]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    for cell in chosen(arguments.cells):
        prepare(cell, arguments.data_root, arguments.work)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that every benchmark on the zoo has."""
    parser.add_argument("--data-root", type=Path, required=True, help="folder with mnist/, cifar10/, ...")
    parser.add_argument("--work", type=Path, required=True, help="folder for the zoo")
    parser.add_argument("--cells", nargs="+", metavar="NAME", help="these cells alone")


def chosen(names: Sequence[str] | None) -> list[Cell]:
    """The cells of some names; all of them if there are none."""
    known = {cell.name: cell for cell in CELLS}
    unknown = set(names or ()) - set(known)
    if unknown:
        sys.exit(f"no such cell: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return [known[name] for name in names] if names else list(CELLS)


def repeated(cell: Cell, seed: int) -> Cell:
    """A cell with the same settings and another seed of its data, its bias, and its network; 0 = the cell itself."""
    return dataclasses.replace(cell, name=f"{cell.name}~{seed}") if seed else cell


def session_of(cell: Cell, work: Path, output: Path, **settings: Any) -> Session:
    """A prepared cell, as a run of the tool reads it.

    Args:
        cell: the cell.
        work: folder of the zoo.
        output: folder for results.
        settings: further settings of :class:`bise_prune.config.RunConfig`.
    """
    return read_session(config_of(cell, work, output, **settings), StageClock())


def config_of(cell: Cell, work: Path, output: Path, validation: Validation = "balanced", **settings: Any) -> RunConfig:
    """Settings of a run on a prepared cell; for the other arguments see :func:`session_of`.

    A validation split that is not the balanced one must be there (:func:`prepare_validation`).
    """
    folder = work / cell.name
    ending = "" if validation == "balanced" else f"-{validation}"
    if cell.bias == "mention":
        data = _TEXTS.format(folder / f"texts{ending}.csv")
        return RunConfig(checkpoint=folder / "network", data=data, output=output, **settings)
    columns = ("1", "2") if cell.bias == "halves" else ("1",)
    return RunConfig(
        checkpoint=folder / "network.pt", data=str(folder / f"data{ending}"), arch=cell.arch, bias_columns=columns,
        output=output, **settings,
    )  # fmt: skip


def prepare(cell: Cell, root: Path, work: Path) -> None:
    """Make the data of a cell and train its network, unless they are there or another process is at it."""
    folder = work / cell.name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return
    start = time.perf_counter()
    made = time.process_time()
    seconds = _text_network(cell, root, folder) if cell.bias == "mention" else _image_network(cell, root, folder)
    about = {"cpu_seconds": seconds, "epochs": cell.epochs, "samples": cell.train}
    write_json(folder / "about.json", {**about, "data_cpu_seconds": time.process_time() - made - seconds})
    session = session_of(cell, work, folder / "unused")
    accuracy = session.accuracy(session.dense)
    print(
        f"{cell.name}: {time.perf_counter() - start:.0f} s, vanilla {seconds:.0f} s CPU, unbiased "
        f"{accuracy.unbiased_accuracy:.3f}, worst group {accuracy.worst_group_accuracy:.3f}, aligned "
        f"{accuracy.aligned_accuracy}",
        flush=True,
    )


def prepare_validation(cell: Cell, root: Path, work: Path, validation: Validation) -> None:
    """Write the data of a prepared cell with another validation split, unless they are there.

    Args:
        cell: the cell.
        root: folder of the data that the zoo is made of.
        work: folder of the zoo.
        validation: ``natural`` = as many samples, biased as the training set is; of texts, those of the balanced split
            that are left when its bias-conflicting ones are thinned out. ``none`` = no validation split.
    """
    if validation == "balanced":
        return
    if cell.bias == "mention":
        _write_texts_again(cell, work / cell.name, validation)
        return
    folder = Path(config_of(cell, work, work / cell.name / "unused", validation).data)
    if folder.exists():
        return
    unfinished = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in ("train", "test"):
        shutil.copytree(work / cell.name / "data" / part, unfinished / part)
    if validation == "natural":
        seed = sum(map(ord, cell.name)) + 1
        generator = torch.Generator().manual_seed(seed)
        images, labels = _plain_images(cell, root, "val", _NUM_VAL, generator)
        bias = _bias_labels(cell, labels, "train", generator)
        _write_images(cell, root, unfinished, "val", images, labels, bias, seed, generator)
    unfinished.rename(folder)


# -- images --------------------------------------------------------------------------------------


def _image_network(cell: Cell, root: Path, folder: Path) -> float:
    """Write the images of a cell and train its network; returns the CPU seconds of the training."""
    seed = sum(map(ord, cell.name))
    generator = torch.Generator().manual_seed(seed)
    for part, amount in (("train", cell.train), ("val", _NUM_VAL), ("test", _NUM_TEST)):
        images, labels = _plain_images(cell, root, part, amount, generator)
        bias = _bias_labels(cell, labels, part, generator)
        _write_images(cell, root, folder / "data", part, images, labels, bias, seed, generator)
    columns = load_data(str(folder / "data"))
    torch.manual_seed(seed)
    name, arguments = parse_architecture(cell.arch)
    network = build_model(name, cell.num_classes, arguments)
    if cell.clean:
        state = {key: value for key, value in load_file(root / cell.clean).items() if not key.startswith("linear")}
        network.load_state_dict(state, strict=False)
    start = time.process_time()
    _train(cell, network, BatchLoader(columns.train, 50, shuffle=True, seed=seed))
    seconds = time.process_time() - start
    torch.save(network.state_dict(), folder / "network.pt")
    return seconds


def _write_images(
    cell: Cell, root: Path, folder: Path, part: str, images: Tensor, labels: Tensor, bias: Tensor, seed: int,
    generator: torch.Generator,
) -> None:  # fmt: skip
    """Write a split of a cell, whose images have got their bias."""
    biased = _biased(cell, images, bias, root, part, (seed, ("train", "val", "test").index(part)), generator)
    (folder / part).mkdir(parents=True)
    np.save(folder / part / "images.npy", biased.permute(0, 2, 3, 1).contiguous().numpy())
    np.save(folder / part / "attrs.npy", torch.cat([labels[:, None], bias], 1).numpy())


def _train(cell: Cell, network: nn.Module, loader: BatchLoader) -> None:
    """Train a network the vanilla way."""
    has_layer_norms = any(isinstance(module, nn.LayerNorm) for module in network.modules())
    kind = torch.optim.AdamW if has_layer_norms else torch.optim.Adam
    optimizer = kind(network.parameters(), lr=cell.lr, weight_decay=0.05 if has_layer_norms else 1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, cell.epochs)
    train_vanilla(network, loader, optimizer, epochs=cell.epochs, scheduler=scheduler)


def _plain_images(cell: Cell, root: Path, part: str, amount: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W), uint8, without a bias, and their class labels (N,); training and validation are disjoint."""
    split: Literal["train", "test"] = "test" if part == "test" else "train"
    if cell.labels in ("digit", "odd"):
        digits, classes = load_mnist(root / "mnist", split)
        images = digits[:, None].expand(-1, 3, -1, -1)
        labels = classes if cell.labels == "digit" else classes % 2
    else:
        images, classes = load_cifar10(root / "cifar10", split)
        labels = classes
        if cell.labels == "animal":
            labels = torch.isin(classes, torch.tensor(_ANIMALS)).long()
        if cell.labels == "cat":
            images, classes = (tensor[(classes == 3) | (classes == 5)] for tensor in (images, classes))
            labels = (classes == 3).long()
    if split == "train":  # the last sixth of each file is for validation
        border = len(labels) * 5 // 6
        span = slice(border, None) if part == "val" else slice(0, border)
        images, labels = images[span], labels[span]
    rows = []
    shares = [1.0] * cell.num_classes
    if cell.imbalance > 1 and part != "test":
        shares[0] = cell.imbalance
    for label, share in enumerate(shares):
        members = (labels == label).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        rows.append(members[: round(amount * share / sum(shares))])
    order = torch.cat(rows)
    order = order[torch.randperm(len(order), generator=generator)]
    return images[order].contiguous(), labels[order]


def _bias_labels(cell: Cell, labels: Tensor, part: str, generator: torch.Generator) -> Tensor:
    """Bias labels (N, K): correlated with the class in training, evenly spread elsewhere."""
    values, count = cell.num_classes, 2 if cell.bias == "halves" else 1
    rho = cell.rho if part == "train" else 1 / values
    return torch.stack([assign_bias(labels, rho, generator, values) for _ in range(count)], 1)


def _biased(
    cell: Cell, images: Tensor, bias: Tensor, root: Path, part: str, seed: tuple[int, int], generator: torch.Generator
) -> Tensor:
    """Images in which the bias label is seen, at the side of the cell: (N, 3, S, S), uint8."""
    make: dict[Bias, Callable[[], Tensor]] = {
        "tint": lambda: 0.7 * images + 0.3 * _colours(cell, bias)[:, :, None, None],
        "patch": lambda: _with_patch(images, _colours(cell, bias), generator),
        "corruption": lambda: corrupt(images, _CORRUPTION_OF[cell.num_classes][bias[:, 0]], seed,
                                      torch.arange(len(images))).float(),
        "background": lambda: _on_photographs(cell, images, bias, root, part, generator),
        "colour": lambda: torch.where(images > 0, 255.0, _colours(cell, bias)[:, :, None, None]),
        "halves": lambda: _on_halves(images, bias),
    }  # fmt: skip
    biased = make[cell.bias]()
    if biased.shape[3] != cell.side:
        if cell.bias == "colour" or cell.bias == "background" or cell.labels in ("digit", "odd"):
            biased = F.interpolate(biased, (cell.side, cell.side), mode="bilinear", antialias=True)
        else:
            biased = F.interpolate(biased, (cell.side, cell.side), mode="bicubic")
    return biased.round().clamp(0, 255).to(torch.uint8)


# Two classes: snow and contrast; ten: all corruptions.
_CORRUPTION_OF = {2: torch.tensor([0, 4]), 10: torch.arange(len(CORRUPTIONS))}


def _colours(cell: Cell, bias: Tensor) -> Tensor:
    """Colour of each sample's bias value, shape (N, 3)."""
    palette = torch.tensor([[255, 0, 0], [0, 0, 255]] if cell.num_classes == 2 else PALETTE)
    return palette[bias[:, 0]].float()


def _with_patch(images: Tensor, colours: Tensor, generator: torch.Generator) -> Tensor:
    """Images with a square of six pixels in their colour, at a random place."""
    patched = images.float()
    places = torch.randint(0, images.shape[2] - 6, (len(images), 2), generator=generator).tolist()
    for image, colour, (top, left) in zip(patched, colours, places, strict=True):
        image[:, top : top + 6, left : left + 6] = colour[:, None, None]
    return patched


def _on_photographs(
    cell: Cell, digits: Tensor, bias: Tensor, root: Path, part: str, generator: torch.Generator
) -> Tensor:
    """White digits on photographs of CIFAR-10 whose class is the bias label: (N, 3, 32, 32)."""
    photographs, classes = load_cifar10(root / "cifar10", "test" if part == "test" else "train")
    kinds = classes if cell.num_classes == 10 else torch.isin(classes, torch.tensor(_ANIMALS)).long()
    chosen = torch.empty(len(digits), dtype=torch.long)
    for value in bias.unique().tolist():
        members, needed = (kinds == value).nonzero().flatten(), bias[:, 0] == value
        chosen[needed] = members[torch.randint(0, len(members), (int(needed.sum()),), generator=generator)]
    ink = F.pad(digits.float(), (2, 2, 2, 2)) / 255
    return ink * 255 + (1 - ink) * 0.8 * photographs[chosen]


def _on_halves(digits: Tensor, bias: Tensor) -> Tensor:
    """White digits on a background whose left and right half have the colours of the two bias labels."""
    colours = torch.tensor(PALETTE).float()[bias] * 0.5  # (N, 2, 3)
    ground = colours.permute(0, 2, 1)[:, :, None, :].repeat_interleave(digits.shape[3] // 2, 3)
    return torch.where(digits > 0, digits.float(), ground.expand(-1, -1, digits.shape[2], -1))


# -- texts ---------------------------------------------------------------------------------------


def _text_network(cell: Cell, root: Path, folder: Path) -> float:
    """Write texts, toxic or not, whose class is correlated with a mention of a group; train a small encoder on them."""
    from tables.settings import _minilm
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig

    with gzip.open(root / "text" / "jigsaw_toxic_12k.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    generator = torch.Generator().manual_seed(sum(map(ord, cell.name)))
    cells: dict[tuple[int, int], list[str]] = {}
    for i in torch.randperm(len(rows), generator=generator).tolist():
        cells.setdefault((int(rows[i]["toxic"]), int(rows[i]["identity_any"])), []).append(rows[i]["text"])
    sizes = {"test": dict.fromkeys(cells, 200), "val": dict.fromkeys(cells, 100)}
    few = len(cells[1, 1]) - 300
    sizes["train"] = {(1, 1): few, (0, 1): few // 9, (0, 0): cell.train // 2 - few // 9, (1, 0): cell.train // 2 - few}
    folder.mkdir(exist_ok=True)
    with (folder / "texts.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("split", "label", "bias", "text"))
        for split, amounts in sizes.items():
            for key, amount in amounts.items():
                writer.writerows((split, *key, cells[key].pop()) for _ in range(amount))
    tokenizer = AutoTokenizer.from_pretrained(_minilm(), model_max_length=_TEXT_LENGTH)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=96, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=192, max_position_embeddings=_TEXT_LENGTH, num_labels=2,
    )  # fmt: skip
    network = AutoModelForSequenceClassification.from_config(config)
    network.save_pretrained(folder / "network")
    tokenizer.save_pretrained(folder / "network")
    splits = session_of(cell, folder.parent, folder / "unused").splits
    start = time.process_time()
    _train(cell, network, BatchLoader(splits.train, 50, shuffle=True))
    seconds = time.process_time() - start
    network.save_pretrained(folder / "network")
    return seconds


def _write_texts_again(cell: Cell, folder: Path, validation: Validation) -> None:
    """Write the texts of a cell with another validation split; see :func:`prepare_validation`."""
    with (folder / "texts.csv").open(encoding="utf-8", newline="") as file:
        heads, *rows = csv.reader(file)
    val = [row for row in rows if row[0] == "val"]
    kept = [row for row in rows if row[0] != "val"]
    if validation == "natural":
        aligned = [row for row in val if row[1] == row[2]]
        share = (1 - cell.rho) / cell.rho
        for label in sorted({row[1] for row in val}):
            others = [row for row in val if row[1] == label != row[2]]
            kept += others[: round(share * sum(row[1] == label for row in aligned))]
        kept += aligned
    with (folder / f"texts-{validation}.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([heads, *kept])


if __name__ == "__main__":
    sys.exit(main())
