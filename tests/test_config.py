"""Settings of a search are checked."""

import pytest

from bise_prune import SearchConfig
from bise_prune.errors import ConfigError


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"anneal_factor": 1.0}, r"anneal_factor = 1.0 is out of range: expected a number in \(0, 1\)"),
        ({"placement": "everywhere"}, "placement = 'everywhere'"),
        ({"anneal_every": 0}, "anneal_every = 0"),
        ({"mi_weight": -1.0}, "mi_weight = -1.0"),
        ({"rho": (1.5,)}, "rho = 1.5"),
        ({"rho": (0.9,), "weighting": "subgroup"}, "weighting='alignment'"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(ConfigError, match=message):
        SearchConfig(**setting)
