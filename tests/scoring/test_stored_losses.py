"""A pass in shards: what is whole is found again, what is missing or damaged is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from tokenclean.models.kernels.cpu import has_bf16_kernels
from tokenclean.models.loading.load import ModelSource, load_model, load_tokenizer
from tokenclean.pool import load_pool
from tokenclean.ragged import Ragged, offsets_of
from tokenclean.scoring import model_losses, token_losses
from tokenclean.scoring.model_losses import ScoringPolicy
from tokenclean.scoring.scorer import Scorer
from tokenclean.scoring.stored_losses import plan_shards, sharded_columns
from tokenclean.store import Stage, Store, array_hash
from tokenclean.tokens import TokenizedPool, tokenize_pool

SHARD_TOKENS = 1500


def pool_of(lengths: list[int]) -> TokenizedPool:
    """Rows of the given lengths, for planning only."""
    column = Ragged(np.zeros(sum(lengths), np.int64), offsets_of(lengths))
    labels = column.with_values(column.values.astype(bool))
    names = tuple(map(str, range(len(lengths))))
    is_truncated = np.zeros(len(lengths), bool)
    contents = ((),) * len(lengths)
    return TokenizedPool(column, labels, column, column, names, names, contents, is_truncated, ())


@given(lengths=st.lists(st.integers(0, 50), max_size=40), shard_tokens=st.integers(1, 120))
def test_shards_are_consecutive_full_and_none_is_too_large(lengths, shard_tokens):
    planned = plan_shards(pool_of(lengths), shard_tokens)
    np.testing.assert_array_equal(np.concatenate([np.empty(0, np.int64), *planned]), np.arange(len(lengths)))
    for number, rows in enumerate(planned):
        tokens = sum(lengths[row] for row in rows)
        assert len(rows) == 1 or tokens <= shard_tokens
        if number + 1 < len(planned):
            assert tokens + lengths[planned[number + 1][0]] > shard_tokens


@pytest.fixture(scope="module")
def tokens(small_pool: Path, tiny_model_folder: Path) -> TokenizedPool:
    return tokenize_pool(load_pool(small_pool), load_tokenizer(str(tiny_model_folder)))


class Pass:
    """Passes over one run folder, with counts of the shards computed and of the model's blocks entered and left."""

    def __init__(self, root: Path, model: Path, tokens: TokenizedPool) -> None:
        self.notes: list[str] = []
        self.store = Store(root, note=self.notes.append)
        self.folder, self.tokens, self.entered, self.left, self.computed = model, tokens, 0, 0, 0
        self.stages: list[Stage] = []
        self.inputs: list[Mapping[str, Any]] = []
        self.reported: list[tuple[int, int]] = []

    @cached_property
    def model(self) -> torch.nn.Module:
        return load_model(str(self.folder))

    @contextmanager
    def using(self, source: ModelSource) -> Iterator[torch.nn.Module]:
        self.entered += 1
        try:
            yield self.model
        finally:
            self.left += 1

    def run(self, identity: str = "tiny", stop_after: int | None = None, **options) -> Ragged:
        [losses] = self.run_all(identity, stop_after, **options)
        return losses

    def run_all(
        self,
        identity: str,
        stop_after: int | None = None,
        base: Mapping[str, object] | None = None,
        **options,
    ) -> list[Ragged]:
        def make_stage(inputs, make):
            if stop_after is not None and self.computed == stop_after:
                raise KeyboardInterrupt
            stage = self.store.stage("losses", 1, inputs, make)
            assert self.entered == self.left
            self.computed += not stage.was_reused
            self.stages.append(stage)
            self.inputs.append(inputs)
            return stage

        columns = sharded_columns(
            make_stage,
            self.using,
            ModelSource(str(self.folder)),
            self.tokens,
            {"model": identity},
            ScoringPolicy(**{"precision": "exact", "pack_tokens": 512, **options}),
            what="pool",
            shard_tokens=SHARD_TOKENS,
            progress=lambda done, total: self.reported.append((done, total)),
            base=base,
        )
        return [of_model["loss"] for of_model in columns]


@pytest.fixture
def one_pass(tmp_path: Path, tiny_model_folder: Path, tokens: TokenizedPool) -> Pass:
    return Pass(tmp_path / "run", tiny_model_folder, tokens)


@pytest.mark.usefixtures("one_thread")
def test_a_stopped_pass_goes_on_where_it_stopped_and_ends_with_the_same_bits(one_pass, tiny_model_folder, tokens):
    planned = plan_shards(tokens, SHARD_TOKENS)
    assert len(planned) > 4
    with pytest.raises(KeyboardInterrupt):
        one_pass.run(stop_after=3)
    assert (one_pass.entered, one_pass.left) == (3, 3)
    resumed = one_pass.run()
    assert one_pass.computed == one_pass.entered == one_pass.left == len(planned)
    model = load_model(str(tiny_model_folder))
    whole = [token_losses(model, tokens.take(rows), precision="exact", pack_tokens=512).values for rows in planned]
    np.testing.assert_array_equal(resumed.values, np.concatenate(whole))
    assert [done for done, _ in one_pass.reported] == sorted(done for done, _ in one_pass.reported)
    assert one_pass.reported[-1] == (len(tokens.input_ids.values), len(tokens.input_ids.values))


@pytest.mark.usefixtures("one_thread")
def test_what_is_whole_is_found_without_asking_for_the_model_and_what_is_damaged_is_named(one_pass, tmp_path, tokens):
    first = one_pass.run()
    one_pass.entered = one_pass.left = one_pass.computed = 0
    one_pass.reported.clear()
    np.testing.assert_array_equal(one_pass.run().values, first.values)
    assert (one_pass.entered, one_pass.computed, one_pass.reported) == (0, 0, [])
    damaged = sorted((tmp_path / "run" / "stages").glob("losses-*/losses.parquet"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = Pass(tmp_path / "run", one_pass.folder, tokens)
    np.testing.assert_array_equal(again.run().values, first.values)
    assert again.computed == 1
    assert any("losses.parquet" in note and damaged.parent.name in note for note in again.notes)


@pytest.mark.usefixtures("one_thread")
def test_one_scorer_made_for_the_longest_row_serves_all_shards_and_its_policy_is_told(one_pass, tokens, monkeypatch):
    made: list[dict[str, Any]] = []

    class CountedScorer(Scorer):
        def __init__(self, model, **options) -> None:
            super().__init__(model, **options)
            made.append(options)

    monkeypatch.setattr(model_losses, "Scorer", CountedScorer)
    one_pass.run(precision="safe")
    longest = max(np.flatnonzero(labels).max(initial=-1) + 1 for labels in tokens.is_response)
    reported = {"longest_row": longest, "expected_tokens": len(tokens.input_ids.values)}
    assert made == [{"precision": "safe", "pack_tokens": 512, "columns": (), "compile": "auto", **reported}]
    policies = [stage.manifest["results"]["policy"] for stage in one_pass.stages]
    assert policies == [Scorer(one_pass.model, precision="safe", pack_tokens=512).policy] * len(
        plan_shards(tokens, SHARD_TOKENS)
    )


@pytest.mark.usefixtures("one_thread")
def test_a_shard_is_known_by_tokens_model_and_options_alone(one_pass, tokens):
    one_pass.run()
    for rows, inputs in zip(plan_shards(tokens, SHARD_TOKENS), one_pass.inputs, strict=True):
        shard = tokens.take(rows)
        content = array_hash(shard.input_ids.values, shard.input_ids.offsets, shard.is_response.values)
        assert inputs == {"tokens": content, "model": "tiny", "precision": "exact", "pack_tokens": 512}


@pytest.mark.usefixtures("one_thread")
def test_other_weights_and_other_policies_share_no_shard(one_pass, tokens):
    count = len(plan_shards(tokens, SHARD_TOKENS))
    one_pass.run()
    one_pass.run(identity="other")
    one_pass.run(pack_tokens=256)
    one_pass.run(precision="fast")
    assert one_pass.computed == 4 * count


@pytest.mark.skipif(not has_bf16_kernels(), reason="this processor has no bf16 instructions")
def test_an_adapters_pairs_hold_the_losses_of_its_base_too(tmp_path, tiny_model_folder, tokens):
    count = len(plan_shards(tokens, SHARD_TOKENS))
    of_base = Pass(tmp_path / "base", tiny_model_folder, tokens).run(precision="safe")
    both = adapter_pass(tmp_path / "run", tiny_model_folder, tokens)
    base, own = both.run_all("adapter", base={"model": "tiny"}, precision="safe")
    np.testing.assert_array_equal(base.values, of_base.values)
    assert (both.entered, both.computed) == (count, count)
    assert both.stages[0].manifest["results"]["policy"]["passes_of_pair"] == 1
    again = both.run_all("adapter", base={"model": "tiny"}, precision="safe")
    assert all(np.array_equal(a.values, b.values, equal_nan=True) for a, b in zip(again, (base, own), strict=True))
    assert (both.entered, both.computed) == (count, count)
    alone = both.run("adapter", precision="safe")  # other rounding
    assert 0 < float(np.nanmax(np.abs(alone.values - own.values))) < 0.1


def test_an_adapter_that_is_no_pair_takes_two_passes(tmp_path, tiny_model_folder, tokens):
    one = adapter_pass(tmp_path / "run", tiny_model_folder, tokens, use_dora=True)
    base, own = one.run_all("adapter", base={"model": "tiny"}, precision="safe")
    assert one.stages[0].manifest["results"]["policy"]["passes_of_pair"] == 2
    np.testing.assert_array_equal(one.run("adapter", precision="safe").values, own.values)
    of_base = Pass(tmp_path / "base", tiny_model_folder, tokens).run(precision="safe")
    np.testing.assert_array_equal(base.values, of_base.values)


def adapter_pass(root: Path, model: Path, tokens: TokenizedPool, **options) -> Pass:
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, **options)
    made = Pass(root, model, tokens)
    vars(made)["model"] = get_peft_model(load_model(str(model)), lora)  # pyright: ignore[reportArgumentType]
    return made
