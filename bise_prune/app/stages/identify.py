"""The stage that finds pseudo bias labels, by networks of the same architecture that are trained for a few epochs."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from ...config import RunConfig
from ...distributed import share_object
from ...errors import DataError, counted
from ...models import build_model
from ...tuning.pseudo_labels import PseudoLabels, pseudo_bias_labels
from ..progress import StageClock
from ..session import Session


def identified(session: Session, clock: StageClock) -> Session:
    """The session with pseudo bias labels for training and validation data.

    What speaks against the labels is told at once, since the search that goes by them takes long.

    Args:
        session: inputs of the run.
        clock: clock that times the stage.

    Raises:
        DataError: the trained network makes no mistake, so that no sample counts as bias-conflicting.
    """
    config, splits = session.config, session.splits
    others = [] if splits.val is None else [splits.val]
    with clock.stage("identify"), torch.random.fork_rng():
        second, first = (_untrained(session, config.search.seed + number) for number in (1, 0))
        pseudo = pseudo_bias_labels(
            first,
            splits.train,
            *others,
            second=second,
            epochs=epochs_of_identification(config),
            batch_size=config.batch_size,
            seed=config.search.seed,
        )
    pseudo = cast(PseudoLabels, share_object(pseudo))
    if not pseudo.num_conflicting:
        raise DataError(
            "no pseudo bias labels were found: the identification model classifies every training sample correctly; "
            "train it for fewer epochs (--identification-epochs), or give bias labels"
        )
    assert pseudo.agreement is not None  # since there was a second network
    clock.message(
        f"{counted(pseudo.num_conflicting, 'training sample')} of {len(splits.train):,} count as bias-conflicting, "
        f"which a network gets wrong after {counted(round(pseudo.epochs, 2), 'epoch')}; agreement of two networks: "
        f"{pseudo.agreement:.0%}"
    )
    for warning in pseudo.warnings:
        clock.message(f"warning: {warning}")
    return session.with_pseudo(pseudo)


def epochs_of_identification(config: RunConfig) -> int | None:
    """Training epochs; None for as long as two networks agree the most. The paper's search takes the paper's one."""
    if config.identification_epochs != "auto":
        return config.identification_epochs
    return None if config.search.is_gradual else 1


def _untrained(session: Session, seed: int) -> nn.Module:
    """A network of the architecture to debias with random weights; what is drawn next hangs on the seed too."""
    checkpoint = session.checkpoint
    assert checkpoint.arch is not None  # checked before
    torch.manual_seed(seed)
    return build_model(checkpoint.arch, session.num_classes, checkpoint.arguments).to(session.device)
