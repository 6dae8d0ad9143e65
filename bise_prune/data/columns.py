"""Find the columns of a user's table by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import DataError

# Usual column names, in order of preference; upper and lower case are the same.
ALIASES = {
    "text": ("text", "comment_text", "sentence", "content", "tweet", "comment"),
    "file": ("file", "filename", "img_filename", "file_name", "path", "image", "image_id", "filepath", "file_path"),
    "label": ("label", "y", "target", "toxic", "toxicity", "hateful", "class"),
    "bias": ("bias", "b", "a", "place", "identity_any", "identity", "spurious", "attribute"),
    "split": ("split", "partition"),
}


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a user's table; a column whose name is None is found by the usual names.

    Attributes:
        label: column of the class labels.
        bias: columns of the bias labels, one per bias; an empty sequence means that there are none.
        split: column that says train, val or test.
        file: column of the image files.
        text: column of the texts.
    """

    label: str | None = None
    bias: Sequence[str] | None = None
    split: str | None = None
    file: str | None = None
    text: str | None = None

    def chosen(self, names: Sequence[str], where: object, content: str) -> Chosen:
        """Choose the columns to read from a table.

        Args:
            names: names of all columns of the table.
            where: the table's file, for error messages.
            content: "file" or "text": the column that the table must have besides the class label.

        Returns:
            The chosen columns.

        Raises:
            DataError: a column is missing, or is given for more than one purpose.
        """
        own = self.file if content == "file" else self.text
        given = [name for name in (own, self.label, *(self.bias or ()), self.split) if name is not None]
        twice = sorted({name for name in given if given.count(name) > 1})
        if twice:
            raise DataError(f"{where}: column {', '.join(map(repr, twice))} is given for more than one purpose")
        free = {name.strip().lower(): name for name in reversed(names) if name not in given}
        free |= {name: name for name in free if name in names and name not in given}  # rather "label" than "Label"

        def find(what: str) -> str | None:
            return next((free[alias] for alias in ALIASES[what] if alias in free), None)

        own, label, split = own or find(content), self.label or find("label"), self.split or find("split")
        biases = self.bias
        if biases is None:
            several = [name for key, name in free.items() if key == "bias" or key.startswith("bias_")]
            biases = sorted(several, key=list(names).index) or [name for name in (find("bias"),) if name is not None]
        for what, name in ((content, own), ("label", label)):
            taken = [other for other in given if name is None and other in names and other.lower() in ALIASES[what]]
            if taken:
                raise DataError(
                    f"{where}: column '{taken[0]}' is given for another purpose, and none of {', '.join(names)} looks "
                    f"like the one of the {what}s: name it with --{what}-column"
                )
        missing = [f"'{name}'" for name in given if name not in names]
        missing += [
            f"{what} ({', '.join(ALIASES[what])})" for what, name in ((content, own), ("label", label)) if not name
        ]
        if missing or own is None or label is None:
            flags = f"--{content}-column, --label-column, --bias-column and --split-column"
            raise DataError(
                f"{where} has no column {', no column '.join(missing)}; it has {', '.join(names) or 'none'}: name them "
                f"with {flags}"
            )
        return Chosen(own, label, tuple(biases), split)


@dataclass(frozen=True)
class Chosen:
    """The columns to read from a table.

    Attributes:
        content: column of the files or texts.
        label: column of the class labels.
        biases: columns of the bias labels, one per bias.
        split: column of the splits; None if there is none.
    """

    content: str
    label: str
    biases: tuple[str, ...]
    split: str | None

    @property
    def names(self) -> list[str]:
        """Names of all chosen columns."""
        return [self.content, self.label, *self.biases, *([self.split] if self.split else [])]

    def __str__(self) -> str:
        parts = [f"label '{self.label}'", *(f"bias '{name}'" for name in self.biases)]
        return ", ".join(parts + ([f"split '{self.split}'"] if self.split else []))
