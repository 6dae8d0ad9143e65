"""Checkpoints that cannot be used."""

import json
import pickle
import shutil
import struct
from importlib.util import find_spec

import torch
from torch import nn

from bise_prune import load_model

from .case import Gadget, all_of, flags, half, saved, write

HAS_TRANSFORMERS = find_spec("transformers") is not None

SAFETENSORS = struct.pack("<Q", 2**40) + b"{}"


def _own(change):
    """The project's own weights, changed, as a plain state dict beside the architecture's name."""

    def spoil(case):
        model, _ = load_model(case.net)
        state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        change(state)
        torch.save(state, case.net)
        case.flags.extend(["--arch", "simple_convnet(kernel_size=3, widths=[4, 6], strides=[2, 1])"])

    return spoil


def _first(state, ending):
    return next(tensor for name, tensor in state.items() if name.endswith(ending))


def _described(**changes):
    """The project's own checkpoint, of whose description something is changed."""

    def spoil(case):
        content = torch.load(case.net)
        content["bise_prune"] = json.dumps(json.loads(content["bise_prune"]) | changes)
        torch.save(content, case.net)

    return spoil


def _is(name):
    return lambda case: setattr(case, "net", case.root / name)


def _folder(content):
    """A folder with weights and a configuration."""

    def spoil(case):
        folder = case.root / "model"
        folder.mkdir()
        torch.save({"classifier.weight": torch.zeros(3, 4)}, folder / "pytorch_model.bin")
        if content is not None:
            (folder / "config.json").write_text(content)
        case.net = folder

    return spoil


CASES = {
    "no checkpoint": (lambda case: case.net.unlink(), 1, "no checkpoint at"),
    "checkpoint is empty": (write("net.pt", b""), 1, "net.pt"),
    "checkpoint is text": (write("net.pt", "hello"), 1, "net.pt"),
    "checkpoint is half": (lambda case: half(case, "net.pt"), 1, "net.pt"),
    "checkpoint is an image": (lambda case: shutil.copy(case.data / "0.png", case.net), 1, "net.pt"),
    "checkpoint is a folder": (lambda case: setattr(case, "net", case.data), 1, "no checkpoint at"),
    "checkpoint runs code": (saved({"model": Gadget()}), 1, "--trust-pickle"),
    "checkpoint runs code, legacy": (saved(Gadget(), _use_new_zipfile_serialization=False), 1, "--trust-pickle"),
    "checkpoint is a plain pickle": (lambda case: case.net.write_bytes(pickle.dumps({"a": 1})), 1, "net.pt"),
    "checkpoint has no tensors": (saved({"epoch": 3}), 1, "net.pt"),
    "checkpoint is a list": (saved([1, 2, 3]), 1, "net.pt"),
    "checkpoint of an unknown network": (saved(nn.Linear(3, 5).state_dict()), 1, "--arch"),
    "safetensors with a huge header": (
        all_of(write("net.safetensors", SAFETENSORS), lambda case: setattr(case, "net", case.root / "net.safetensors")),
        1,
        "net.safetensors",
    ),
    "weights of another network": (flags("--arch", "resnet18"), 1, "resnet18"),
    "unknown architecture": (flags("--arch", "resnet81"), 2, "did you mean"),
    "factory that is not there": (flags("--arch", "nowhere.models:net"), 2, "cannot import 'nowhere"),
    "architecture with an odd argument": (flags("--arch", "simple_convnet(depth=3)"), 2, "depth"),
    "NaN among the weights": (
        lambda case: case.save(head_bias=torch.full((3,), torch.nan)),
        1,
        "NaN",
    ),
    # what training scripts leave in the place of weights
    **{
        f"checkpoint is {about}": (saved(value), 1, "net.pt")
        for about, value in {
            "a number": 3,
            "nothing": None,
            "text in a pickle": "resnet18",
            "a tuple of numbers": (1, 2),
            "an empty dict": {},
            "nested and empty": {"state_dict": {"model": {}}},
            "a set": {1, 2},
            "a dict by numbers": {1: torch.zeros(2)},
            "a list of weights": [torch.zeros(3, 2), torch.zeros(3)],
            "a tensor": torch.zeros(3, 4),
            "weights as lists": {"fc.weight": [[0.1, 0.2]], "fc.bias": [0.0]},
            "an optimiser's state": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 0.1}]},
        }.items()
    },
    # weights of its own network, of which something is wrong
    **{
        f"weights {about}": (_own(change), 1, words)
        for about, (change, words) in {
            "lack one": (lambda state: state.pop("head.bias"), "head.bias"),
            "have another shape": (lambda state: state.update({"head.bias": torch.zeros(5)}), "head.weight"),
            "of a scalar": (lambda state: state.update({"head.bias": torch.tensor(0.0)}), "head.bias"),
            "are infinite": (lambda state: state["head.weight"].fill_(torch.inf), "head.weight"),
            "are NaN in one place": (lambda state: state["head.weight"].view(-1)[3].fill_(torch.nan), "head.weight"),
            "have a NaN statistic": (lambda state: _first(state, "running_mean").fill_(torch.nan), "running_mean"),
            "have an infinite variance": (lambda state: _first(state, "running_var").fill_(torch.inf), "running_var"),
            "are complex": (
                lambda state: state.update({"head.bias": torch.zeros(3, dtype=torch.complex64)}),
                "complex",
            ),
            "are sparse": (lambda state: state.update({"head.bias": torch.zeros(3).to_sparse()}), "sparse"),
            "are without data": (lambda state: state.update({"head.bias": torch.zeros(3, device="meta")}), "net.pt"),
            "are integers": (lambda state: state.update({"head.weight": state["head.weight"].long()}), "head.weight"),
        }.items()
    },
    # descriptions beside the weights
    **{
        f"description with {about}": (_described(**change), *(code or [1]), words)
        for about, (change, words, *code) in {
            "no such architecture": ({"arch": "resnet81"}, "resnet81", 2),
            "an architecture that is a number": ({"arch": 3}, "damaged"),
            "classes below one": ({"num_classes": 0}, "damaged"),
            "classes as text": ({"num_classes": "three"}, "damaged"),
            "other classes than the head": ({"num_classes": 5}, "head.weight"),
            "arguments that are a list": ({"arguments": [1]}, "damaged"),
            "an odd argument": ({"arguments": {"depth": 3}}, "depth", 2),
            "names of other classes": ({"classes": ["a", "b"]}, "classes"),
            "classes of numbers": ({"classes": [1, 2, 3]}, "damaged"),
            "preprocessing of text": ({"preprocessing": "imagenet"}, "damaged"),
            "a null mean": ({"preprocessing": {"mean": None, "std": [0.5] * 3}}, "damaged"),
            "a negative std": ({"preprocessing": {"mean": [0.5] * 3, "std": [-1, 1, 1]}}, "std"),
            "a std of zero": ({"preprocessing": {"mean": [0.5] * 3, "std": [0, 1, 1]}}, "std"),
            "a mean of two channels": ({"preprocessing": {"mean": [0.5] * 2, "std": [0.5] * 2}}, "mean", 2),
            "a size of zero": ({"preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3, "size": [0, 8]}}, "size"),
            "a size of text": ({"preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3, "size": "big"}}, "size"),
            "changed calls that are no list": ({"slim": {"edits": 3}}, "net.pt"),
            "a factory of a stranger": ({"arch": "nowhere.models:net"}, "--arch"),
            "weights to download": ({"arch": "resnet18", "arguments": {"weights": "DEFAULT"}}, "weights"),
        }.items()
    },
    "description that is no JSON": (saved({"bise_prune": "{", "state_dict": {"a": torch.zeros(1)}}), 1, "net.pt"),
    "description that is deep": (
        saved({"bise_prune": "[" * 100_000, "state_dict": {"a": torch.zeros(1)}}),
        1,
        "net.pt",
    ),
    "description without weights": (saved({"bise_prune": "{}", "state_dict": 3}), 1, "damaged"),
    "index of parts that are not there": (
        all_of(write("net.json", '{"weight_map": {"a": "part-1.safetensors"}}'), _is("net.json")),
        1,
        "net.json",
    ),
    "index of parts elsewhere": (
        all_of(
            write("net.safetensors.index.json", '{"weight_map": {"a": "../part.safetensors"}}'),
            _is("net.safetensors.index.json"),
        ),
        1,
        "net.safetensors.index.json",
    ),
    # folders of models
    **{
        f"folder of a model with {about}": (_folder(content), *(code or [1]), words)
        for about, (content, words, *code) in {
            "no configuration": (None, "config.json"),
            "an empty configuration": ("", "config.json"),
            "a configuration that is a list": ("[]", "config.json"),
            "a deep configuration": ("[" * 100_000, "config.json"),
            "no kind of model": ("{}", "model_type" if HAS_TRANSFORMERS else "transformers", 2),
            "an unknown kind of model": (
                '{"model_type": "nosuch"}',
                "nosuch" if HAS_TRANSFORMERS else "transformers",
                2,
            ),
            "a kind that is a number": (
                '{"model_type": 3}',
                "identifier: 3" if HAS_TRANSFORMERS else "transformers",
                2,
            ),
            "a quadrillion labels": (
                '{"model_type": "resnet", "num_labels": 1000000000000000}',
                "1000000000000000 classes",
            ),
            "labels that are text": ('{"model_type": "resnet", "num_labels": "many"}', "many"),
            "a hundred thousand layers": ('{"model_type": "vit", "num_hidden_layers": 100000}', "num_hidden_layers"),
        }.items()
    },
}
