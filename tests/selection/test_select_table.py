from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokenclean.errors import NonFiniteError, RunFolderError, TableError
from tokenclean.ragged import Ragged
from tokenclean.selection import lowest_kept, select_tokens
from tokenclean.selection import select_table as module
from tokenclean.selection.select_table import KeptCounts, select_table
from tokenclean.token_table import TokenTable, iter_table, open_table, read_table, write_table

LEVELS = ("global", "sample", "source", "random")
# Few distinct values force ties; 1e-45 is the smallest denormal of float32, the last its largest number.
TIED = st.sampled_from([-1.0, -0.0, 0.0, 1.0, 1e-45, -1e-45, 1e-40, 3.4028235e38])
SPREAD = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = st.sampled_from([TIED, SPREAD]).flatmap(
    lambda score: st.lists(
        st.tuples(st.sampled_from("abc"), st.lists(st.tuples(st.booleans(), score), max_size=6)), max_size=9
    )
)
PROPORTIONS = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.3, 0.6, 0.7, 1.0]))


def table_of(rows, dtype=np.float32) -> TokenTable:
    """A table of (source, [(is a response token, score)]) rows; off the response, scores are NaN where they can be."""
    is_response = Ragged.from_rows([[response for response, _ in tokens] for _, tokens in rows], bool)
    off_response = np.nan if np.dtype(dtype).kind == "f" else 0
    scores = [[score if response else off_response for response, score in tokens] for _, tokens in rows]
    columns = {
        "input_ids": is_response.with_values(np.arange(len(is_response.values))),
        "is_response": is_response,
        "is_kept": is_response.with_values(np.ones(len(is_response.values), bool)),
        "score": Ragged.from_rows(scores, dtype),
    }
    ids = tuple(f"{source}:{row}" for row, (source, _) in enumerate(rows))
    return TokenTable(ids, tuple(source for source, _ in rows), columns, {"base": "m", "selection": {"old": True}})


def write_parts(table: TokenTable, ends: list[int], path: Path) -> None:
    """The table in row groups that end before the given rows, and at the end."""
    ends = [*sorted(ends), len(table)]
    with open_table(path, table.metadata) as writer:
        for first, last in zip([0, *ends], ends, strict=False):
            columns = {name: column.take(range(first, last)) for name, column in table.columns.items()}
            writer.write(TokenTable(table.ids[first:last], table.sources[first:last], columns))


def check(table: TokenTable, ends: list[int], folder: Path, proportion: float, level, seed: int) -> TokenTable:
    """Select over the table's file, compare with all in memory, and give what was written."""
    write_parts(table, ends, folder / "scores.parquet")
    counts = select_table(
        folder / "scores.parquet", folder / "kept.parquet", proportion=proportion, level=level, seed=seed
    )
    scores = None if level == "random" else table["score"]
    expected = select_tokens(
        scores, table["is_response"], proportion=proportion, level=level, sources=table.sources, seed=seed
    )
    threshold = lowest_kept(scores, expected)
    written = read_table(folder / "kept.parquet")
    assert (written.ids, written.sources) == (table.ids, table.sources)
    assert list(written.columns) == list(table.columns)
    for name, column in {**table.columns, "is_kept": expected}.items():
        assert written[name].values.dtype == column.values.dtype
        assert written[name].values.tobytes() == column.values.tobytes(), name
        np.testing.assert_array_equal(written[name].offsets, column.offsets)
    assert [len(part) for part in iter_table(folder / "kept.parquet")] == [
        len(part) for part in iter_table(folder / "scores.parquet")
    ]

    selection = {"proportion": proportion, "level": level, "threshold": threshold}
    selection |= {"seed": seed} if level == "random" else {}
    assert json.dumps(written.metadata) == json.dumps({"base": "m", "selection": selection}, sort_keys=True)
    assert counts.threshold == threshold
    for counted, column in ((counts.response_tokens, table["is_response"]), (counts.kept_tokens, expected)):
        assert counted.keys() == set(table.sources)
        for name, tokens in counted.items():
            assert tokens == sum(int(column[row].sum()) for row in range(len(table)) if table.sources[row] == name)
    assert counts.emptied_rows == sum(
        bool(response.any()) and not kept.any() for response, kept in zip(table["is_response"], expected, strict=True)
    )
    assert sorted(path.name for path in folder.iterdir()) == ["kept.parquet", "scores.parquet"]
    return written


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tables")


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40, deadline=None)
@given(rows=ROWS, ends=st.lists(st.integers(0, 9), max_size=5), proportion=PROPORTIONS, seed=st.integers(0, 2**32))
@example(rows=[], ends=[], proportion=0.6, seed=0)
@example(rows=[("a", []), ("b", [(False, 0.0)])], ends=[1, 1], proportion=0.6, seed=0)
@example(rows=[("a", [(True, 0.0)] * 3), ("b", [(True, -0.0)] * 3)], ends=[0, 1], proportion=0.5, seed=0)
def test_any_split_keeps_what_select_tokens_keeps(folder, level, rows, ends, proportion, seed):
    check(table_of(rows), [min(end, len(rows)) for end in ends], folder, proportion, level, seed)


@pytest.mark.parametrize("level", LEVELS[:3])
@pytest.mark.parametrize("dtype", ["f2", "f8", "i1", "i8", "u8"])
def test_scores_of_any_dtype_are_ranked_in_their_own(folder, level, dtype):
    """Neighbours in the dtype, which float32 rounds together where the dtype is wider."""
    random = np.random.default_rng(1)
    steps = random.integers(0, 9, (12, 20))
    if np.dtype(dtype).kind == "f":
        scores = np.asarray(1, dtype) + steps * np.finfo(dtype).eps
        scores[::2] *= -1
    else:
        scores = np.iinfo(dtype).max - steps.astype(dtype)
        scores[::2] = np.iinfo(dtype).min + steps[::2].astype(dtype)
    rows = [("ab"[row % 2], [(True, score) for score in scores[row].astype(dtype)]) for row in range(12)]
    check(table_of(rows, dtype), [2, 7], folder, 0.55, level, 0)


def long_scores() -> dict[str, np.ndarray]:
    """Score columns whose keys share their first or their last bits."""
    random = np.random.default_rng(7)
    count = 70_000
    return {
        "normal": random.standard_normal(count),
        "all equal": np.full(count, 2.5),
        "two values": random.integers(0, 2, count) * 2.0 - 1,
        "signed zeros": np.where(random.integers(0, 2, count), 0.0, -0.0),
        "denormals": random.integers(-4000, 4000, count) * 2.0**-149,
    }


@pytest.mark.slow
@pytest.mark.parametrize("ends", [[], [0, 500, 500, 3000]], ids=["one row group", "several, some empty"])
@pytest.mark.parametrize("scores", long_scores().values(), ids=long_scores().keys())
def test_long_tables_of_adversarial_scores(folder, scores, ends):
    lengths = np.random.default_rng(2).multinomial(len(scores), np.full(4000, 1 / 4000))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    is_response = Ragged(np.random.default_rng(3).random(len(scores)) < 0.97, offsets)
    columns = {
        "input_ids": is_response.with_values(np.zeros(len(scores), np.int64)),
        "is_response": is_response,
        "score": is_response.with_values(scores.astype(np.float32)),
        "is_kept": is_response,
    }
    sources = tuple("rare" if row % 50 == 0 else "common" for row in range(4000))
    table = TokenTable(tuple(map(str, range(4000))), sources, columns, {"base": "m"})
    for level in LEVELS:
        check(table, ends, folder, 0.6, level, 5)


def small_table(*scores: float) -> TokenTable:
    return table_of([("a", [(False, 0.0), (True, score)]) for score in scores])


def test_a_table_written_whole_and_selected_into_itself(tmp_path):
    path = tmp_path / "scores.parquet"
    write_table(small_table(1, 3, 2), path)
    counts = select_table(path, path, proportion=0.7)
    assert counts == KeptCounts(Counter(a=3), Counter(a=2), emptied_rows=1, threshold=2.0)
    assert [row.tolist() for row in read_table(path)["is_kept"]] == [[False, False], [False, True], [False, True]]
    assert list(tmp_path.iterdir()) == [path]


def test_a_random_draw_needs_no_scores(tmp_path):
    table = small_table(1, 2, 3)
    columns = {name: column for name, column in table.columns.items() if name != "score"}
    write_table(TokenTable(table.ids, table.sources, columns), tmp_path / "a.parquet")
    for level in LEVELS[:3]:
        with pytest.raises(TableError, match=r"a\.parquet: this table has no column 'score'; it has input_ids"):
            select_table(tmp_path / "a.parquet", tmp_path / "new" / "b.parquet", proportion=0.7, level=level)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    counts = select_table(tmp_path / "a.parquet", tmp_path / "b.parquet", proportion=0.7, level="random", seed=1)
    assert (counts.kept_tokens.total(), counts.threshold) == (2, None)


@pytest.mark.parametrize("level", LEVELS[:3])
@pytest.mark.parametrize("found", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_number_are_refused_with_their_place(tmp_path, level, found):
    table = table_of(
        [
            ("a", [(False, 0.0), (True, 1.0)]),
            ("b", [(True, 1.0), (False, 0.0), (True, found), (True, 2.0)]),
            ("b", [(True, np.nan)]),
        ]
    )
    write_parts(table, [1, 2], tmp_path / "a.parquet")
    with pytest.raises(NonFiniteError) as caught:
        select_table(tmp_path / "a.parquet", tmp_path / "b.parquet", proportion=0.5, level=level)
    assert str(caught.value).startswith(
        f"{tmp_path / 'a.parquet'}: the score of row 1 ('b:1'), position 2 is {found}; "
        "2 of 5 response tokens have no finite score. Every response token needs a loss under every model used"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]
    select_table(tmp_path / "a.parquet", tmp_path / "b.parquet", proportion=0.5, level="random", seed=1)


def test_scores_that_are_no_real_numbers_are_refused(tmp_path):
    write_table(table_of([("a", [(True, True)])], bool), tmp_path / "a.parquet")
    with pytest.raises(TableError, match=r"a\.parquet: column 'score': scores must be real numbers, found bool"):
        select_table(tmp_path / "a.parquet", tmp_path / "b.parquet", proportion=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"proportion": 1.5}, r"must lie in \[0, 1\]"),
        ({"proportion": 0.5, "level": "best"}, "unknown selection level 'best'; known levels: global, sample"),
        ({"proportion": 0.5, "level": "random"}, "'random' needs a seed"),
    ],
)
def test_options_that_mean_nothing(tmp_path, options, message):
    write_table(small_table(1), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        select_table(tmp_path / "a.parquet", tmp_path / "b.parquet", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_a_table_that_is_written_meanwhile(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    write_table(small_table(1, 2), path)

    def cut_while_others_write(*arguments, **options):
        write_table(small_table(1, 2, 3), path)
        return find_cut(*arguments, **options)

    find_cut = module.find_cut
    monkeypatch.setattr(module, "find_cut", cut_while_others_write)
    with pytest.raises(TableError, match=r"a\.parquet: changed while its scores were read"):
        select_table(path, tmp_path / "b.parquet", proportion=0.5)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("level", LEVELS)
def test_an_output_that_cannot_be_written(tmp_path, level):
    write_table(small_table(1, 2), tmp_path / "a.parquet")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write"):
        select_table(tmp_path / "a.parquet", tmp_path / "file" / "b.parquet", proportion=0.5, level=level, seed=1)


MEMORY = """
import sys
import numpy as np, pyarrow as pa
from pathlib import Path
from tokenclean.ragged import Ragged
from tokenclean.token_table import open_table, TokenTable
from tokenclean.selection.select_table import select_table

folder, rows, row_tokens = Path(sys.argv[1]), 20, 400
random = np.random.default_rng(0)
offsets = np.arange(rows + 1) * row_tokens


def part(number):
    columns = {
        "input_ids": np.arange(offsets[-1]) % 7,
        "is_response": random.random(offsets[-1]) < 0.8,
        "score": random.standard_normal(offsets[-1], dtype=np.float32),
    }
    ids = tuple(f"{number}:{row}" for row in range(rows))
    sources = tuple("abc"[row % 3] for row in range(rows))
    return TokenTable(ids, sources, {name: Ragged(values, offsets) for name, values in columns.items()})


def measure(groups):
    with open_table(folder / f"{groups}.parquet", {}) as writer:
        for number in range(groups):
            writer.write(part(number))
            assert pa.total_allocated_bytes() < 2 * 2**20
    for level in ("global", "sample", "source", "random"):
        table, output = folder / f"{groups}.parquet", folder / "kept.parquet"
        select_table(table, output, proportion=0.6, level=level, seed=1)
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])


print(measure(10), measure(200))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_row_groups(tmp_path):
    """1.6 million tokens take 21 MiB in memory as one table; what grows a little is the sample of a cut."""
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    few_kib, many_kib = map(int, done.stdout.split())
    assert many_kib - few_kib < 12 * 1024
