"""Errors that a user can cause; each message says what, where, which value and what to do next."""


class BiseError(Exception):
    """Base of every error this package raises on purpose; the command line prints it as one line."""

    exit_code = 1


class ConfigError(BiseError, ValueError):
    """A setting is unknown, out of range or contradicts another one."""

    exit_code = 2


class CheckpointError(BiseError):
    """A weight file is missing, foreign, unsafe or does not fit the model."""


class DataError(BiseError):
    """The data are missing, unreadable or unfit for debiasing."""


class ModelError(BiseError):
    """A network has no usable gates, no linear head, or masks that belong to another network."""


class PruningError(BiseError):
    """A requested reduction cannot be reached."""


class QualityError(BiseError):
    """A result misses a gate that was set for it; it is written all the same."""

    exit_code = 3


class VerificationError(BiseError):
    """Two models that must compute the same function do not."""

    exit_code = 4
