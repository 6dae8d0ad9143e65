"""Servers as processes that end with a context."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request


def free_ports(count):
    """Ports of this machine that nothing listens on."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def started(command, environment, health, log, seconds=90.0):
    """A server that has started when its health address says so, and that SIGINT ends with all its children.

    Raises:
        RuntimeError: it ended before, or took too long; the message has the log.
    """
    with log.open("w") as file:
        process = subprocess.Popen(
            [str(part) for part in command], env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        deadline = time.monotonic() + seconds
        while not _well(health):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start (exit code {process.poll()}):\n{log.read_text()}")
            time.sleep(0.1)
        yield
    finally:
        _end(process, log)


def _well(health):
    try:
        with urllib.request.urlopen(health, timeout=2) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _end(process, log):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        print(f"the server had to be killed:\n{log.read_text()[-2000:]}", file=sys.stderr)
    with contextlib.suppress(ProcessLookupError):  # also what a server that crashed left behind
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
