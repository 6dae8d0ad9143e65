"""Specifications of data sets are checked."""

import pytest

from bise_prune.data import load_data
from bise_prune.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("specification", "error", "message"),
    [
        ("nowhere/", DataError, "no folder or file at 'nowhere/'"),
        ("biased_mnist", ConfigError, "needs the folder of MNIST"),
        ("digits,roh=0.9", ConfigError, "no option 'roh': did you mean rho"),
        ("digits,rho=high", ConfigError, "rho='high' is no float"),
        ("digits,rho=1.5", ConfigError, r"expected rho in \[.1, 1\)"),
        ("biased_mnist:x,protocol=loose", ConfigError, "expected paper or strict"),
    ],
)
def test_specifications_are_checked(specification, error, message):
    with pytest.raises(error, match=message):
        load_data(specification)
