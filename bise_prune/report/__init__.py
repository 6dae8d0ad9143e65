"""The report of a run: report record, tables for the terminal, HTML page, model card, and comparison of runs."""

from .environment import command_line, environment_record
from .quality_gates import shortcomings
from .record import SCHEMA_VERSION, evaluation_record, model_record
from .tables import comparison_table, frontier_table, side_by_side

__all__ = [
    "SCHEMA_VERSION", "command_line", "comparison_table", "environment_record", "evaluation_record", "frontier_table",
    "model_record", "shortcomings", "side_by_side",
]  # fmt: skip
