"""The tokens of one shard of a pool, as a stage: found again by its rows and their tokenization alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenclean.errors import ModelError
from tokenclean.executors import Item, WriteFiles
from tokenclean.observer import Progress
from tokenclean.pool import Conversation, LeftOutThoughts, RenderedRows, count_characters, read_rejected, write_rejected
from tokenclean.recipe import TokensSettings
from tokenclean.scoring.stored_losses import hash_tokens, refuse_missing
from tokenclean.store import STAGE_VERSIONS, Make, Stage, Store, fingerprint
from tokenclean.token_table import TokenTable, read_table, write_table
from tokenclean.tokens import TokenizedPool, tokenize_pool
from tokenclean.tokens.encoding import fast_backend
from tokenclean.tokens.tokenizer_template.chat import reads_clock

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tokenclean.models.loading.load import ModelSource

RowsShard = Item["PlannedShard", Sequence[Conversation]]
"""A shard that is to be tokenized: it gives its rows."""

# Raise the number when the same text gives other tokens or labels; shards made before are then ignored.

_TABLE, _UNUSABLE = "tokens.parquet", "unusable.jsonl"


@dataclass(frozen=True)
class PlannedShard:
    """A shard before it is tokenized.

    ``number``: its place in the plan, from 0. ``before``: characters of all shards before it; ``characters``: its own.
    ``inputs``: those of its stage.
    """

    number: int
    before: int
    characters: int
    inputs: Mapping[str, object]

    @property
    def what(self) -> str:
        """A few words for the manifest."""
        return f"tokens of shard {self.number + 1}"


@dataclass(frozen=True)
class TokenShard:
    """A tokenized shard; its tokens are in the folder of the stage."""

    plan: PlannedShard
    stage: Stage
    tokenization: TokensSettings

    @property
    def rendered_rows(self) -> RenderedRows:
        """What became of the rows when they were tokenized."""
        results = self.stage.manifest["results"]
        unusable = tuple(read_rejected(self.unusable)) if results["unusable"] else ()
        left_out = LeftOutThoughts(**results["thoughts_left_out"])
        return RenderedRows(results["rows"], unusable, results["notes"], results["response_tokens"], left_out)

    @property
    def tokens_hash(self) -> str:
        """Hash of ids, offsets and labels (``hash_tokens``)."""
        return self.stage.manifest["results"]["tokens_hash"]

    @property
    def unusable(self) -> Path:
        """File that lists the rows without any target."""
        return self.stage.path / _UNUSABLE

    def table(self) -> TokenTable:
        """Ids, sources, ``input_ids`` and ``is_response``. Raises TableError where the file cannot be read."""
        return read_table(self.stage.path / _TABLE)

    def tokens(self) -> TokenizedPool:
        """The part of the tokenized shard that scoring needs: character positions and contents are left empty."""
        table = self.table()
        no_characters = table["input_ids"].map_values(lambda ids: np.zeros(len(ids), np.int32))
        return TokenizedPool(
            input_ids=table["input_ids"],
            is_response=table["is_response"],
            char_start=no_characters,
            char_end=no_characters,
            ids=table.ids,
            sources=table.sources,
            contents=((),) * len(table),
            is_truncated=np.zeros(len(table), dtype=bool),
            unusable=(),
            original_ids=table.original_ids,
        )


class TokenShards:
    """The stages that hold a pool's tokens, whichever process and run makes them. Thread-safe.

    ``source``: where another process loads the same tokenizer; without it only this one tokenizes.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tokenization: TokensSettings,
        store: Store,
        source: ModelSource | None = None,
    ) -> None:
        self._tokenizer, self._tokenization, self._store = tokenizer, tokenization, store
        self._fingerprint = tokenizer_fingerprint(tokenizer)
        self._reads_clock = tokenization.template == "tokenizer" and reads_clock(tokenizer)
        self.work = None if source is None else TokenWork(source.absolute, self._fingerprint, tokenization)

    def plan(self, number: int, before: int, rows: Sequence[Conversation]) -> PlannedShard:
        """The shard of these rows. Its key depends on their ids, which contain hashes of their content, and on their
        files, which the listing of unusable rows names."""
        options = self._tokenization.model_dump(exclude=None if self._reads_clock else {"date"})
        inputs = {
            "rows": fingerprint([row.id for row in rows]),
            "files": sorted({row.file for row in rows}),
            "tokenizer": self._fingerprint,
            **options,
        }
        return PlannedShard(number, before, sum(map(count_characters, rows)), inputs)

    def make(self, item: RowsShard, progress: Progress | None = None) -> TokenShard:
        """Find the shard's tokens, or make them; ``progress`` is called before each row.

        Raises as ``tokenize_pool`` and ``Store.stage`` do."""

        def make(folder: Path) -> Mapping[str, object]:
            rows = item.given() if progress is None else _reported(item.given(), progress)
            return write_tokens(folder, rows, item.what, self._tokenizer, self._tokenization)

        return self.store(item.key, make)

    def store(self, key: PlannedShard, make: Make) -> TokenShard:
        """Find the shard's tokens, or store what ``make`` writes into their folder. Raises as ``Store.stage`` does."""
        stage = self._store.stage("tokens", STAGE_VERSIONS["tokens"], key.inputs, make)
        return TokenShard(key, stage, self._tokenization)

    def find(self, plan: PlannedShard) -> TokenShard:
        """The tokens of a shard that was tokenized before. Raises RunFolderError where they are gone or damaged."""
        return self.store(plan, refuse_missing(plan.what))


@dataclass(frozen=True)
class TokenWork:
    """The tokens of a pool's shards, as a ``FileWork``. ``fingerprint``: of the tokenizer that the pass was begun with.
    ``source``: whose tokenizer it is."""

    source: ModelSource
    fingerprint: str
    tokenization: TokensSettings

    @contextmanager
    def opened(self) -> Iterator[WriteFiles[Sequence[Conversation]]]:
        """A block with a function that writes the tokens of rows. Raises ModelError for another tokenizer."""
        from tokenclean.models.loading.load import load_tokenizer

        tokenizer = load_tokenizer(self.source)
        if tokenizer_fingerprint(tokenizer) != self.fingerprint:
            raise ModelError(f"{self.source}: its tokenizer is not the one that the pass was begun with")
        yield lambda folder, rows, what: write_tokens(folder, rows, what, tokenizer, self.tokenization)


def write_tokens(
    folder: Path,
    rows: Iterable[Conversation],
    what: str,
    tokenizer: PreTrainedTokenizerBase,
    tokenization: TokensSettings,
) -> Mapping[str, object]:
    """Write the files of a shard's stage; what its manifest says. Raises as ``tokenize_pool`` does."""
    options = tokenization.model_dump()
    tokens = tokenize_pool(rows, tokenizer, **options)
    write_table(tokens.table(options), folder / _TABLE)
    write_rejected(tokens.unusable, folder / _UNUSABLE)
    return {
        "what": what,
        "rows": len(tokens),
        "tokens": len(tokens.input_ids.values),
        "response_tokens": int(np.count_nonzero(tokens.is_response.values)),
        "unusable": len(tokens.unusable),
        "notes": dict(tokens.notes),
        "thoughts_left_out": asdict(tokens.left_out),
        "tokens_hash": hash_tokens(tokens),
    }


def _reported(rows: Sequence[Conversation], progress: Progress) -> Iterator[Conversation]:
    for number, row in enumerate(rows):
        progress(number, len(rows))
        yield row


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of everything by which a tokenizer renders and tokenizes: backend, special tokens, chat template.

    Truncation and padding are left out, since neither is used here.
    """
    state = {**json.loads(fast_backend(tokenizer).to_str()), "truncation": None, "padding": None}
    special = {role: str(token) for role, token in tokenizer.special_tokens_map.items()}
    return fingerprint([state, special, tokenizer.chat_template])
