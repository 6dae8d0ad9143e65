"""What to try when the slim network is worse than the dense one: options that can help and are not set already."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..config import RunConfig, SearchConfig


@dataclass(frozen=True)
class Advice:
    """An option that can help.

    Attributes:
        effect: what the option does for the slim network.
        flag: the option, as it may be given on the command line.
        can_help: whether it can help a run with these settings, and is not set already.
        of_search: whether it is of use only if a search ran.
    """

    effect: str
    flag: str
    can_help: Callable[[RunConfig], bool]
    of_search: bool = False


_SEARCH = SearchConfig()

# In the order in which they are named. An option of the search that is dropped or renamed is changed here alone.
ADVICE = (
    Advice(
        "the paper's search with masks that start open", "--search paper --initial-logit 0.1",
        lambda config: config.search.is_gradual and config.target is None, of_search=True,
    ),
    Advice(
        "more epochs for the search", "--anneal-every 20",
        lambda config: not config.search.is_gradual and config.search.anneal_every == _SEARCH.anneal_every,
        of_search=True,
    ),
    Advice(
        "a start that closes less at once", "--initial-logit 0.1",
        lambda config: not config.search.is_gradual and config.search.initial_logit == _SEARCH.initial_logit,
        of_search=True,
    ),
    Advice("a lower target sparsity", "", lambda config: config.target_sparsity != "auto"),
    Advice("more FLOPs (a higher --target-flops)", "", lambda config: config.target_flops is not None),
    Advice("more latency (a higher --target-latency)", "", lambda config: config.target_latency is not None),
    Advice(
        "a refitted last layer", "--tune head", lambda config: config.tune != "head" and config.finetune is None
    ),
    Advice("training of what is left", "--tune all", lambda config: config.finetune is None),
)  # fmt: skip


def advice(config: RunConfig, searched: bool) -> str:
    """The options to try, as a list in words; empty if there is none.

    Args:
        config: settings of the run.
        searched: whether a search found the masks.

    >>> from pathlib import Path
    >>> advice(RunConfig(checkpoint=Path("net.pt"), output=Path("out")), searched=False)
    'a refitted last layer (--tune head) or training of what is left (--tune all)'
    """
    found = [a for a in ADVICE if a.can_help(config) and (searched or not a.of_search)]
    texts = [f"{a.effect} ({a.flag})" if a.flag else a.effect for a in found]
    return ", ".join(texts[:-1]) + (" or " if texts[:-1] else "") + "".join(texts[-1:])
