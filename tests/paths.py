"""Where things are."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
TOOLS = ROOT / "tools"
