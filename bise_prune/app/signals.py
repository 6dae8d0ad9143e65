"""Signals that stop the command: which they are, what the first one does, and where they wait."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def signals() -> list[int]:
    """The signals that stop the command; on Windows there are fewer."""
    return [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """A context in which the first signal raises KeyboardInterrupt, and no further one disturbs the end.

    Its value is set by that signal; who sets it at the end of the work has no signal change what is done. A signal that
    is ignored, as SIGHUP is under nohup, stays ignored.
    """
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(number: int, frame: Any) -> None:
        if not stopped.is_set():
            stopped.set()
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in signals()}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, stop)
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """A context in which signals wait: libraries written in C do not survive one while they are imported."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
