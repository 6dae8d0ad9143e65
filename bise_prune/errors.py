"""Exceptions for mistakes that a user can cause; each message says what, where, which value and what to do next."""


class BiseError(Exception):
    """Base class of all errors that this package raises on purpose; the command line prints them as one line.

    Attributes:
        exit_code: exit status of the command line when this error ends a run.
    """

    exit_code = 1


class ConfigError(BiseError, ValueError):
    """A setting is unknown, out of range or contradicts another setting."""

    exit_code = 2


class CheckpointError(BiseError):
    """A checkpoint is missing, in an unknown format, unsafe to load, or does not fit the network."""


class DataError(BiseError):
    """The data are missing, unreadable or unsuitable for debiasing."""


class ModelError(BiseError):
    """A network has no usable gates or no linear classifier head, or the masks belong to another network."""


class PruningError(BiseError):
    """A target cannot be reached, the network cannot be pruned as asked, or a plan cannot be read."""


class QualityError(BiseError):
    """The slim network misses a quality gate; its files are written all the same."""

    exit_code = 3


class ChanceLevelError(PruningError):
    """The slim network predicts no better than chance where the dense one does; it is not written."""

    exit_code = 3


class VerificationError(BiseError):
    """Two networks that must compute the same function give different outputs."""

    exit_code = 4


def counted(number: float, noun: str) -> str:
    """A number with its noun in the singular or plural, as messages say it.

    >>> counted(1, "row"), counted(1200, "row"), counted(2, "bias-conflicting sample")
    ('1 row', '1,200 rows', '2 bias-conflicting samples')
    """
    digits = f"{number:,}" if isinstance(number, int) else f"{number:g}"
    return f"{digits} {noun}{'' if number == 1 else 's'}"


def printable(text: object, most: int = 2_000) -> str:
    r"""Text from outside on one line: without control characters, which are written as escapes, and not too long.

    Args:
        text: the text.
        most: number of characters beyond which its middle is left out.

    >>> printable("a\x1b[31m\nb"), printable("x" * 100, most=20)
    ('a\\x1b[31m\\nb', 'xxxxxxxx ... xxxxxxx')
    """
    whole = str(text)
    if len(whole) > most:
        whole = f"{whole[: most // 2 - 2]} ... {whole[-(most // 2 - 3) :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole)
