"""CivilComments (Borkan et al., 2019; WILDS, Koh et al., 2021): toxic comments, with mentioned identities as bias."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import DataError
from .labels import read_scores, read_splits
from .loader import DataSplits
from .table import read_table, stop_at_problems
from .text import Tokenizer, assemble, read_texts, shared_texts

IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
_FILE = "all_data_with_identities.csv"
_FOLDER = "civilcomments_v1.0"


def load_civilcomments(root: Path, tokenizer: Tokenizer, max_length: int = 220) -> DataSplits:
    """Load CivilComments in its coarse form, with four disjoint subgroups in every split.

    y = 1 if the toxicity is at least 0.5; b = 1 if any of the eight identity scores is at least 0.5. An empty identity
    score counts as 0.

    Args:
        root: folder with the file ``all_data_with_identities.csv`` of WILDS, or the folder that holds
            ``civilcomments_v1.0``.
        tokenizer: tokenizer that is called with lists of texts.
        max_length: number of tokens that longer texts are cut to, at least 3.

    Returns:
        Splits whose ``inputs`` are ``input_ids`` and ``attention_mask``, both (N, L), int64, and whose ``bias`` is (N,
        1).

    Raises:
        DataError: the file is missing or has wrong rows; the message gives their number and the first ten line numbers.
        ConfigError: ``max_length`` is out of range.
    """
    path = next((folder / _FILE for folder in (root, root / _FOLDER) if (folder / _FILE).is_file()), None)
    if path is None:
        raise DataError(f"no {_FILE} in {root} or its folder {_FOLDER}; it comes with the WILDS release of the data")
    table = read_table(path, ["comment_text", "toxicity", "split", *IDENTITIES])
    texts = read_texts(table, "comment_text")
    target = read_scores(table, "toxicity")
    mentions = torch.stack([read_scores(table, name, blank=0.0) for name in IDENTITIES], 1)
    parts = read_splits(table, "split")
    stop_at_problems(path, table.problems)
    notes = ["CivilComments, coarse: toxicity >= .5 by any of eight identities >= .5", *shared_texts(texts, parts)]
    bias = mentions.amax(1, keepdim=True)
    return assemble(
        texts, tokenizer, max_length, target, bias, parts, ["non-toxic", "toxic"], notes,
        bias_values=[("no identity", "an identity")], bias_names=["identity"],
    )  # fmt: skip
