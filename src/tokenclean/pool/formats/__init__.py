"""The formats of a pool's rows, and the conversation that each one gives."""

from tokenclean.pool.formats.field_types import RowError, check_text
from tokenclean.pool.formats.known_formats import FORMATS, Parsed
from tokenclean.pool.formats.row_options import RowOptions, read_column
from tokenclean.pool.formats.row_parser import detect_format, parse_row

__all__ = ["FORMATS", "Parsed", "RowError", "RowOptions", "check_text", "detect_format", "parse_row", "read_column"]
