"""``python -m bise_prune`` is the command ``bise-prune``."""

import sys

from .app.cli import main

sys.exit(main())
