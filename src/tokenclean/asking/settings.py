"""How a model is asked: the sampling of its answers, and the settings of a server. The command line has them too."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tokenclean.recipe.base_settings import Section
from tokenclean.recipe.server_settings import ServerSettings


class Sampling(Section):
    """How answers are drawn. The defaults are those of the paper's raters, except ``top_k`` (50 there), which not every
    server accepts. None leaves a setting to the server or the library."""

    temperature: float | None = Field(default=1.2, ge=0)
    """Sampling temperature."""
    top_p: float | None = Field(default=0.9, gt=0, le=1)
    """Sample from the likeliest tokens with this total probability."""
    top_k: int | None = Field(default=None, ge=1)
    """Sample from this many likeliest tokens; by default 50 with --local. Not every server takes it."""
    max_tokens: int = Field(default=128, ge=1)
    """Maximal length of an answer in tokens."""
    seed: int | None = Field(default=None, ge=0)
    """Seed of the sampling; by default 0 with --local. Not every server takes it."""


class EndpointSettings(ServerSettings):
    """How a server is asked. Between tries the wait doubles, and is at least as long as the server asks for."""

    mark_refused: bool = False
    """Go on without the rows that the server refuses (400, 413, 422), and mark them."""
    tokens_parameter: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The server's name for the limit of an answer."""
