"""Names of the files in the output folder of a run."""

from __future__ import annotations

STATE_FILE = "search-state.pt"
MASK_FILE = "masks.safetensors"
PLAN_FILE = "plan.json"
REPORT_FILE = "report.json"
FRONTIER_FILE = "frontier.json"
FRONTIER_PAGE = "frontier.html"
POINT = "sparsity-"  # prefix of the folder of a frontier's point; its target follows
CONFIG_FILE = "config.toml"
SLIM_FILE = "slim.safetensors"
ONNX_FILE = "slim.onnx"
HALF_FILE = "slim.fp16.onnx"
INT8_FILE = "slim.int8.onnx"
IMAGES_FILE = "slim.images.onnx"
PROGRAM_FILE = "slim.pt2"
PAGE_FILE = "report.html"
CARD_FILE = "README.md"
RESULT_FILES = (
    REPORT_FILE, MASK_FILE, PLAN_FILE, SLIM_FILE, ONNX_FILE, HALF_FILE, INT8_FILE, IMAGES_FILE, PROGRAM_FILE, PAGE_FILE,
    CARD_FILE, FRONTIER_FILE,
)  # fmt: skip
