"""Learned mask logits as an importance criterion for the pruners of Torch-Pruning."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch_pruning as tp
from torch import Tensor

from ..errors import ConfigError, ModelError
from ..gates.masks import MaskSet, gates_a_layer, site_layer
from ..gates.ranking import tie_free

Reduction = Literal["all", "any", "mean"]
_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"all": torch.max, "any": torch.min, "mean": torch.mean}


class BISEImportance(tp.importance.Importance):  # type: ignore[misc]
    """The importance of a channel is its mask logit m (BISE, Eq. 2): channels with the lowest m are removed first.

    It works in local and global pruning, with any ``pruning_ratio`` and ignored layers. Scores are not normalised per
    dependency group, since the sign of m has a meaning of its own, and no two scores are equal. For dependency groups
    without masks it returns None, and pruners skip them; masks of heads, values and pairs, of groups under a group norm
    and of streams are left out. It follows several steps: from the first score on, it notes what each dependency group
    of that graph removes when it prunes.

    Four properties of Torch-Pruning's own pruners cannot be changed from here: on frozen weights they find no
    dependency groups and remove nothing without any error; behind ``torch.split`` they take the input channels of the
    first part from the layer that reads the last; ``round_to`` rounds the number of kept channels *down*, so that open
    channels are removed as well; and ``GroupNormPruner.regularize`` takes square roots of scores, which those of closed
    channels do not have. :func:`bise_prune.prune` does none of this.

    Args:
        masks: masks of the network that is pruned (layers are matched by name).
        reduction: how different mask logits of coupled channels become one score. "all" takes the largest m, so that a
            channel counts as closed only if all masks close it; "any" takes the smallest, "mean" the mean.

    Raises:
        ConfigError: the reduction is unknown.
        ModelError: the mask set is empty, or none of its masks is left.
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
            if not gates_a_layer(name):
                continue  # what is inside attention is no output of a layer, which Torch-Pruning could remove
            self.scores.setdefault(site_layer(name), []).append(part)
        self.ceiling = max(float(part.max()) for part in parts) + 1.0
        if not self.scores:
            raise ModelError("no mask of the set is one of channels of layers, one by one, which Torch-Pruning removes")
        # Graph -> layer -> which of its channels are left, by their number in the masks.
        self._left = weakref.WeakKeyDictionary[Any, dict[str, Tensor]]()

    def __call__(self, group: Any) -> Tensor | None:
        """Return one score per root channel of a dependency group of Torch-Pruning; None if no mask gates it.

        Args:
            group: the group, as Torch-Pruning's pruners pass it.

        Raises:
            ModelError: the length of a mask is not the width of its layer.
        """
        self._watch(group._DG)
        rows = []
        for item, name in self._outputs(group):
            if not all(index is not None for index in item.root_idxs):
                continue
            for scores in self.scores[name]:
                width = group._DG.get_out_channels(item.dep.target.module)
                scores = scores[self._left[group._DG].get(name, torch.arange(len(scores)))]
                if len(scores) != width:
                    raise ModelError(
                        f"the mask of '{name}' has {len(scores)} channels, the layer has {width}: the masks belong to "
                        "another network, or the network was pruned before the first score was asked for"
                    )
                row = torch.full((len(group[0].idxs),), float("nan"), dtype=torch.float64)
                row[torch.tensor(item.root_idxs)] = scores[torch.tensor(item.idxs)]
                rows.append(row)
        if not rows:
            return None
        table = torch.stack(rows)
        covered = ~table.isnan().all(0)
        # Channels that only some layers have (concatenations): reduce over these; channels without a mask stay.
        result = torch.full((table.shape[1],), self.ceiling, dtype=torch.float64)
        for i in covered.nonzero().flatten().tolist():
            column = table[:, i]
            result[i] = self.reduction(column[~column.isnan()])
        return tie_free([result])[0]

    def _outputs(self, group: Any) -> list[tuple[Any, str]]:
        """The items of a dependency group that are output channels of layers with masks, and the layers' names."""
        names = {module: name for name, module in group._DG.model.named_modules()}
        found = [(item, names.get(item.dep.target.module, "")) for item in group]
        is_input = group._DG.is_in_channel_pruning_fn
        return [(item, name) for item, name in found if name in self.scores and not is_input(item.dep.handler)]

    def _watch(self, graph: Any) -> None:
        """Note from now on which channels the dependency groups of a graph remove."""
        if graph in self._left:
            return
        self._left[graph] = {}
        original = graph.get_pruning_group

        def get_pruning_group(*args: Any, **kwargs: Any) -> Any:
            group = original(*args, **kwargs)
            prune = group.prune

            def note_and_prune(idxs: Any = None, record_history: bool = True) -> None:
                if idxs is None:  # otherwise a group with these indices is made, and prunes
                    self._note(group)
                prune(idxs, record_history)

            group.prune = note_and_prune
            return group

        graph.get_pruning_group = get_pruning_group

    def _note(self, group: Any) -> None:
        """Note which channels a dependency group is about to remove."""
        gone: dict[str, set[int]] = {}
        for item, name in self._outputs(group):
            gone.setdefault(name, set()).update(int(index) for index in item.idxs)
        known = self._left[group._DG]
        for name, indices in gone.items():
            left = known.get(name, torch.arange(len(self.scores[name][0])))
            stays = torch.ones(len(left), dtype=torch.bool)
            stays[sorted(indices)] = False
            known[name] = left[stays]
