"""A pass over a pool in stages: the same bits however it was stopped, and nothing mixed, lost or computed twice."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from pool_passes import CHARACTERS, POLICY, ROWS, TULU, save_reference

from tokenclean.errors import PolicyMismatchError, PoolError, RunFolderError
from tokenclean.executors import TorchrunExecutor
from tokenclean.models.causal_lm import CausalLM
from tokenclean.models.loading import model_cache as resident
from tokenclean.models.loading.load import load_model, resolve_source
from tokenclean.models.loading.model_cache import ModelCache
from tokenclean.observer import Observer
from tokenclean.pool import count_characters, load_pool, shard_stream, survey_pool
from tokenclean.processes import Processes
from tokenclean.recipe import TokensSettings, source_from
from tokenclean.scoring import model_losses, pool_pass, stored_tokens
from tokenclean.scoring.model_losses import ScoringPolicy
from tokenclean.scoring.pool_pass import PoolToScore, score_pool
from tokenclean.scoring.scorer import FURTHER_COLUMNS, Scorer
from tokenclean.scoring.stored_tokens import TokenShards, tokenizer_fingerprint
from tokenclean.store import Store
from tokenclean.token_table import iter_table, read_metadata, read_table
from tokenclean.tokens import tokenize_pool


@pytest.fixture
def no_model(monkeypatch):
    """A function from whose call on no model may be used."""

    def refuse(self, source):
        raise AssertionError(f"{source} was loaded")

    return lambda: monkeypatch.setattr(ModelCache, "using", refuse)


def test_every_shard_has_the_losses_of_its_rows_alone(passes):
    outcome = passes.run(policy=ScoringPolicy("exact", 512, FURTHER_COLUMNS))
    table = read_table(passes.folder / "s.parquet")
    pool = load_pool(passes.pool)
    assert table.ids == tuple(row.id for row in pool)
    shards = list(shard_stream(pool, CHARACTERS))
    assert len(shards) > 2
    columns: dict[str, list[np.ndarray]] = {}
    for model, name in ((passes.base, "base"), (passes.reference, "reference")):
        scorer = Scorer(load_model(str(model)), pack_tokens=512, columns=FURTHER_COLUMNS)
        for shard in shards:
            for column, values in scorer.score(tokenize_pool(shard, passes.tokenizer)).items():
                columns.setdefault(f"{name}_{column}", []).append(values.values)
    expected = {name: np.concatenate(parts) for name, parts in columns.items()}
    expected["score"] = expected["base_loss"] - expected["reference_loss"]
    assert [*table.columns] == [
        *("input_ids", "is_response", "base_loss", "reference_loss", "score"),
        *("base_entropy", "base_is_top1", "base_probability", "base_collision"),
        *("reference_entropy", "reference_is_top1", "reference_probability", "reference_collision"),
    ]
    for name, values in expected.items():
        assert table[name].values.dtype == values.dtype, name
        np.testing.assert_array_equal(table[name].values, values, name)
    assert (outcome.made, outcome.found, outcome.intake.set_aside) == (2 * len(shards), 0, 0)
    assert (outcome.table.rows, outcome.table.response_tokens) == (len(pool), table["is_response"].values.sum())
    for name, mean in outcome.table.means.items():
        assert mean == pytest.approx(np.nanmean(table[name].values.astype(np.float64)))
    assert [*outcome.table.means] == ["base_loss", "reference_loss", "score"]
    assert [len(part) for part in iter_table(passes.folder / "s.parquet")] == [len(shard) for shard in shards]


def test_the_table_tells_how_it_was_made(passes):
    passes.run(tokenization=TokensSettings(max_length=999, targets="last_turn"))
    metadata = read_metadata(passes.folder / "s.parquet")
    assert metadata["policy"].pop("kernel")
    assert metadata["policy"] == {"precision": "exact", "pack_tokens": 512}
    assert metadata["models"]["base"]["name"] == str(passes.base)
    assert (metadata["template"], metadata["max_length"], metadata["targets"]) == ("tulu", 999, "last_turn")
    assert (metadata["precision"], metadata["pack_tokens"]) == ("exact", 512)


def test_what_is_whole_is_found_without_a_model(passes, no_model):
    passes.run(models=("base",))
    assert [done for done, _ in passes.reported] == sorted(done for done, _ in passes.reported)
    assert passes.reported[-1][0] == passes.reported[-1][1]
    first = passes.run()
    table = passes.table()
    passes.reported.clear()
    no_model()
    again = passes.run()
    assert (again.made, again.found, passes.reported) == (0, 2 * first.made, [])
    assert passes.table() == table


@pytest.mark.parametrize("moment", [0.0, 0.5, 0.9])
def test_a_stopped_pass_goes_on_and_ends_with_the_same_bits(passes, moment):
    """Stopped within a shard, by Ctrl-C; see test_score_command for kill -9."""
    whole = passes.run("whole")
    packs_left = int(moment * len(passes.reported))

    def stop(done: int, total: int) -> None:
        nonlocal packs_left
        packs_left -= 1
        if packs_left < 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        passes.run(progress=stop)
    assert [thread.name for thread in threading.enumerate() if thread.name == "read ahead"] == []
    kept = len(passes.stages("losses"))
    assert bool(kept) == bool(moment)
    assert kept < whole.made
    assert [path for path in (passes.folder / "s.shards" / "stages").iterdir() if path.name.startswith(".")] == []
    resumed = passes.run()
    assert (resumed.made, resumed.found) == (whole.made - kept, kept)
    assert passes.table() == passes.table("whole")


@pytest.mark.parametrize(
    ("kind", "file", "computed"), [("losses", "losses.parquet", 1), ("tokens", "tokens.parquet", 0)]
)
def test_a_damaged_shard_is_named_set_aside_and_made_again(passes, kind, file, computed):
    passes.run()
    table = passes.table()
    damaged = passes.stages(kind)[2] / file
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = passes.run()
    assert any(damaged.parent.name in text and file in text for text in passes.notes)
    assert (passes.folder / "s.shards" / "damaged" / damaged.parent.name).is_dir()
    assert again.made == computed
    assert passes.table() == table


def test_a_reference_on_the_base_leaves_the_bits_of_the_base_as_they_are(passes):
    passes.run("alone", models=("base",))
    passes.run("both")
    alone, both = (read_table(passes.folder / f"{name}.parquet") for name in ("alone", "both"))
    assert [*alone.columns] == ["input_ids", "is_response", "base_loss"]
    assert alone["base_loss"].values.tobytes() == both["base_loss"].values.tobytes()
    assert np.nanmax(np.abs(both["score"].values)) > 0.1


def test_losses_without_a_reference_are_shared_with_a_pass_that_has_one(passes):
    alone = passes.run(models=("base",))
    both = passes.run()
    assert (both.made, both.found) == (alone.made, alone.made)


@pytest.fixture
def loads(monkeypatch) -> tuple[list, list]:
    """The sources loaded, and the options of the scorers made."""
    loaded, scorers = [], []

    def load(source, **options):
        loaded.append(source)
        return load_model(source, **options)

    def scorer(*arguments, **options):
        scorers.append(options)
        return Scorer(*arguments, **options)

    monkeypatch.setattr(resident, "load_model", load)
    monkeypatch.setattr(model_losses, "Scorer", scorer)
    return loaded, scorers


def test_one_load_of_the_base_serves_the_adapter_on_it_too(passes, loads):
    passes.run()
    assert tuple(map(len, loads)) == (1, 2)
    assert [options["longest_row"] for options in loads[1]] == [2048, 2048]


def test_a_pass_that_goes_on_makes_its_scorers_as_the_whole_pass_did(passes, loads):
    """What is chosen by the length of rows and pass must not depend on what is left to do."""
    passes.run()
    for path in passes.stages("losses")[1:]:
        path.rename(passes.folder / path.name)
    passes.run()
    characters = sum(map(count_characters, load_pool(passes.pool)))
    assert [options["expected_tokens"] for options in loads[1]] == [characters // 4] * 4
    assert all(options == loads[1][0] for options in loads[1])


def test_a_reference_with_weights_of_its_own_is_scored_after_the_base(passes, tmp_path, loads):
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    other = AutoModelForCausalLM.from_config(load_model(str(passes.base)).config)
    passes.tokenizer.save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    passes.reference = tmp_path / "other"
    outcome = passes.run()
    assert tuple(map(len, loads)) == (2, 2)
    assert (outcome.made, outcome.found) == (2 * len(passes.stages("tokens")), 0)
    assert np.nanmax(np.abs(read_table(tmp_path / "s.parquet")["score"].values)) > 0.1
    assert passes.reported[-1][0] == passes.reported[-1][1]


def test_an_adapter_that_changes_its_base_gets_weights_of_its_own(passes, tmp_path, loads):
    passes.reference = save_reference(passes.base, tmp_path / "pissa", init_lora_weights="pissa")
    outcome = passes.run()
    assert outcome.made == 2 * len(passes.stages("tokens"))
    assert len(loads[0]) == 2


def test_losses_of_two_policies_are_never_subtracted(passes, monkeypatch):
    passes.run(models=("base",))
    monkeypatch.setattr(CausalLM, "kernel", property(lambda self: "another kernel"))
    with pytest.raises(PolicyMismatchError, match=r"differ in kernel \(base: .*; reference: another kernel\)"):
        passes.run()
    assert len(passes.stages("losses")) == len(passes.stages("tokens")) + 1  # noticed at the first shard
    assert [*read_table(passes.folder / "s.parquet").columns] == ["input_ids", "is_response", "base_loss"]


def test_shards_of_two_kernels_are_both_recorded(passes, monkeypatch):
    passes.run()
    kernel = read_metadata(passes.folder / "s.parquet")["policy"]["kernel"]
    for path in passes.stages("losses"):
        if json.loads((path / "manifest.json").read_text())["results"]["what"].startswith("shard 2 of"):
            path.rename(passes.folder / path.name)
    monkeypatch.setattr(CausalLM, "kernel", property(lambda self: "another kernel"))
    assert passes.run().made == 2
    assert read_metadata(passes.folder / "s.parquet")["policy"]["kernel"] == [kernel, "another kernel"]


@pytest.mark.parametrize("error", [ValueError("no such token"), PoolError("the file is gone"), MemoryError()])
def test_what_goes_wrong_in_the_tokenizing_thread_is_raised_as_it_is(passes, monkeypatch, error):
    calls = []

    def tokenize(rows, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise error
        return tokenize_pool(rows, *arguments, **options)

    monkeypatch.setattr(stored_tokens, "tokenize_pool", tokenize)
    with pytest.raises(type(error)) as raised:
        passes.run()
    assert raised.value is error
    assert len(calls) == 3
    assert len(passes.stages("tokens")) == 2
    monkeypatch.undo()
    assert passes.run().table.rows == ROWS  # the lock was given back


def pool_with_bad_rows(folder: Path, pool: Path, unusable: range, broken: range = range(0)) -> Path:
    """The pool with rows without any target, and with broken ones."""
    lines = pool.read_text().splitlines()
    for number in unusable:
        lines[number - 1] = json.dumps({"text": f"plain text {number} " * 20})
    for number in broken:
        lines[number - 1] = "broken"
    path = folder / "pool.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def listed(path: Path) -> list[tuple[int, str]]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [(row["line"], row["reason"].partition(" ")[0]) for row in rows]


def test_rows_without_a_target_are_counted_and_listed_behind_the_broken_ones(passes, tmp_path):
    passes.pool = pool_with_bad_rows(tmp_path, passes.pool, range(10, 12), range(14, 15))
    for _ in range(2):  # given again, the command lists no row twice
        outcome = passes.run(max_rejected_share=3 / ROWS)
        assert (outcome.intake.set_aside, outcome.table.rows) == (3, ROWS - 1)
        assert listed(tmp_path / "s.rejected.jsonl") == [(14, "broken"), (10, "plain"), (11, "plain")]


def test_too_many_rows_without_a_target_stop_the_pass_as_soon_as_they_are(passes, tmp_path):
    passes.pool = pool_with_bad_rows(tmp_path, passes.pool, range(1, 16), range(ROWS, ROWS + 1))
    first = len(next(shard_stream(load_pool(passes.pool), CHARACTERS)))
    assert 2 < first < 15
    with pytest.raises(PoolError) as stopped:
        passes.run(max_rejected_share=2 / ROWS)
    assert f"{first + 1} of {ROWS} rows cannot be used" in str(stopped.value)
    assert f"(first: {passes.pool}:{ROWS})" in str(stopped.value)
    expected = [(ROWS, "broken"), *((number, "plain") for number in range(1, first + 1))]
    assert listed(tmp_path / "s.rejected.jsonl") == expected
    assert len(passes.stages("tokens")) == 1
    assert not (tmp_path / "s.parquet").exists()


def test_a_pool_without_any_target_is_refused_whatever_the_share(passes, tmp_path):
    passes.pool = pool_with_bad_rows(tmp_path, passes.pool, range(1, ROWS + 1))
    with pytest.raises(PoolError, match=f"no usable row \\({ROWS} set aside"):
        passes.run(max_rejected_share=1.0)
    assert not (tmp_path / "s.parquet").exists()


def test_a_pool_that_changes_meanwhile_is_refused(passes, monkeypatch, tmp_path):
    copy = tmp_path / "pool.jsonl"
    copy.write_bytes(passes.pool.read_bytes())
    passes.pool = copy
    stream = pool_pass.stream_sources

    def grow(*arguments, **options):
        copy.write_bytes(copy.read_bytes() * 2)
        return stream(*arguments, **options)

    monkeypatch.setattr(pool_pass, "stream_sources", grow)
    with pytest.raises(PoolError, match="changed while it was scored"):
        passes.run()
    assert not (tmp_path / "s.parquet").exists()


def test_a_second_pass_into_the_same_folder_is_refused(passes):
    with Store(passes.folder / "s.shards").lock(), pytest.raises(RunFolderError, match="in use by process"):
        passes.run()


def test_the_ranks_together_make_what_one_makes(passes, monkeypatch):
    """Two processes one after the other, whose meetings are left out; see test_score_command for real ones."""
    whole = passes.run("whole")
    monkeypatch.setattr(Processes, "all_reduce_sum", lambda self, numbers: list(numbers))
    sources = (source_from({"path": str(passes.pool)}),)
    listing = passes.folder / "s.rejected.jsonl"
    survey = survey_pool(sources, CHARACTERS, listing, 0.05)
    made = []
    for rank in (1, 0):
        outcome = score_pool(
            PoolToScore(sources, survey, listing, CHARACTERS),
            {name: resolve_source(str(getattr(passes, name))) for name in ("base", "reference")},
            passes.tokenizer,
            passes.folder / "s.parquet",
            tokenization=TokensSettings(),
            policy=POLICY,
            executor=TorchrunExecutor(Processes(rank, 2, rank)),
            observer=Observer(),
        )
        assert (outcome is None) == (rank == 1)
        made.append(len(passes.stages("losses")) - sum(made))
    shards = whole.made // 2
    assert made == [2 * (shards // 2), 2 * (shards - shards // 2)]
    assert passes.table() == passes.table("whole")


def test_a_shard_that_a_rank_has_lost_is_told(passes, monkeypatch):
    monkeypatch.setattr(Processes, "all_reduce_sum", lambda self, numbers: list(numbers))
    monkeypatch.setattr(Processes, "owns", lambda self, number: number % 2 == 0)
    with pytest.raises(RunFolderError, match="tokens of shard 2: computed earlier, but now missing or damaged"):
        passes.run()


def test_another_tokenizer_or_chat_template_gives_another_key(passes):
    before = tokenizer_fingerprint(passes.tokenizer)
    passes.tokenizer.backend_tokenizer.enable_truncation(7)  # as a tokenizer saved after training has it
    assert tokenizer_fingerprint(passes.tokenizer) == before
    passes.tokenizer.chat_template = "{{ messages }}"
    assert tokenizer_fingerprint(passes.tokenizer) != before
    passes.tokenizer.chat_template = None
    assert tokenizer_fingerprint(passes.tokenizer) == before
    passes.tokenizer.add_tokens(["<new>"])
    assert tokenizer_fingerprint(passes.tokenizer) != before


def test_tokens_are_kept_by_rows_files_and_how_they_were_made(passes, tmp_path):
    def key(rows, how=TULU) -> dict:
        return dict(TokenShards(passes.tokenizer, how, Store(tmp_path / "run")).plan(0, 0, rows).inputs)

    rows = list(load_pool(passes.pool))
    keys = [
        key(rows),
        key(rows[:-1]),
        key(rows, TokensSettings(max_length=9)),
        key(rows, TokensSettings(targets="all")),
    ]
    moved = tmp_path / passes.pool.name
    moved.write_bytes(passes.pool.read_bytes())
    keys.append(key(list(load_pool(moved))))
    assert all(first != second for i, first in enumerate(keys) for second in keys[:i])
    assert keys[0] == key(list(load_pool(passes.pool)))
