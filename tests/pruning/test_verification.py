"""Verification finds small and undefined differences."""

import copy

import pytest
import torch
from cases import images, network, random_masks
from torch import nn
from torch.nn import functional as F

from bise_prune import prune, verify
from bise_prune.errors import ConfigError, ModelError, PruningError, VerificationError
from bise_prune.models import build_model


def test_verification_finds_small_and_undefined_differences():
    model, inputs = network("mlp"), images()
    other = copy.deepcopy(model)
    assert verify(model, other, inputs).max_abs_error == 0
    with torch.no_grad():
        other.head.bias[1] += 1e-6
    found = verify(model, other, inputs)
    assert not found.passed and found.max_abs_error == pytest.approx(1e-6, rel=0.05)
    assert verify(model, other, inputs, tolerance=1e-5).passed
    with torch.no_grad():
        other.head.bias[1] = float("nan")
    assert not verify(model, other, inputs).passed


def test_arguments_are_checked():
    model, inputs = network("mlp"), images()
    with pytest.raises(ConfigError, match="expected at least one size"):
        verify(model, model, inputs, batch_sizes=())
    with pytest.raises(ConfigError, match="target_sparsity = 'half'"):
        prune(model, random_masks(model, inputs, "tied"), inputs, "half")


def test_verification_needs_equal_shapes():
    with pytest.raises(VerificationError, match="disagree on the shape"):
        verify(build_model("mlp", 3), build_model("mlp", 4), torch.randn(1, 3, 28, 28))


def test_networks_that_draw_random_numbers_are_named():
    class Random(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(F.dropout(torch.relu(self.conv(x)).mean((2, 3)), training=True))

    model = Random().eval()
    with pytest.raises(ModelError, match=r"other logits for the same inputs when it runs again.*dropout"):
        prune(model, random_masks(model, images(), "tied"), images())


@pytest.mark.parametrize("most", [3, -1])
def test_networks_that_do_not_run_on_a_batch_themselves_are_told_apart(most):
    class Picky(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

        def forward(self, x):
            if len(x) > most > 0 or (most < 0 and len(x) == 1):
                raise ValueError("not so many")
            return self.head(torch.relu(self.conv(x)).mean((2, 3)))

    model, inputs = Picky().eval(), images()[:2]
    masks = random_masks(model, inputs, "tied")
    with pytest.raises(PruningError, match=r"batches of 1, 2, 5 samples before .* either \(ValueError: not so many\)"):
        prune(model, masks, inputs)
    prune(model, masks, inputs, batch_sizes=(2, 3))
