"""Fields of a data set belong together."""

import pytest
import torch

from bise_prune.data import BiasedDataset
from bise_prune.errors import DataError


def test_fields_must_belong_together():
    with pytest.raises(DataError, match="do not belong together"):
        BiasedDataset(torch.zeros(2, 3), torch.zeros(2), torch.zeros(3, 1))
