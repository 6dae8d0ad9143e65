"""Run the command line: ``python -m bise_prune`` does the same as the command ``bise-prune``."""

import sys

from .app.cli import main

sys.exit(main())
