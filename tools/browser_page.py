"""Write a web page that classifies images with the slim network in the browser, for example to show a result.

    npm install onnxruntime-web
    python tools/browser_page.py bise-demo/slim --runtime node_modules/onnxruntime-web/dist --output page/
    python -m http.server --directory page/

The folder holds all files that the page needs, and can be put on any web server; images stay on the visitor's machine.
It works for image classifiers only. Classes, image size and normalisation are read from the ONNX file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import models

from bise_prune.errors import ConfigError
from bise_prune.export.runtime import open_session

RUNTIME_FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
TEMPLATE = Path(__file__).with_name("browser_page.html")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="output folder of a run")
    parser.add_argument(
        "--runtime", type=Path, required=True, metavar="DIR", help="the folder dist of the npm package onnxruntime-web"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the page")
    arguments = parser.parse_args(argv)
    return models.guarded(lambda: write_page(arguments.run, arguments.runtime, arguments.output))


def write_page(run: Path, runtime: Path, output: Path) -> int:
    """Write the page into a new folder."""
    model = run / "slim.onnx"
    if not model.is_file():
        raise ConfigError(f"{run} holds no slim.onnx; give the output folder of a run")
    missing = [name for name in RUNTIME_FILES if not (runtime / name).is_file()]
    if missing:
        raise ConfigError(f"{runtime} has no {missing[0]}: npm install onnxruntime-web, and give its folder dist")
    if output.exists():
        raise ConfigError(f"{output} exists already; choose another folder with --output")
    session = open_session(model)
    metadata = session.get_modelmeta().custom_metadata_map
    about = json.loads(metadata.get("preprocessing", "{}"))
    (value, *others) = session.get_inputs()
    if about.get("scale") != "uint8 / 255":
        raise ConfigError(f"{model} was trained on inputs that are no pixels of 0 to 255; a browser has no others")
    if others or len(value.shape) != 4 or value.shape[1] not in (1, 3) or not about.get("size"):
        raise ConfigError(f"{model} takes no images of a known size; the page classifies images alone")
    settings = {
        "input": value.name,
        "channels": value.shape[1],
        "size": about["size"],
        "mean": about["mean"] or [0.0] * value.shape[1],
        "std": about["std"] or [1.0] * value.shape[1],
        "classes": json.loads(metadata["classes"]),
        "sparsity": float(metadata["sparsity"]),
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".bise-prune-") as folder:
        made = Path(folder) / "page"
        made.mkdir()
        for source in (model, *(runtime / name for name in RUNTIME_FILES)):
            shutil.copyfile(source, made / source.name)
        text = json.dumps(settings).replace("<", "\\u003c")  # inside a script element
        (made / "index.html").write_text(TEMPLATE.read_text(encoding="utf-8").replace("{settings}", text))
        made.rename(output)
    print(f"written to {output}; look at it with: python -m http.server --directory {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
