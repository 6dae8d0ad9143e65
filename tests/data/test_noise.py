"""Wrong bias labels, as many as asked for."""

import pytest
import torch
from cases import biased_data

from bise_prune.data.noise import noisy_bias_labels
from bise_prune.errors import ConfigError


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_noise_replaces_exactly_its_share_by_other_values(share):
    bias = biased_data(n=400, biases=2).bias
    noisy = noisy_bias_labels(bias, share, torch.Generator().manual_seed(0))
    assert ((noisy != bias).sum(0) == round(400 * share)).all()
    assert noisy.min() >= 0 and noisy.max() <= bias.max()
    again = noisy_bias_labels(bias, share, torch.Generator().manual_seed(0))
    assert torch.equal(noisy, again)
    with pytest.raises(ConfigError, match=r"share of noisy bias labels = 1\.5"):
        noisy_bias_labels(bias, 1.5, torch.Generator())
