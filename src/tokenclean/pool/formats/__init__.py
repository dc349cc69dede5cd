"""The shapes a pool's row may have, and the conversation that each one gives."""

from tokenclean.pool.formats.column_mapping import check_columns, read_column
from tokenclean.pool.formats.field_types import Row, RowError, check_text
from tokenclean.pool.formats.parsers import FORMATS, Parsed
from tokenclean.pool.formats.registry import RowOptions, detect_format, parse_row

__all__ = [
    "FORMATS",
    "Parsed",
    "Row",
    "RowError",
    "RowOptions",
    "check_columns",
    "check_text",
    "detect_format",
    "parse_row",
    "read_column",
]
