"""The entry of the mask search: it puts the parts together and runs the search that the settings name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from ..config import SearchConfig
from ..data.batch import Loader
from ..gates.masks import MaskSet
from .algorithm import search_as_in_the_paper
from .assembly import assemble
from .gradual import search_gradually
from .result import EpochRecord, SearchResult
from .speed import Speedups


def search(
    model: nn.Module,
    train_loader: Loader,
    config: SearchConfig | None = None,
    val_loader: Loader | None = None,
    *,
    aligned: Tensor | None = None,
    start: MaskSet | None = None,
    on_epoch: Callable[[EpochRecord, int], None] | None = None,
    state_path: Path | None = None,
    interrupted: Callable[[], bool] | None = None,
    speedups: Speedups | None = None,
) -> SearchResult:
    """Search the channels of a trained network that can be closed.

    The network is copied and stays as it is; the search runs on its device and in its precision.

    With ``torch.distributed`` initialised, every process calls this function with the same arguments. The batches of a
    :class:`bise_prune.data.BatchLoader` are then divided among the processes; any other loader must yield each process
    its own part of every batch, and the same number of batches to each. All processes return the same masks; the first
    one writes the state.

    Args:
        model: the vanilla-trained classifier.
        train_loader: the biased training set: batches with the fields ``input``, ``target`` (class labels, shape (N,))
            and ``bias`` (bias labels, shape (N,) or (N, K)). It is iterated as often as the search takes. If it has a
            method ``set_epoch(n)``, this is called before each pass with the number of the pass. The inputs of a
            ``BatchLoader`` are taken to be the same on each pass, so that results which no mask changes are computed
            once; a gradual search draws its batches from them by itself.
        config: settings of the search; the gradual search by default.
        val_loader: validation data on which the epoch is selected, with the same fields; bias labels of shape (N, 0)
            mean that they are unknown.
        aligned: bias value that each class is aligned with, shape (classes, K); by default the one most associated with
            the class in the training set.
        start: masks to start from, instead of ``initial_logit`` for every channel, with the tensors that they were
            learned with, if they hold any; see :meth:`bise_prune.MaskSet.for_start` for these alone.
        on_epoch: function called after each epoch with its record and the number of scheduled epochs.
        state_path: file in which the state of the search is saved after each epoch; if it holds a state of the same
            search, that search is resumed.
        interrupted: function called after each batch, or after several that are computed together; if it returns true,
            the state is saved and the search stops. A resumed search continues within the epoch.
        speedups: shortcuts to use; all by default. They change the last bits of a figure at most, and no mask.

    Returns:
        The masks by selection rule, and one record per epoch.

    Raises:
        ConfigError: the data do not support the selection rule, or the settings do not fit the network or device.
        DataError: there is no bias-conflicting sample, or the labels or inputs do not fit the network.
        ModelError: the network has nothing to gate.
        SearchInterrupted: ``interrupted`` returned true.
    """
    found = assemble(model, train_loader, config or SearchConfig(), val_loader, aligned, start, speedups)
    run = search_gradually if found.config.is_gradual else search_as_in_the_paper
    return run(found, on_epoch, state_path, interrupted)
