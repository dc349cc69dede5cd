"""A mixture: the rows of several sources, filtered and drawn by the recipe's ``pool`` section.

In this order: rows outside the bounds of length go, then rows that hold text of a benchmark, then exact duplicates,
then near-duplicates; of what is left each source's share or count is drawn. Contamination comes before duplicates, so
that a contaminated row never takes a clean one with it. The first of two duplicates stays, and sources come in the
recipe's order; nothing else depends on that order. A row is drawn by the hash of its id and the seed, so that a larger
count holds the rows of a smaller one. Rows keep their order.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from hashlib import blake2b
from math import floor

from tokenclean.errors import PoolError
from tokenclean.executors import LOCAL, Executor
from tokenclean.pool.contamination import Contamination, find_contamination
from tokenclean.pool.conversation import Conversation, Pool, RemovedRow
from tokenclean.pool.duplicates import Duplicate, exact_duplicates, near_duplicates
from tokenclean.pool.intake import Intake
from tokenclean.pool.shards import count_characters, count_response_characters
from tokenclean.pool.sources import merge_pools
from tokenclean.pool.splits import largest_remainders
from tokenclean.recipe import FiltersSettings, PoolSettings, SourceSettings

logger = logging.getLogger(__name__)

FILTERS = ("length", "contamination", "exact_duplicate", "near_duplicate", "not_drawn")
"""Why a usable row is left out, in the order of the filters."""


@dataclass(frozen=True)
class SourceCounts:
    """Rows of a source (by its rows' source name): usable ``rows`` before any filter, ``removed`` rows by filter, and
    those ``taken``."""

    source: str
    rows: int
    removed: dict[str, int]
    taken: int


@dataclass(frozen=True)
class Mixture:
    """``pool``: the rows left, and all rows removed; ``sources``: counts by source, in their order of appearance;
    ``contamination``: overlap of the benchmarks with the rows compared, None where none was; ``intake``: what became of
    all rows read."""

    pool: Pool
    sources: tuple[SourceCounts, ...]
    intake: Intake
    contamination: Contamination | None = None

    @property
    def removed_by_filter(self) -> dict[str, int]:
        """Rows removed by each filter that removed some."""
        counts = Counter(row.filter for row in self.pool.removed)
        return {name: counts[name] for name in FILTERS if counts[name]}


def mix_pools(
    pools: Sequence[Pool],
    settings: PoolSettings,
    seed: int,
    *,
    note: Callable[[str], None] = logger.info,
    executor: Executor = LOCAL,
) -> Mixture:
    """Filter the rows of the sources, one pool for each of ``settings.sources``, and draw from what is left.

    A pool without filters, shares and counts is its sources unchanged. ``executor``: who computes signatures for
    near-duplicates. Raises PoolError where two rows share an id, where nothing is left, or less than a count or share
    asks for, and as ``find_contamination``; MissingExtraError for near-duplicates without ``datasketch``.
    """
    merged, filters, contamination = merge_pools(pools), settings.filters, None
    rows = _Rows(list(merged), {})
    rows.remove(_out_of_bounds(rows.left, filters))
    if filters.contamination.data_dir is not None:
        note(f"comparing {len(rows.left):,} rows with the benchmarks in {filters.contamination.data_dir}")
        contamination = find_contamination(rows.left, filters.contamination)
        if filters.contamination.action == "remove":
            rows.remove(_contaminated(rows.left, contamination))
    if filters.duplicates != "none":
        rows.remove(_duplicates(rows.left, exact_duplicates(rows.left), "exact_duplicate"))
    if filters.duplicates == "near":
        note(f"looking for near-duplicates among {len(rows.left):,} rows")
        found = near_duplicates(rows.left, filters.near_threshold, executor)
        rows.remove(_duplicates(rows.left, found, "near_duplicate"))
    left = [[row for row in pool if row.id not in rows.removed] for pool in pools]
    rows.remove(_not_drawn(left, settings.sources, seed))
    pool = Pool(tuple(rows.left), merged.rejected, tuple(rows.removed.values()))
    mixture = Mixture(pool, _count_sources(pool), Intake.of(merged), contamination)
    if not rows.left:
        removed = ", ".join(f"{count:,} by {name}" for name, count in mixture.removed_by_filter.items())
        raise PoolError(f"pool.filters: no row is left of {len(merged):,} ({removed}); loosen the filters")
    return mixture


def draw_rows(ids: Iterable[str], count: int, seed: int) -> set[str]:
    """``count`` of these ids: those whose hashes with the seed are lowest.

    A larger count holds the rows of a smaller one, and whether a row is drawn depends on the ids alone, not on their
    order.
    """
    key = str(int(seed)).encode()

    def hash_id(id: str) -> bytes:
        return blake2b(id.encode("utf-8", "surrogatepass"), digest_size=16, key=key).digest()

    return set(sorted(ids, key=hash_id)[:count])


def share_sizes(available: Sequence[int], sources: Sequence[SourceSettings]) -> list[int]:
    """Rows to draw of each source, of which ``available`` are left.

    A count is taken literally; a source without count and share gives all its rows. The shares are of the pool that
    holds those rows too, and where every source has a share, of the largest pool that has these shares. Rounded by
    largest remainders, of equal ones the first source. Raises PoolError naming the source that has too few rows.
    """
    shares = {n: Fraction(repr(source.share)) for n, source in enumerate(sources) if source.share is not None}
    sizes = [rows if source.count is None else source.count for rows, source in zip(available, sources, strict=True)]
    if shares:
        total = sum(shares.values(), Fraction(0))
        if len(shares) == len(sources):  # shares as people round them, 0.333 three times
            shares = {n: share / total for n, share in shares.items()}
            whole = min(Fraction(available[n]) / share for n, share in shares.items())
        else:
            whole = sum(size for n, size in enumerate(sizes) if n not in shares) / (1 - total)
        whole = floor(whole) if len(shares) == len(sources) else whole
        quotas = [share * whole for share in shares.values()]
        drawn = largest_remainders(quotas, floor(sum(quotas) + Fraction(1, 2)))
        for n, size in zip(shares, drawn, strict=True):
            sizes[n] = size
    for n, (size, rows) in enumerate(zip(sizes, available, strict=True)):
        if size > rows:
            source = sources[n]
            asked = f"share {source.share:g} is {size:,} rows" if n in shares else f"count is {size:,}"
            raise PoolError(
                f"pool.sources.{n} ({source.name or source.place}): {asked}, but {rows:,} rows are left after the "
                "filters; lower it, or loosen pool.filters"
            )
    return sizes


@dataclass
class _Rows:
    """The rows left, and by id those removed so far."""

    left: list[Conversation]
    removed: dict[str, RemovedRow]

    def remove(self, removed: Iterable[RemovedRow]) -> None:
        """``removed``: in the order of the rows; of several entries for a row the first counts."""
        for row in removed:
            self.removed.setdefault(row.id, row)
        self.left = [row for row in self.left if row.id not in self.removed]


def _removed(conversation: Conversation, filter: str, reason: str) -> RemovedRow:
    c = conversation
    return RemovedRow(c.id, c.source, c.file, c.line, filter, reason, original_id=c.original_id)


def _out_of_bounds(rows: Sequence[Conversation], f: FiltersSettings) -> Iterator[RemovedRow]:
    bounds = (
        ("characters", count_characters, f.min_characters, f.max_characters),
        ("response characters", count_response_characters, f.min_response_characters, f.max_response_characters),
    )
    asked = [bound for bound in bounds if bound[2] is not None or bound[3] is not None]
    for row in rows:
        for what, count, least, most in asked:
            characters = count(row)
            if least is not None and characters < least:
                yield _removed(row, "length", f"{characters:,} {what}, fewer than {least:,}")
            if most is not None and characters > most:
                yield _removed(row, "length", f"{characters:,} {what}, more than {most:,}")


def _contaminated(rows: Sequence[Conversation], found: Contamination) -> Iterator[RemovedRow]:
    for o in found.overlaps:
        row = _removed(rows[o.row], "contamination", f"holds text of the benchmark {o.benchmark}")
        yield replace(row, benchmark_file=o.file, ngram=o.ngram)


def _duplicates(rows: Sequence[Conversation], found: Iterable[Duplicate], filter: str) -> Iterator[RemovedRow]:
    what = {"exact_duplicate": "says the same as", "near_duplicate": "says nearly the same as"}[filter]
    for duplicate in found:
        kept = rows[duplicate.of]
        row = _removed(rows[duplicate.row], filter, f"{what} {kept.file}:{kept.line}")
        yield replace(row, resembles=kept.id, similarity=round(duplicate.similarity, 4))


def _not_drawn(
    left: Sequence[Sequence[Conversation]], sources: Sequence[SourceSettings], seed: int
) -> Iterator[RemovedRow]:
    """``left``: the rows of each source."""
    for rows, size in zip(left, share_sizes([len(rows) for rows in left], sources), strict=True):
        if size < len(rows):
            drawn = draw_rows((row.id for row in rows), size, seed)
            reason = f"not among the {size:,} drawn of {len(rows):,}"
            yield from (_removed(row, "not_drawn", reason) for row in rows if row.id not in drawn)


def _count_sources(pool: Pool) -> tuple[SourceCounts, ...]:
    kept = Counter(pool.sources)
    left_out: dict[str, Counter[str]] = {}
    for row in pool.removed:
        left_out.setdefault(row.source, Counter())[row.filter] += 1
    counted = []
    for source in dict.fromkeys([*kept, *left_out]):
        by_filter = left_out.get(source, Counter())
        in_order = {name: by_filter[name] for name in FILTERS if by_filter[name]}
        counted.append(SourceCounts(source, kept[source] + by_filter.total(), in_order, kept[source]))
    return tuple(counted)
