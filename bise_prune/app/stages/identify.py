"""The stage that finds pseudo bias labels, by a network of the same architecture that is trained for a few epochs."""

from __future__ import annotations

from typing import cast

import torch

from ...distributed import share_object
from ...errors import DataError
from ...models import build_model
from ...tuning.pseudo_labels import PseudoLabels, pseudo_bias_labels
from ..session import Session


def identified(session: Session) -> Session:
    """The session with pseudo bias labels for training and validation data.

    Raises:
        DataError: the trained network makes no mistake, so that no sample counts as bias-conflicting.
    """
    checkpoint, config, splits = session.checkpoint, session.config, session.splits
    assert checkpoint.arch is not None  # checked before
    others = [] if splits.val is None else [splits.val]
    with torch.random.fork_rng():
        torch.manual_seed(config.search.seed)
        pseudo = pseudo_bias_labels(
            build_model(checkpoint.arch, session.num_classes, checkpoint.arguments).to(session.device),
            splits.train,
            *others,
            epochs=config.identification_epochs,
            batch_size=config.batch_size,
            seed=config.search.seed,
        )
    pseudo = cast(PseudoLabels, share_object(pseudo))
    if not pseudo.num_conflicting:
        raise DataError(
            "no pseudo bias labels were found: the identification model classifies every training sample correctly; "
            "train it for fewer epochs (--identification-epochs), or give bias labels"
        )
    return session.with_pseudo(pseudo)
