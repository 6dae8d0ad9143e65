"""The options of the command line: one per setting, with its flag, its help text and its default."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, get_type_hints

from ..config import STRONG, FinetuneConfig, RunConfig, SearchConfig, SearchMethod
from .values import Reader, reader_of

FINETUNE_PREFIX = "finetune_"
_NO_SETTINGS = ("search", "finetune", "resume", "budget", "method")  # not single settings, or not set by users
_SHORT = {"bias_columns": "bias_column"}  # setting -> name of its flag, which is given once per value


@dataclass(frozen=True)
class Setting:
    """One setting of a run.

    Attributes:
        name: name of the setting in a settings file, and with hyphens its flag.
        field: name of its field in the configuration class.
        config: configuration class that has the field.
        reader: reader of its values.
        default: default of the field; None if it has none.
    """

    name: str
    field: str
    config: type
    reader: Reader
    default: Any

    @property
    def flag(self) -> str:
        """The option on the command line, such as ``--batch-size``."""
        return "--" + _SHORT.get(self.name, self.name).replace("_", "-")


def _settings_of(config: type, prefix: str = "") -> Iterator[Setting]:
    """The settings that the fields of a configuration class are."""
    hints = get_type_hints(config)
    for field in fields(config):
        if field.name not in _NO_SETTINGS and not (prefix and field.name == "epochs"):
            default = None if field.default is MISSING else field.default
            yield Setting(prefix + field.name, field.name, config, reader_of(hints[field.name]), default)


_METHOD = Setting("search", "method", SearchConfig, reader_of(SearchMethod), "auto")
_EPOCHS = Setting("finetune", "epochs", FinetuneConfig, reader_of(int), None)
SETTINGS: Mapping[str, Setting] = {
    setting.name: setting
    for setting in (
        *_settings_of(RunConfig),
        _METHOD,
        *_settings_of(SearchConfig),
        _EPOCHS,
        *_settings_of(FinetuneConfig, FINETUNE_PREFIX),
    )
}

# Title of the group -> setting -> help text, to which the default is added.
_HELP: Mapping[str, Mapping[str, str]] = {
    "checkpoint": {
        "arch": "architecture, for checkpoints that do not tell it: torchvision:NAME, timm:NAME, hf:FOLDER or "
        "package.module:factory, with arguments as in NAME(key=value)",
        "trust_pickle": "unpickle whatever the checkpoint holds; this can run any code, so use it only for files that "
        "you trust",
        "masks": "prune by the masks of an earlier run instead of searching, for example to another target",
        "plan": "carry out the plan of an earlier run again, on the same checkpoint",
    },
    "data": {
        "data": "a folder of images, a CSV file of images or texts, parquet files, or a built-in data set as NAME:DIR, "
        "for example biased_mnist:DIR; needed unless the checkpoint names its data",
        "label_column": "column of the class labels in a table, if it has none of the usual names (label, y, target)",
        "bias_columns": "column of the bias labels, if it has none of the usual names (bias, a, place, spurious); give "
        "the option once for each bias",
        "split_column": "column that says train, val or test (or 0, 1, 2), if it is not called split",
        "file_column": "column of the image files, if it has none of the usual names (file, filename, path)",
        "text_column": "column of the texts, if it has none of the usual names (text, comment_text)",
        "skip_bad": "continue without images that cannot be read, and report how many there were, instead of stopping",
        "mean": "mean of each channel on the [0, 1] scale, if the checkpoint does not tell how its images were "
        "normalised; without it ImageNet's is assumed and the report says so",
        "std": "standard deviation of each channel on the [0, 1] scale; give it together with --mean",
        "size": "height and width that images are resized to, if they differ in size or the checkpoint does not tell "
        "its own",
        "crop": "share of the resized image's sides that the size is cropped from, in the middle, as timm's crop_pct: "
        "0.875 for Resize(256) and CenterCrop(224); without it images are resized without regard to their shape",
        "classes": "names of the classes in the order of the network's outputs, if the checkpoint does not tell it and "
        "it is not the alphabetical one",
        "image_folder": "folder that the files in a table are relative to, if it is not the table's own",
        "force": "go on with a dense network that does no better than chance, or far worse than its checkpoint says",
    },
    "result": {
        "output": "folder for the results; it must not hold results of another run (default: CHECKPOINT-slim, beside "
        "the checkpoint)",
        "target_sparsity": "share of the parameters to remove, or auto to remove what the search closes",
        "target_flops": "share of the FLOPs that may stay, instead of a target sparsity",
        "target_latency": "share of the latency in onnxruntime, on this machine at batches of 1 and 16, that may stay, "
        "instead of a target sparsity",
        "targets": "several target sparsities, for example 0.3,0.5,0.7: one result for each, every search starting "
        "from the masks of the last",
        "layer_floor": "share of every layer's channels that a target leaves open, so that no layer is starved",
        "joins": "what happens where tensors meet whose masks disagree: intersection keeps a channel while any of them "
        "has it open, expand lets every layer shrink and puts zeros back on the way, auto measures both and takes "
        "the faster one",
        "round_to": "round kept channels up to a multiple of N, at which runtimes are faster; 1 does not round; auto "
        "measures several multiples in onnxruntime on this machine and takes the best one that is not slower than the "
        "dense network",
        "round_fill": "what rounding up adds: zero keeps the function as it is, best opens the best closed channels "
        "again",
        "fuse": "fold batch norms into their layers in slim.onnx and slim.pt2",
        "criterion": "what decides which channels go: learned masks, or for comparison random, magnitude or taylor "
        "scores, which need a target",
        "sweep": "report accuracy against sparsity over thresholds of the masks",
        "probe": "report how much of the bias a linear classifier reads from the features; needs validation and test "
        "data with bias labels",
    },
    "exported files and quality gates": {
        "opset": "operator set version of the ONNX files, if your server needs a certain one; without it the "
        "exporter's choice",
        "half": "also write slim.fp16.onnx, in half precision",
        "int8": "also write slim.int8.onnx, calibrated on training samples that are balanced over the subgroups",
        "image_input": "also write slim.images.onnx, which takes uint8 images and returns probabilities",
        "format_tolerance": "accuracy, in all or of the worst subgroup, that a half or int8 file may lose at most; one "
        "that loses more is not kept, and the exit code is 4",
        "triton": "add the dense and the slim network to this model repository of NVIDIA Triton, as versions 1 and 2",
        "min_worst_group": "quality gate: lowest worst-group accuracy that passes; if a gate is missed, the exit code "
        "is 3 and nothing is added to a Triton repository",
        "max_accuracy_drop": "quality gate: largest loss of accuracy against the dense network that passes",
        "min_speedup": "quality gate: lowest ratio of the dense to the slim network's latency, in onnxruntime at batch "
        "16, that passes",
        "log": "send the figures to tensorboard, mlflow or wandb as well; NAME:PLACE names a folder, an experiment or "
        "a project",
    },
    "search": {
        "search": "how masks are found: gradual closes the network step by step and meets a target on the way, paper "
        "is Algorithm 1 of the BISE paper; auto is paper if one of its settings below is given, otherwise gradual",
        "steps": "steps of a gradual search (default: 240)",
        "refit": "what a gradual search judges channels by: none for the network as it is, head for one with a "
        "refitted last layer; --tune head sets it where masks are learned on half of the validation split",
        "search_on": "data that masks are learned on: training, or validation for half of the validation split, whose "
        "other half then selects; auto takes half of the validation split if it has enough bias-conflicting samples of "
        "each class, and the network gets not more than twice as many of those of the training split wrong",
        "placement": "which outputs share one mask: all lets outputs share one that can only be removed together, "
        "residual streams, heads, values and query-key pairs included, and whole groups under a group norm; tied "
        "leaves streams under layer norms alone, feed-forward these, attention and groups; with streams, layer norms "
        "run over open channels instead of zeros; paper gives every output its own, as in the paper",
        "select": "which epoch's masks are used: best (highest unbiased validation accuracy) and worst-group need bias "
        "labels on the validation split, accuracy and worst-class do not, last needs no validation split; auto is "
        "the first of best, worst-class and last that the data allow",
        "mi_weight": "weight of the mutual information against the cross-entropy (the paper's gamma)",
        "head_lr": "learning rate of the auxiliary head",
        "head_momentum": "momentum of the auxiliary head",
        "head_weight_decay": "weight decay of the auxiliary head",
        "weighting": "sample weights in the cross-entropy: subgroup weighs by inverse subgroup frequency, alignment by "
        "the share of bias-aligned samples, none by 1; auto is subgroup for one bias and alignment for several",
        "rho": "share of bias-aligned samples for --weighting alignment, one number for each bias; measured if it is "
        "not given",
        "seed": "random seed for data order, head initialisation and sampling",
        "batch_size": "samples in each batch",
        "stratified": "give every batch its share of every subgroup",
    },
    "search by the paper's algorithm": {
        "anneal_every": "epochs between two cuts of the temperature; the search takes ten times as many epochs with "
        "the other defaults",
        "anneal_factor": "factor by which the temperature is cut",
        "min_temperature": "temperature below which the search ends",
        "initial_logit": "mask logits before the first step; try 0.1 if the first epoch closes most channels and the "
        "accuracy does not recover",
        "head_epochs": "epochs of training of the auxiliary head before the search and after each temperature cut",
        "mask_lr": "learning rate of the mask logits",
        "mask_momentum": "momentum of the mask logits",
        "mask_weight_decay": "weight decay of the mask logits",
        "mi_pool": "experimental: samples of past batches over which the mutual information is estimated; 0 uses the "
        "present batch alone",
        "batchnorm": "batch norms during the search: frozen leaves them alone, statistics lets the running statistics "
        "follow, affine also trains their weights",
        "early_stop": "end the search as soon as no mask can change any more",
        "budget_weight": "weight of a target in the objective of the search",
        "budget_descent": "share of the search over which a target's budget comes down from the whole network",
    },
    "bias labels": {
        "unsupervised": "find pseudo bias labels with a network trained for a moment, even if there are bias labels",
        "identification_epochs": "epochs of training of the network that finds pseudo bias labels; auto is 1 for the "
        "paper's search, and otherwise the moment at which two such networks agree the most",
        "bias_noise": "share of the training set's bias labels to make wrong, to study how much they matter",
    },
    "what may change in the slim network": {
        "tune": "the network that is delivered: none keeps all weights, shift may add an offset to the logits of each "
        "class, norms may estimate the statistics of batch norms again and train the weights of norm layers as well, "
        "head may refit the last layer as well; each change is made only if validation data say that it helps, and the "
        "report has the figures of each; all trains all weights, from the best of these and with the best of the dense "
        "network as its teacher",
    },
    "finetuning of the slim network": {
        "finetune": "epochs of training of the slim network after the removal, with the search's sample weights; 0 "
        "leaves all weights as they are (default: 0, and 20 with --tune all)",
        "finetune_lr": "learning rate of finetuning",
        "finetune_momentum": "momentum of finetuning, for sgd",
        "finetune_weight_decay": "weight decay of finetuning",
        "finetune_optimizer": "optimiser of finetuning; take the one that the dense network was trained with",
        "finetune_schedule": "learning rate over the epochs of finetuning",
        "finetune_sampling": "samples of finetuning: weighted takes each once an epoch and weights its loss, balanced "
        "draws them by their weight",
        "finetune_augment": "random changes of images in finetuning; flip mirrors them, which changes what digits are",
        "finetune_clip_norm": "largest norm of the gradient in finetuning",
        "finetune_distill": "share of the loss of finetuning that is the divergence from a teacher: the dense network, "
        "with --tune all after the changes that help it",
        "finetune_weighting": "sample weights of finetuning (default: as --weighting)",
        "finetune_select": "which epoch of finetuning is kept (default: as --select)",
        "finetune_rho": "share of bias-aligned samples for finetuning (default: as --rho)",
    },
    "machine": {
        "device": "where to run: auto, cpu, cuda or cuda:N; auto takes a GPU if there is one",
        "workers": "threads that prepare batches ahead of the search; 0 prepares them when they are needed",
        "precision": "arithmetic of the search: float32, tf32 or bfloat16",
        "channels_last": "run the search with channels last, which is faster on some processors",
        "compile": "compile the network for the search; needs a C++ or CUDA tool chain",
        "cuda_graphs": "experimental: compile the network and replay it as CUDA graphs",
        "cache_bytes": "most memory, in bytes, that each thing takes that is kept to be computed once; 0 keeps nothing",
    },
}
_SHARED = ("finetune_weighting", "finetune_select", "finetune_rho")  # their default is the search's value
_METAVARS = {
    "arch": "NAME", "data": "PATH", "masks": "FILE", "plan": "FILE", "output": "DIR", "triton": "DIR",
    "device": "DEVICE", "label_column": "NAME", "bias_columns": "NAME", "split_column": "NAME", "file_column": "NAME",
    "text_column": "NAME", "image_folder": "DIR", "finetune": "EPOCHS", "target_sparsity": "auto|SHARE",
    "target_flops": "SHARE", "target_latency": "SHARE", "targets": "SHARE,...", "rho": "SHARE,...",
    "finetune_rho": "SHARE,...",
}  # fmt: skip


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for every setting to a parser, in groups; options that are not given are absent from the result."""
    for title, settings in _HELP.items():
        group = parser.add_argument_group(title)
        for name, text in settings.items():
            _add(group, SETTINGS[name], text)


def _add(group: argparse._ArgumentGroup, setting: Setting, text: str) -> None:
    """Add the option of one setting to a group."""
    reader = setting.reader
    common: dict[str, Any] = {"dest": setting.name, "default": argparse.SUPPRESS, "help": text + _in_words(setting)}
    if reader.is_switch:
        group.add_argument(setting.flag, action=argparse.BooleanOptionalAction, **common)
    elif setting.name in _SHORT:
        group.add_argument(setting.flag, action="append", metavar=_METAVARS[setting.name], **common)
    elif reader.choices:
        group.add_argument(setting.flag, choices=reader.choices, **common)
    else:
        metavar = _METAVARS.get(setting.name, reader.metavar)
        action = _Once if setting.name.endswith("_column") else "store"
        group.add_argument(setting.flag, action=action, type=_argument(reader), metavar=metavar, **common)


class _Once(argparse.Action):
    """Stores the name of a column, and refuses a second one, which was meant to be read beside the first."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        if hasattr(namespace, self.dest):
            parser.error(f"{option_string} is given twice ({getattr(namespace, self.dest)}, {values})")
        setattr(namespace, self.dest, values)


def _in_words(setting: Setting) -> str:
    """The default of a setting, as the end of its help text."""
    default = setting.default
    strong = getattr(STRONG, setting.field) if setting.config is FinetuneConfig else default
    if setting.name in _SHARED or {default, strong} <= {None, ()}:
        return ""
    words = [("on" if default else "off") if isinstance(default, bool) else str(default).lower()]
    words += [f"{strong} with --tune all"] if strong != default else []
    return f" (default: {', '.join(words)})"


def _argument(reader: Reader) -> Any:
    """A function that reads the text of an argument, with an error message for argparse."""

    def read(text: str) -> Any:
        try:
            return reader.from_text(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} {reader.refusal}") from error

    return read
