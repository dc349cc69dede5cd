"""Self-evolving cleaning round by round on a tiny model: what is recorded, the control beside it, stopping early."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from test_runs import recipe_of as run_recipe

from tokenclean.cleaning import StrategyResult, run_strategy, trainings
from tokenclean.cleaning.open_run import open_run
from tokenclean.cleaning.round_records import Round, reaching
from tokenclean.experiment.planning.plan import plan
from tokenclean.experiment.round_tables import RoundByRound, measure_rounds, rounds_document, rounds_table
from tokenclean.experiment.run import RunResult, run
from tokenclean.observer import Observer
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe
from tokenclean.selection import kept_count
from tokenclean.store import array_hash
from tokenclean.token_table import read_table

CONTROLS = ("full_tokens", "full_tokens_from_warmup")
MODELS = ("warm-up", "reference-1", "reference-2", "reference-3")


@pytest.fixture(scope="module")
def pool(small_pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small pool, its rows from two sources by turns."""
    rows = [json.loads(line) for line in small_pool.read_text(encoding="utf-8").splitlines()]
    lines = [json.dumps({**row, "source": ("even", "odd")[number % 2]}) for number, row in enumerate(rows)]
    path = tmp_path_factory.mktemp("pools") / "two_sources.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def recipe_of(pool: Path, model: Path, output: Path, controls: tuple[str, ...] = CONTROLS, **cleaning: str) -> Recipe:
    return run_recipe(pool, model, output, cleaning={"splits": 4, **cleaning}, evaluation={"controls": list(controls)})


def self_evolving_of(result: RunResult) -> StrategyResult:
    return next(o for o in result.results if o.strategy == "self_evolving")


def lines_of(result: RunResult) -> dict[str, dict]:
    written = json.loads((result.folder / "result.json").read_text())["rounds"]
    return {line["model"]: line for line in written["lines"]}


@pytest.fixture(scope="module", params=["global", "source"])
def finished(request, pool: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    recipe = recipe_of(pool, tiny_model_folder, tmp_path_factory.mktemp("runs"), level=request.param)
    opened = open_run(recipe)
    return opened, run(opened)


# --- records -----------------------------------------------------------------------------------------------------


def test_every_round_is_recorded_with_what_it_kept(finished):
    opened, result = finished
    outcome = self_evolving_of(result)
    records = outcome.round_records
    assert tuple(r.model.name for r in records) == MODELS
    assert [r.split for r in records] == [0, 1, 2, 3]
    assert [r.reference and r.reference.name for r in records] == [None, *MODELS[:-1]]
    assert not any(r.is_rolled_back for r in records)
    assert records[0].selection.threshold is None
    for record, rows in zip(records, opened.context.data.splits, strict=True):
        kept, labels = outcome.kept.take(rows), opened.context.tokens.is_response.take(rows)
        scores = outcome.scores.take(rows)
        assert record.selection.kept_share == kept.values.sum() / labels.values.sum()
        if record.split > 0:
            assert record.selection.threshold == scores.values[kept.values].min()
            assert scores.values[kept.values].max() > record.selection.threshold
        for source in ("even", "odd"):
            own = [n for n, row in enumerate(rows) if opened.context.tokens.sources[row] == source]
            share = sum(kept[n].sum() for n in own) / sum(labels[n].sum() for n in own)
            assert record.selection.source_shares[source] == share
            if opened.context.recipe.cleaning.level == "source" and record.split > 0:
                lowest = min(scores[n][kept[n]].min() for n in own if kept[n].any())
                assert record.selection.source_thresholds[source] == lowest
    if opened.context.recipe.cleaning.level == "global":
        assert all(r.selection.source_thresholds == {} for r in records)


def test_losses_are_means_over_the_tokens_that_the_first_selection_keeps_and_drops(finished):
    opened, result = finished
    first = self_evolving_of(result).round_records[1].selection
    base, warm = (opened.context.heldout_losses(m) for m in (opened.context.base, opened.context.warmup))
    keeps, drops = [], []
    for row, source in enumerate(opened.context.heldout.sources):
        threshold = first.source_thresholds[source] if first.source_thresholds else first.threshold
        for position in np.flatnonzero(opened.context.heldout.is_response[row]):
            is_kept = base[row][position] - warm[row][position] >= threshold
            (keeps if is_kept else drops).append(int(base.offsets[row]) + int(position))
    assert len(keeps) > 20
    assert len(drops) > 20
    models = {"base": opened.context.base} | {r.model.name: r.model for r in self_evolving_of(result).round_records}
    models |= {o.strategy: o.model for o in result.results if o.strategy in CONTROLS}
    lines = lines_of(result)
    assert list(lines) == ["base", *MODELS, *CONTROLS]
    for name, model in models.items():
        losses = opened.context.heldout_losses(model).values
        reported = lines[name]["heldout_nats"]
        expected = [np.nanmean(losses), np.nanmean(losses[keeps]), np.nanmean(losses[drops])]
        np.testing.assert_allclose(
            [reported[k] for k in ("all_tokens", "kept_first", "dropped_first")], expected, rtol=1e-5
        )
    written = json.loads((result.folder / "result.json").read_text())["rounds"]
    assert written["heldout_tokens"] == {"kept_first": len(keeps), "dropped_first": len(drops)}


def test_agreement_is_between_what_each_model_would_keep_of_the_held_out_tokens(finished):
    opened, result = finished
    reported = json.loads((result.folder / "result.json").read_text())["rounds"]["agreement"]
    assert reported["models"] == list(MODELS)
    base = opened.context.heldout_losses(opened.context.base).values
    places = np.flatnonzero(opened.context.heldout.is_response.values)
    count = kept_count(len(places), opened.context.recipe.cleaning.proportion)
    kept = []
    for record in self_evolving_of(result).round_records:
        scores = (base - opened.context.heldout_losses(record.model).values)[places]
        kept.append(set(sorted(range(len(places)), key=lambda i: (-scores[i], i))[:count]))
    expected = [[len(one & other) / len(one | other) for other in kept] for one in kept]
    np.testing.assert_allclose(reported["jaccard"], expected)


def test_the_result_tells_each_rounds_reference_threshold_and_shares(finished):
    _, result = finished
    lines = lines_of(result)
    assert set(lines["base"]) == {"model", "kept_share", "heldout_nats"}
    for record in self_evolving_of(result).round_records:
        line = lines[record.model.name]
        assert line["split"] == record.split
        assert line["reference"] == (record.reference and record.reference.name)
        assert line["threshold_nats"] == record.selection.threshold
        assert line["source_thresholds_nats"] == record.selection.source_thresholds
        assert line["kept_share"] == record.selection.kept_share
        assert line["source_kept_shares"] == record.selection.source_shares
        assert line["is_rolled_back"] is False


def test_the_table_has_a_line_a_model_and_stands_beside_the_others(finished):
    _, result = finished
    table = next(t for t in result.tables if t.title == "Self-evolving, round by round")
    assert table.to_markdown() in (result.folder / "table.md").read_text()
    assert table.columns == ("model", "split", "threshold", "kept", "even", "odd", "loss", "on kept", "on dropped")
    assert [row[0] for row in table.rows] == ["base", *MODELS, *CONTROLS]
    assert [row[1] for row in table.rows] == ["–", "D0", "D1", "D2", "D3", "–", "–"]
    assert [row[3] for row in table.rows][:2] == ["–", "100.0%"]
    assert all(row[3] == "100.0%" for row in table.rows[-2:])
    measured = {m.name: m for m in result.measured}
    losses = {row[0]: row[-3] for row in table.rows}
    assert losses["base"] == f"{measured['base'].loss:.4f}"
    assert losses["reference-3"] == f"{measured['self_evolving'].loss:.4f}"
    assert losses["full_tokens_from_warmup"] == f"{measured['full_tokens_from_warmup'].loss:.4f}"


def test_no_model_is_scored_twice_and_the_same_run_again_makes_nothing(finished):
    opened, result = finished
    assert len(opened.stages.computed) == len(set(opened.stages.computed))
    again = open_run(opened.context.recipe)
    second = run(again)
    assert again.stages.computed == []
    assert second.folder == result.folder
    assert second.tables == result.tables


def many_sources(rounds: RoundByRound, count: int) -> RoundByRound:
    """As if the pool had so many sources."""
    shares = {f"source {number}": 0.5 for number in range(count)}

    def widened(record: Round) -> Round:
        return replace(record, selection=replace(record.selection, source_shares=shares))

    lines = tuple(replace(line, round=line.round and widened(line.round)) for line in rounds.lines)
    return replace(rounds, lines=lines)


@pytest.mark.parametrize(("count", "shown"), [(1, 0), (2, 2), (4, 4), (5, 0)])
def test_sources_have_columns_where_there_are_two_to_four(finished, count, shown):
    opened, result = finished
    rounds = many_sources(measure_rounds(opened.context, result.results), count)
    table = rounds_table(rounds)
    assert sum(column.startswith("source ") for column in table.columns) == shown
    assert all(len(row) == len(table.columns) for row in table.rows)
    assert ("each source's" in table.note) is bool(shown)
    assert len(rounds_document(rounds)["lines"][1]["source_kept_shares"]) == count


def test_a_terminal_of_eighty_columns_shows_every_figure(finished):
    opened, result = finished
    tables = [result.tables[0], rounds_table(many_sources(measure_rounds(opened.context, result.results), 1))]
    for table in tables:
        stream = io.StringIO()
        Console(file=stream, width=80).print(table.to_rich())
        for row in table.rows:
            assert all(cell in stream.getvalue() for cell in row)


def test_without_self_evolving_there_are_no_rounds(pool, tiny_model_folder, tmp_path):
    recipe = recipe_of(pool, tiny_model_folder, tmp_path, controls=(), strategy="full_tokens")
    result = run(open_run(recipe))
    assert json.loads((result.folder / "result.json").read_text())["rounds"] is None
    assert "round by round" not in (result.folder / "table.md").read_text()


def test_what_reaches_a_threshold():
    scores = Ragged.from_rows([[np.nan, 0.5, 0.4], [0.5, 0.4, 0.1], [9.0, 0.5], [0.5, 0.7]], np.float32)
    is_response = scores.with_values(np.array([0, 1, 1, 1, 1, 1, 0, 1, 1, 1], dtype=bool))
    sources = ("a", "b", "none kept", "not in the split")
    reached = reaching(scores, is_response, sources, 0.5, {"a": 0.5, "b": float(np.float32(0.4)), "none kept": None})
    assert [row.tolist() for row in reached] == [[False, True, False], [True, True, False], [False] * 2, [True, True]]
    assert reaching(scores, is_response, sources, 0.6, {}).values.sum() == 1
    assert not reaching(scores, is_response, sources, None, {}).values.any()


# --- the control -------------------------------------------------------------------------------------------------


def test_the_control_goes_on_from_the_warm_up_with_the_rows_of_all_later_splits(finished):
    opened, result = finished
    outcome = next(o for o in result.results if o.strategy == "full_tokens_from_warmup")
    np.testing.assert_array_equal(outcome.kept.values, opened.context.tokens.is_response.values)
    assert outcome.rounds == (opened.context.warmup, outcome.model)
    inputs = json.loads((Path(outcome.model.source.adapter) / "manifest.json").read_text())["inputs"]
    assert inputs["start"] == opened.context.warmup.identity
    rows = np.concatenate(opened.context.data.splits[1:])
    assert sorted([*rows, *opened.context.data.splits[0]]) == list(range(len(opened.context.tokens)))
    ids = opened.context.tokens.input_ids.take(rows)
    assert inputs["input_ids"] == array_hash(ids.values, ids.offsets)
    weights = opened.context.tokens.is_response.take(rows).values.astype(np.float32)
    assert inputs["weights"] == array_hash(weights)
    assert outcome.model.training["trained_rows"] == len(rows)
    for name in ("warm-up", "model"):
        assert (result.folder / "full_tokens_from_warmup" / name / "adapter_config.json").is_file()


def test_the_control_alone_needs_the_warm_up_and_the_plan_counts_both(pool, tiny_model_folder, tmp_path):
    recipe = recipe_of(pool, tiny_model_folder, tmp_path, controls=(), strategy="full_tokens_from_warmup")
    opened = open_run(recipe)
    run(opened)
    planned = [step for step in plan(recipe, flop_per_second=1e9).steps if step.optimizer_steps]
    assert [step.name for step in planned] == ["train warm-up", "train full_tokens_from_warmup"]
    assert sum(name.startswith("training-") for name in opened.stages.computed) == 2
    assert planned[1].rows == len(opened.context.tokens) - len(opened.context.data.splits[0])


# --- stopping ----------------------------------------------------------------------------------------------------


def spoil_training(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the training with this number, from 0, take steps so large that the model is ruined."""
    train, calls = trainings.train, []

    def spoiled(source, ids, weights, settings, *args, **options):
        if len(calls) == number:
            settings = settings.model_copy(update={"learning_rate": 1.0})
        calls.append(number)
        return train(source, ids, weights, settings, *args, **options)

    monkeypatch.setattr(trainings, "train", spoiled)


@pytest.mark.parametrize("worse", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_a_round_that_raises_the_held_out_loss_is_rolled_back(pool, tiny_model_folder, tmp_path, monkeypatch, worse):
    spoil_training(monkeypatch, worse)
    notes: list[str] = []
    recipe = recipe_of(pool, tiny_model_folder, tmp_path, controls=(), stop_when="held_out_loss_rises")
    opened = open_run(recipe, Observer(note=notes.append))
    result = run(opened)
    outcome = self_evolving_of(result)
    best, bad = MODELS[worse - 1], MODELS[worse]
    assert outcome.model.name == best
    assert tuple(m.name for m in outcome.rounds) == MODELS[:worse]
    assert tuple(r.model.name for r in outcome.round_records) == MODELS[: worse + 1]
    assert [r.is_rolled_back for r in outcome.round_records] == [False] * worse + [True]
    losses = {r.model.name: r.heldout.all_tokens for r in outcome.round_records}
    assert losses[bad] > losses[best] == min(losses.values())

    for number, rows in enumerate(opened.context.data.splits):
        assert outcome.kept.take(rows).values.any() == (number < worse)
        assert np.isfinite(outcome.scores.take(rows).values).any() == (1 <= number <= worse)
    table = read_table(result.folder / "self_evolving" / "kept.parquet")
    np.testing.assert_array_equal(table["is_kept"].values, outcome.kept.values)
    assert outcome.round_records[-1].selection.kept_share > 0.5

    (reported,) = [note for note in notes if "rolled back" in note]
    assert reported.startswith(f"{bad} is rolled back and self-evolving stops with {best} as its output")
    assert f"from {losses[best]:.4f} to {losses[bad]:.4f}" in reported
    shown = next(t for t in result.tables if "round by round" in t.title)
    assert [row[0] for row in shown.rows] == ["base", *MODELS[:worse], f"{bad} rolled back"]
    assert f"{bad} is not part of the output" in shown.note
    lines = lines_of(result)
    assert [name for name, line in lines.items() if line.get("is_rolled_back")] == [bad]
    assert result.measured[-1].loss == pytest.approx(losses[best])
    assert [(m.name, m.reference) for m in result.measured] == [
        *[("base", ""), *((f"  {name}", "") for name in MODELS[: worse - 1]), ("self_evolving", best)]
    ]
    table = next(t for t in result.tables if t.title.startswith("Held-out loss"))
    assert table.rows[-1][0].startswith(f"self_evolving = {best}")
    assert len({row[1:] for row in table.rows}) == len(table.rows)

    folder = result.folder / "self_evolving"
    written = (folder / "model" / "adapter_model.safetensors").read_bytes()
    assert written == (Path(outcome.model.source.adapter) / "adapter_model.safetensors").read_bytes()
    assert not (folder / bad).exists()

    again = open_run(recipe)
    assert run(again).folder == result.folder
    assert again.stages.computed == []


def test_it_stops_at_the_first_rise_and_not_before(pool, tiny_model_folder, tmp_path):
    recipe = recipe_of(pool, tiny_model_folder, tmp_path, controls=())
    records = run_strategy(open_run(recipe).context, "self_evolving").round_records
    losses = [r.heldout.all_tokens for r in records]
    rises = [number for number in range(1, len(losses)) if losses[number] > losses[number - 1]]
    stopping = open_run(recipe_of(pool, tiny_model_folder, tmp_path, controls=(), stop_when="held_out_loss_rises"))
    outcome = run_strategy(stopping.context, "self_evolving")
    assert outcome.model.name == MODELS[rises[0] - 1 if rises else -1]
    assert stopping.stages.computed == []
