"""``parse_row`` with its options as keywords."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenclean.pool.formats import Parsed, RowOptions
from tokenclean.pool.formats import parse_row as parse_with


def parse_row(
    row: Mapping[str, Any],
    format: str = "auto",
    columns: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    *,
    is_padded: bool = False,
    **options: Any,
) -> Parsed:
    ignored = frozenset(options.pop("ignore", ()))
    given = RowOptions(format, columns or {}, roles or {}, ignored, **options)
    return parse_with(row, given, is_padded=is_padded)
