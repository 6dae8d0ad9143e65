"""``python -m bise_prune`` is the command ``bise-prune``."""

import sys

from .cli import main

sys.exit(main())
