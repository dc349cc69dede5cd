"""What all sections of a recipe have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer


class Section(BaseModel):
    """Frozen, without unknown keys and without NaN or inf.

    The text below a field is its description, from which the command line's help is generated.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        defer_build=True,
    )


def _pairs(value: object) -> object:
    return tuple(value.items()) if isinstance(value, Mapping) else value


_MAPPING = (BeforeValidator(_pairs), PlainSerializer(dict, return_type=dict))

Names = Annotated[tuple[tuple[str, str], ...], *_MAPPING]
"""A mapping of names, frozen: written as a mapping, held as pairs."""

Limits = Annotated[tuple[tuple[str, Annotated[int, Field(ge=1)]], ...], *_MAPPING]
"""A mapping of names to counts, held like ``Names``."""
