"""Learned masks as an importance criterion that any torch-pruning pruner accepts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import Tensor

from ..errors import ConfigError, ModelError
from ..gates.masks import MaskSet, site_layer
from ..gates.ranking import tie_free

Reduction = Literal["all", "any", "mean"]
_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"all": torch.max, "any": torch.min, "mean": torch.mean}


class BISEImportance(tp.importance.Importance):  # type: ignore[misc]
    """Importance of a channel = its mask logit m (BISE, Eq. 2): the lower, the sooner it goes.

    Works in local and global pruning, with any ``pruning_ratio`` and ignored layers. Scores are not normalised per
    group, since the zero of m has a meaning of its own, and never tie. Groups without masks return None, which
    pruners skip. One step only: after a removal the masks no longer match the layers.

    Two habits of torch-pruning's own pruners are out of this class's reach: on frozen weights they find no groups and
    remove nothing without a word, and ``round_to`` rounds the channels that stay *down*, so that open ones go as well.
    :func:`bise_prune.prune` does neither.

    Args:
        masks: masks of the very network that is pruned (layers are matched by name).
        reduction: how masks of coupled outputs that disagree become one score. "all" = the largest m, so that a
            channel counts as closed only if all close it; "any" = the smallest; "mean".

    Raises:
        ConfigError: an unknown reduction.
        ModelError: there are no masks.
    """

    def __init__(self, masks: MaskSet, reduction: Reduction = "all") -> None:
        if reduction not in _REDUCTIONS:
            raise ConfigError(f"unknown reduction '{reduction}': choose one of {', '.join(_REDUCTIONS)}")
        self.reduction = _REDUCTIONS[reduction]
        if not masks.logits:
            raise ModelError("the mask set is empty")
        parts = tie_free(list(masks.logits.values()))
        self.scores: dict[str, list[Tensor]] = {}
        for name, part in zip(masks.logits, parts, strict=True):
            self.scores.setdefault(site_layer(name), []).append(part)
        self.ceiling = max(float(part.max()) for part in parts) + 1.0

    def __call__(self, group: Any) -> Tensor | None:
        """One score per root channel of a torch-pruning group; None where no mask gates it.

        Raises:
            ModelError: a mask's length is not its layer's width.
        """
        names = {module: name for name, module in group._DG.model.named_modules()}
        rows = []
        for item in group:
            module = item.dep.target.module
            name = names.get(module)
            mapped = all(index is not None for index in item.root_idxs)
            if name is None or not mapped or group._DG.is_in_channel_pruning_fn(item.dep.handler):
                continue
            for scores in self.scores.get(name, []):
                width = group._DG.get_out_channels(module)
                if len(scores) != width:
                    raise ModelError(
                        f"the mask of '{name}' has {len(scores)} channels, the layer has {width}: "
                        "the masks belong to another network, or the network has been pruned since"
                    )
                row = torch.full((len(group[0].idxs),), float("nan"), dtype=torch.float64)
                row[torch.tensor(item.root_idxs)] = scores[torch.tensor(item.idxs)]
                rows.append(row)
        if not rows:
            return None
        table = torch.stack(rows)
        covered = ~table.isnan().all(0)
        # Channels that only some members carry (concatenations): reduce over those; without a mask they stay.
        result = torch.full((table.shape[1],), self.ceiling, dtype=torch.float64)
        for i in covered.nonzero().flatten().tolist():
            column = table[:, i]
            result[i] = self.reduction(column[~column.isnan()])
        return tie_free([result])[0]
