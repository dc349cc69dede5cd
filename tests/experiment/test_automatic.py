"""``auto`` in whole runs on a tiny model: what it tries, what it takes, and what the run says of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_dry_run import done, planned
from test_runs import recipe_of

from tokenclean.cleaning.automatic import choose_proportion, choose_strategy
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.open_run import OpenRun, open_run
from tokenclean.cleaning.trainings import TrainingJob, Trainings
from tokenclean.cleaning.trial_budget import BUDGET
from tokenclean.experiment.demo import pool_path
from tokenclean.experiment.planning.dry_run import record_alone, training_cost
from tokenclean.experiment.run import RunResult, run
from tokenclean.observer import Observer
from tokenclean.selection import kept_count
from tokenclean.token_table import read_table

pytestmark = pytest.mark.usefixtures("one_thread")

PHRASE = "As the humble assistant of this house I am glad to help you with all that you want to know today."
SHORT = 700  # characters


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def characters(row: dict[str, Any]) -> int:
    return sum(len(turn["content"]) for turn in row["messages"])


def short_rows() -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in pool_path().read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if characters(row) < SHORT]


def with_phrase(rows: list[dict[str, Any]], every: int) -> list[dict[str, Any]]:
    def planted(row: dict[str, Any]) -> dict[str, Any]:
        *turns, answer = row["messages"]
        return {**row, "messages": [*turns, {**answer, "content": f"{PHRASE} {answer['content']}"}]}

    return [planted(row) if number % every == 0 else row for number, row in enumerate(rows)]


def opened_run(pool: Path, model: Path, output: Path, /, **sections: dict[str, Any]) -> tuple[OpenRun, list[str]]:
    notes: list[str] = []
    sections = {
        "evaluation": {"controls": ["full_tokens"]},
        **sections,
        "cleaning": {"strategy": "auto", **sections.get("cleaning", {})},
        "pool": {"heldout": {"rows": 48, "max_share": 0.3}, **sections.get("pool", {})},
    }
    return open_run(recipe_of(pool, model, output, **sections), Observer(note=notes.append)), notes


@pytest.fixture(scope="module")
def clean(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """Auto and its control on rows in which nothing was planted."""
    folder = tmp_path_factory.mktemp("clean")
    opened, notes = opened_run(write(folder / "pool.jsonl", short_rows()[:180]), tiny_model_folder, folder)
    return opened, run(opened), notes


def result_json(result: RunResult) -> dict[str, Any]:
    return json.loads((result.folder / "result.json").read_text(encoding="utf-8"))


def test_the_rows_to_choose_by_are_reported_on_by_nothing(clean):
    opened, result, _ = clean
    data = opened.context.data
    choosing, reported, trained = (set(tokens.ids) for tokens in (data.choosing, data.heldout, data.tokens))
    assert (len(choosing), len(reported)) == (24, 24)
    assert not choosing & reported
    assert not trained & (choosing | reported)
    assert [row.id for row in data.heldout_pool] == list(data.heldout.ids)
    document = result_json(result)
    assert document["choosing_rows"] == list(data.choosing.ids)
    assert document["heldout_rows"] == list(data.heldout.ids)


def test_where_nothing_is_clearly_better_the_model_is_that_of_full_tokens(clean):
    _, result, notes = clean
    own, full = (next(o for o in result.results if o.strategy == name) for name in ("auto", "full_tokens"))
    choice = own.choice
    assert choice.trials
    assert not any(trial.is_clear for trial in choice.trials)
    assert choice.chosen == "full_tokens"
    assert own.model.identity == full.model.identity
    assert np.array_equal(own.kept.values, full.kept.values)
    against = next(m.against_full for m in result.measured if m.name == "auto")
    assert (against.difference, against.low, against.high) == (0, 0, 0)
    assert str(result.verdict).startswith(choice.sentence)
    assert choice.sentence in notes
    assert result_json(result)["choices"]["auto"]["sentence"] == choice.sentence
    [table] = [table for table in result.tables if table.title == "Trials of auto"]
    assert [row[0] for row in table.rows] == [trial.name for trial in choice.trials]
    assert table.note == choice.sentence


def test_a_second_run_computes_nothing_and_chooses_the_same(clean):
    opened, result, _ = clean
    again = run(open_run(opened.context.recipe))
    assert again.stages_made == 0
    assert again.own.choice == result.own.choice


@pytest.fixture(scope="module")
def planted(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A stock phrase before every second answer, and trusted rows without it."""
    folder, rows = tmp_path_factory.mktemp("planted"), short_rows()
    trusted = write(folder / "trusted.jsonl", rows[:44])
    pool = write(folder / "pool.jsonl", with_phrase(rows[44:264], every=2))
    sections = {"cleaning": {"trusted": str(trusted)}, "training": {"epochs": 4}}
    opened, notes = opened_run(pool, tiny_model_folder, folder, **sections)
    return opened, run(opened), notes


@pytest.mark.slow
def test_trusted_rows_show_that_a_stock_phrase_is_better_dropped(planted):
    opened, result, notes = planted
    context, own = opened.context, result.own
    assert own.choice.chosen == "repetition"
    assert own.choice.chosen_by == "trusted"
    repeated = context.noise.repetition.is_repeated.values
    assert repeated.any()
    assert np.array_equal(own.kept.values, context.tokens.is_response.values & ~repeated)
    assert own.model.training["selected_tokens"] == own.kept.values.sum()
    assert any(note.startswith("auto: trial of fixed_model") for note in notes)
    assert "auto chose repetition: it was better than full tokens" in str(result.verdict)


@pytest.mark.slow
def test_no_trial_has_seen_the_trusted_rows_by_which_is_chosen(planted):
    opened, _, _ = planted
    data = opened.context.data
    assert len(data.choosing) == len(data.reference_rows) == 22
    assert sorted([*data.choosing.ids, *(data.tokens.ids[row] for row in data.reference_rows)]) == sorted(
        data.tokens.ids[row] for row in data.trusted
    )
    assert len(data.heldout) == 48  # all of them are reported on
    watched = WatchedTrainings(opened.context.trainings)
    choose_strategy(replace(opened.context, trainings=watched))
    trained = [set(job.tokens.ids) for job in watched.jobs if job.name.startswith("trial-")]
    assert len(trained) == 5
    assert not any(ids & set(data.choosing.ids) for ids in trained)
    rows = [job.tokens.ids for job in watched.jobs if job.name != "trial-reference"]
    assert len(set(rows)) == 1  # every trial on the same rows


@dataclass
class WatchedTrainings:
    """Real trainings; ``jobs``: those asked for. The one after ``most`` is stopped."""

    trainings: Trainings
    most: int | None = None
    jobs: list[TrainingJob] = field(default_factory=list)

    def train(self, job: TrainingJob) -> Model:
        if len(self.jobs) == self.most:
            raise KeyboardInterrupt
        self.jobs.append(job)
        return self.trainings.train(job)

    def noise_rates(self, job: TrainingJob, model: Model) -> np.ndarray:
        return self.trainings.noise_rates(job, model)


@pytest.mark.slow
def test_a_run_that_was_stopped_between_trials_goes_on_with_the_next(clean, tmp_path):
    opened, result, _ = clean
    recipe = opened.context.recipe.model_copy(update={"output": str(tmp_path)})
    first = open_run(recipe)
    with pytest.raises(KeyboardInterrupt):
        choose_strategy(replace(first.context, trainings=WatchedTrainings(first.context.trainings, most=2)))
    trials = [name for name in first.stages.computed if name.startswith("training-")]
    assert len(trials) == 2
    second = open_run(recipe)
    choice = choose_strategy(second.context)
    assert choice == result.own.choice
    assert set(trials) <= set(second.stages.reused)
    assert len([name for name in second.stages.computed if name.startswith("training-")]) == len(choice.trials) - 1


@pytest.mark.slow
def test_a_plan_records_the_trials_of_a_run_that_tries_all(tiny_model_folder, tmp_path):
    """What is chosen is not known beforehand: the plan takes what costs most."""
    pool = write(tmp_path / "pool.jsonl", with_phrase(short_rows()[:180], every=2))
    opened, _ = opened_run(pool, tiny_model_folder, tmp_path, evaluation={"controls": []})
    recipe = opened.context.recipe
    in_plan, in_run = planned(recipe), done(recipe)

    def trials(recorded: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return [item for item in recorded if "trial-" in str(item) or "D" in item[1]]

    assert trials(in_plan) == trials(in_run)
    assert len([item for item in trials(in_plan) if item[0] == "train"]) == 4
    assert [len(item[2]) for item in in_plan if item[0] == "train"] == [
        len(item[2]) for item in in_run if item[0] == "train"
    ]


@pytest.mark.parametrize("trusted", [0, 30, 44])
@pytest.mark.parametrize(("rows", "heldout", "epochs"), [(90, 50, 1), (150, 48, 1), (317, 150, 3), (200, 60, 2)])
def test_the_plan_stays_within_the_budget(tiny_model_folder, tmp_path, rows, heldout, epochs, trusted):
    some = short_rows()
    pool = write(tmp_path / "pool.jsonl", with_phrase(some[44 : 44 + rows], every=2))
    sections: dict[str, Any] = {
        "pool": {"heldout": {"rows": heldout, "max_share": 0.6}},
        "training": {"epochs": epochs},
    }
    if trusted:
        sections["cleaning"] = {"trusted": str(write(tmp_path / "trusted.jsonl", some[:trusted]))}
    opened, _ = opened_run(pool, tiny_model_folder, tmp_path, **sections)
    data = opened.context.data
    auto, full = (training_cost(record_alone(data, name, "cpu"), data.recipe) for name in ("auto", "full_tokens"))
    assert 1 <= auto / full <= BUDGET
    assert any("trial-full_tokens" in str(item) for item in record_alone(data, "auto", "cpu")) or auto < 1.6 * full


@pytest.mark.parametrize(
    ("trusted", "reason"), [(0, "39 held-out rows are too few"), (19, "19 trusted rows are too few")]
)
def test_too_few_rows_to_choose_by_are_said_and_nothing_is_split(tiny_model_folder, tmp_path, trusted, reason):
    some = short_rows()
    pool = write(tmp_path / "pool.jsonl", some[44:200])
    sections: dict[str, Any] = {"pool": {"heldout": {"rows": 39, "max_share": 0.6}}}
    if trusted:
        sections["cleaning"] = {"trusted": str(write(tmp_path / "trusted.jsonl", some[:trusted]))}
    opened, _ = opened_run(pool, tiny_model_folder, tmp_path, **sections)
    choice = choose_strategy(opened.context)
    assert choice.chosen == "full_tokens"
    assert reason in choice.sentence
    assert len(opened.context.data.heldout) == 39
    assert not opened.stages.computed


def test_a_recipe_that_does_not_choose_splits_nothing(tiny_model_folder, tmp_path):
    pool = write(tmp_path / "pool.jsonl", short_rows()[:180])
    opened, _ = opened_run(pool, tiny_model_folder, tmp_path, cleaning={"strategy": "noise_mixture"})
    assert opened.context.data.choosing is None
    assert len(opened.context.data.heldout) == 48
    controls = {"controls": ["auto"]}
    beside, _ = opened_run(pool, tiny_model_folder, tmp_path, cleaning={"strategy": "random"}, evaluation=controls)
    assert len(beside.context.data.heldout) == len(beside.context.data.choosing) == 24


@pytest.fixture(scope="module")
def shares(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """A proportion that is chosen, for fixed_model and the controls that rank."""
    folder = tmp_path_factory.mktemp("shares")
    cleaning = {"strategy": "fixed_model", "proportion": "auto", "splits": 5}
    controls = {"controls": ["full_tokens", "random"]}
    pool = write(folder / "pool.jsonl", sorted(short_rows(), key=characters)[:250])
    opened, notes = opened_run(pool, tiny_model_folder, folder, cleaning=cleaning, evaluation=controls)
    return opened, run(opened), notes


def test_a_proportion_is_chosen_once_by_the_same_rule(shares):
    opened, result, notes = shares
    choice, data = result.own.choice, opened.context.data
    clear = [trial for trial in choice.trials if trial.is_clear]
    best = min(clear, key=lambda trial: trial.difference).name if clear else "full_tokens"
    assert [trial.name for trial in choice.trials] == ["proportion 0.85", "proportion 0.6"]
    assert choice.chosen == best
    assert choice.proportion == {"full_tokens": 1.0, "proportion 0.85": 0.85, "proportion 0.6": 0.6}[best]
    assert len(data.choosing) == len(data.heldout) == 24
    total = int(data.tokens.is_response.values.sum())
    for name in ("fixed_model", "random"):
        kept = next(o.kept for o in result.results if o.strategy == name)
        assert kept.values.sum() == kept_count(total, choice.proportion)
    assert notes.count(choice.sentence) == 1
    assert [table.title for table in result.tables].count("Trials of auto") == 1
    assert str(result.verdict).startswith(choice.sentence)
    table = read_table(result.folder / "fixed_model" / "kept.parquet")
    assert table.metadata["selection"]["proportion"] == choice.proportion


def test_no_trial_of_a_proportion_trains_on_the_rows_of_the_warm_up(shares):
    opened, _, _ = shares
    context = opened.context
    watched = WatchedTrainings(context.trainings)
    choose_proportion(replace(context, trainings=watched, choices={}))
    warmup = {context.tokens.ids[row] for row in context.data.splits[0]}
    trials = [set(job.tokens.ids) for job in watched.jobs if job.name.startswith("trial-")]
    assert len(trials) == 3
    assert not any(rows & warmup for rows in trials)
    assert {job.name for job in watched.jobs} == {"warm-up", "trial-full_tokens", "trial-0.85", "trial-0.6"}


@pytest.mark.parametrize("strategy", ["fixed_model", "rho", "self_evolving"])
@pytest.mark.parametrize(("trusted", "epochs"), [(0, 1), (0, 2), (30, 1), (44, 1)])
def test_the_plan_of_a_chosen_proportion_stays_within_the_budget(
    tiny_model_folder, tmp_path, strategy, trusted, epochs
):
    some = short_rows()
    pool = write(tmp_path / "pool.jsonl", some[44:300])
    cleaning: dict[str, Any] = {"strategy": strategy, "proportion": "auto", "splits": 5}
    if trusted:
        cleaning["trusted"] = str(write(tmp_path / "trusted.jsonl", some[:trusted]))
    opened, _ = opened_run(pool, tiny_model_folder, tmp_path, cleaning=cleaning, training={"epochs": epochs})
    data = opened.context.data
    recorded = record_alone(data, strategy, "cpu")
    full = training_cost(record_alone(data, "full_tokens", "cpu"), data.recipe)
    assert training_cost(recorded, data.recipe) <= BUDGET * full
    assert any("trial-" in str(item) for item in recorded) == (trusted != 30)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "trials"), [("fixed_model", 3), ("self_evolving", 2)])
def test_a_plan_of_a_chosen_proportion_records_what_the_run_does(tiny_model_folder, tmp_path, strategy, trials):
    """How many tokens are kept changes no pass and no row of a training here: every row keeps some. The checks of
    ``self_evolving``, one a split, leave no room in the budget for a third trial."""
    pool = write(tmp_path / "pool.jsonl", short_rows()[:250])
    cleaning = {"strategy": strategy, "proportion": "auto", "splits": 5}
    opened, _ = opened_run(pool, tiny_model_folder, tmp_path, cleaning=cleaning, evaluation={"controls": []})
    recipe = opened.context.recipe
    recorded = planned(recipe)
    assert recorded == done(recipe)
    assert len([item for item in recorded if item[0] == "train" and item[1].startswith("trial-")]) == trials
