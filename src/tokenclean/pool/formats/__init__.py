"""The formats of a pool's rows, and the conversation that each one gives."""

from tokenclean.pool.formats.field_types import RowError, check_text
from tokenclean.pool.formats.parsers import FORMATS, Parsed
from tokenclean.pool.formats.registry import detect_format, parse_row
from tokenclean.pool.formats.row_options import RowOptions, read_column

__all__ = ["FORMATS", "Parsed", "RowError", "RowOptions", "check_text", "detect_format", "parse_row", "read_column"]
