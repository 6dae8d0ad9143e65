"""CivilComments (Borkan et al., 2019; WILDS, Koh et al., 2021): toxic comments, and whom they mention."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import DataError
from .columns import read_scores, read_splits
from .loader import DataSplits
from .table import read_table, stop_at_problems
from .text import Tokenizer, assemble, read_texts, shared_texts

IDENTITIES = ("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white")
_FILE = "all_data_with_identities.csv"
_FOLDER = "civilcomments_v1.0"


def load_civilcomments(root: Path, tokenizer: Tokenizer, max_length: int = 220) -> DataSplits:
    """CivilComments in its coarse form: four disjoint groups on every split.

    y = 1 if toxicity >= .5; b = 1 if any of the eight identity scores is at least .5, a blank one being 0.

    Args:
        root: the folder of WILDS's ``all_data_with_identities.csv``, or the one above ``civilcomments_v1.0``.
        tokenizer: called on lists of texts.
        max_length: tokens per text.

    Returns:
        Splits with ``inputs`` of ``input_ids`` and ``attention_mask``, both (N, L), int64, and ``bias`` (N, 1).

    Raises:
        DataError: the file is missing, or everything wrong with it: how many rows and which, the first ten by line
            number.
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
    names = [("no identity", "an identity")]
    return assemble(texts, tokenizer, max_length, target, bias, parts, ["non-toxic", "toxic"], notes, names)
