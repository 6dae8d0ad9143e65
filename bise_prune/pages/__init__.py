"""Pages for people: a run's report, several runs side by side, and a model card."""

from .comparison import comparison_table, read_runs, summaries, write_comparison
from .page import pictures, write_card, write_page

__all__ = ["comparison_table", "pictures", "read_runs", "summaries", "write_card", "write_comparison", "write_page"]
