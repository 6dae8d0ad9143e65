"""A real Triton server, from the wheel of nvidia-pytriton in an environment of its own (triton-requirements.txt)."""

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from .processes import free_ports, started

VARIABLE = "BISE_PRUNE_TRITON_PYTHON"  # the environment's python


class Server:
    """Where a running server is to be found."""

    def __init__(self, http, grpc):
        self.http, self.grpc = f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"


@contextlib.contextmanager
def running(repository, work, *options, python=None):
    """Start the server on a repository.

    Args:
        repository: the folder with the models.
        work: a folder for the backends and the log.
        options: further options of the server.
        python: of the environment with the server; None = what BISE_PRUNE_TRITON_PYTHON names.
    """
    python = Path(python or os.environ[VARIABLE]).absolute()
    (site,) = (python.parent.parent / "lib").glob("python3*/site-packages")
    wheel = site / "pytriton" / "tritonserver"
    backends = work / "backends"
    shutil.copytree(wheel / "backends" / "python", backends / "python")
    version = site.parent.name.removeprefix("python")
    shutil.copy(wheel / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    (backends / "onnxruntime").mkdir()
    shutil.copy(Path(__file__).with_name("onnxruntime_backend.py"), backends / "onnxruntime" / "model.py")
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_config_var('LIBDIR'))"]
    base = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()  # may hold libpython
    libraries = [str(site / "nvidia_pytriton.libs"), base, os.environ.get("LD_LIBRARY_PATH", "")]
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": ":".join(filter(None, libraries)),
        "PATH": f"{python.parent}:{os.environ['PATH']}",  # the backend's interpreter finds its packages by it
    }
    http, grpc, metrics = free_ports(3)
    memory = f"bise_prune_triton_{http}_"
    command = [
        wheel / "bin" / "tritonserver", f"--model-repository={repository}", f"--backend-directory={backends}",
        "--http-address=127.0.0.1", f"--http-port={http}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc}",
        "--metrics-address=127.0.0.1", f"--metrics-port={metrics}", "--disable-auto-complete-config",
        f"--backend-config=python,shm-region-prefix-name={memory}", "--exit-timeout-secs=5", *options,
    ]  # fmt: skip
    try:
        with started(command, environment, f"http://127.0.0.1:{http}/v2/health/ready", work / "server.log"):
            yield Server(http, grpc)
    finally:
        for left in Path("/dev/shm").glob(f"{memory}*"):  # by a server that crashed
            left.unlink()


def main():
    """Serve a repository until it is interrupted."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("repository", type=Path)
    parser.add_argument("--python", type=Path, help=f"of the environment with the server (default: ${VARIABLE})")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, contextlib.suppress(KeyboardInterrupt):
        with running(arguments.repository.absolute(), Path(work), python=arguments.python) as server:
            print(f"HTTP at {server.http}, gRPC at {server.grpc}; Ctrl-C ends it", flush=True)
            signal.pause()


if __name__ == "__main__":
    main()
