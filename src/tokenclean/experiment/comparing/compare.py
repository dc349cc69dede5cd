"""Strategies against each other: the paper's Table 1 under several seeds, on benchmarks and on held-out rows.

Every strategy runs for itself and finds what another has made already: tokens, base losses, the warm-up, and what
trains on the same tokens. The seeds share pool and held-out rows, so that all models answer the same questions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tokenclean.cleaning import run_strategy
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.open_run import OpenRun
from tokenclean.errors import RecipeError, RunError
from tokenclean.evaluation.comparison import Comparison, Difference
from tokenclean.evaluation.comparison import compare as compare_scores
from tokenclean.evaluation.paired_scores import ItemScores
from tokenclean.evaluation.significance import points, verdict
from tokenclean.evaluation.task_data import LoadedBenchmark, load_benchmarks
from tokenclean.evaluation.tasks import benchmark_named
from tokenclean.experiment.comparing.judge_losses import (
    heldout_table,
    judged_tokens,
    mean_over_seeds,
    measure_heldout,
    source_gains_table,
)
from tokenclean.experiment.comparing.sample_answers import answers, answers_markdown, heldout_prompts
from tokenclean.experiment.comparing.table_1 import AVERAGE, beside_paper, table_1, table_1_values
from tokenclean.experiment.comparing.task_scores import BenchmarkScores, benchmark_scores, gather_scores, identities
from tokenclean.experiment.preferences import ModelPreference, compare_preferences, margins_of_models, preference_table
from tokenclean.experiment.run_files import TABLES
from tokenclean.experiment.verdict import preference_sentence
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe, find_strategy
from tokenclean.recipe.strategies import STRATEGY_NAMES
from tokenclean.report.tables import Table
from tokenclean.store import write_json

BASE = "base"
"""What tables call the strategy ``none``."""

WARM_UP, SELF_EVOLVING = "warm-up", "self_evolving"


@dataclass(frozen=True)
class CompareResult:
    """``tables``: to be shown, Table 1 first; ``sentences``: what is real and what would settle the rest, then what was
    shared; ``failed``: strategy -> why it has no line; ``folder``: all of it as files."""

    folder: Path
    comparison: Comparison
    tables: tuple[Table, ...]
    sentences: tuple[str, ...]
    failed: Mapping[str, str]


@dataclass
class _Run:
    """What one seed gave. ``models``: line of the table -> model; ``used``: strategy -> names of its stages."""

    opened: OpenRun
    models: dict[str, Model] = field(default_factory=dict)
    used: dict[str, set[str]] = field(default_factory=dict)
    scores: dict[str, dict[str, BenchmarkScores]] = field(default_factory=dict)
    losses: dict[str, Ragged] = field(default_factory=dict)
    margins: dict[str, np.ndarray] = field(default_factory=dict)


def compare(
    recipe: Recipe,
    strategies: Sequence[str],
    seeds: Sequence[int],
    open_seed: Callable[[Recipe], OpenRun],
    *,
    control: str = "full_tokens",
    references: bool = False,
) -> CompareResult:
    """Train every strategy under every seed and evaluate the final models; the base has its line too.

    ``open_seed``: opens a recipe's pool on the run folder that all share. ``control``: the strategy that
    differences are taken from, or ``base``. ``references``: intermediate models have lines too. A strategy that fails
    under some seed is reported and left out.

    Raises RecipeError for an unknown strategy, a control that is not among them, or a seed given twice; RunError where
    the control fails; EvaluationError, before any model is loaded, where a benchmark's data cannot be had.
    """
    strategies = [strategy for strategy in strategies if strategy != "none"]  # the base, which has its line
    _check(recipe, strategies, seeds, control)
    failed: dict[str, str] = {}
    runs: dict[int, _Run] = {}
    loaded: list[LoadedBenchmark] = []
    for seed in seeds:
        of_seed = _recipe_of_seed(recipe, strategies, seed)
        run = runs[seed] = _Run(open_seed(of_seed))
        run.models[BASE] = run.opened.context.base
        if not loaded:
            loaded = load_benchmarks(recipe.evaluation, run.opened.context.data.tokenizer, recipe.tokens)
        for strategy in strategies:
            if strategy in failed:
                continue
            opened = run.opened.for_strategy()
            opened.observer.note(f"strategy {strategy}, seed {seed}")
            try:
                result = run_strategy(opened.context, strategy)
            except RunError as error:
                failed[strategy] = f"seed {seed}: {error}"
                run.opened.observer.note(f"{strategy} failed under seed {seed} and is left out: {error}")
                if strategy == control:
                    raise
                continue
            if references:
                run.models |= {m.name: m for m in result.rounds if m.key != result.model.key}
            run.models[strategy] = result.model
            run.used[strategy] = opened.stages.used
        run.opened.models.clear()
    lines = [
        name for name in runs[seeds[0]].models if name not in failed and all(name in r.models for r in runs.values())
    ]
    for run in runs.values():
        run.scores = {name: benchmark_scores(run.opened, run.models[name], loaded) for name in lines}
        run.losses = {name: run.opened.context.heldout_losses(run.models[name]) for name in lines}
        run.margins = margins_of_models(run.opened.context, {name: run.models[name] for name in lines})
        run.opened.models.clear()
    return _result(recipe, runs, lines, loaded, control, failed)


def _recipe_of_seed(recipe: Recipe, strategies: Sequence[str], seed: int) -> Recipe:
    """The recipe on the same rows under another seed, with the strategies compared as its own: where ``auto`` is among
    them, it needs rows to choose by."""
    pool = recipe.pool.model_copy(update={"seed": recipe.pool_seed})
    cleaning = recipe.cleaning.model_copy(update={"strategy": [*strategies, recipe.cleaning.strategy][0]})
    evaluation = recipe.evaluation.model_copy(update={"controls": tuple(strategies)})
    return recipe.model_copy(update={"seed": seed, "pool": pool, "cleaning": cleaning, "evaluation": evaluation})


def _check(recipe: Recipe, strategies: Sequence[str], seeds: Sequence[int], control: str) -> None:
    problems = []
    if recipe.cleaning.proportion == "auto":
        problems.append("cleaning.proportion: a comparison needs one number for all seeds; take what a run has chosen")
    for name in strategies:
        try:
            needs = find_strategy(name)
            if needs.needs_ratings and recipe.pool.curation is None:
                problems.append(f"--strategies: {name} needs the pool's ratings; name their file in pool.curation")
            if needs.needs_trusted and recipe.cleaning.trusted is None:
                problems.append(f"--strategies: {name} needs checked rows; name their file in cleaning.trusted")
        except ValueError as error:
            problems.append(f"--strategies: {error}")
    if control not in (BASE, *strategies):
        problems.append(f"--control: {control} is neither base nor among the strategies {', '.join(strategies)}")
    if not seeds or len(set(seeds)) < len(seeds):
        problems.append(f"--seeds: expected different numbers, found {', '.join(map(str, seeds)) or 'none'}")
    if problems:
        raise RecipeError(problems, "comparison")


def _result(
    recipe: Recipe,
    runs: Mapping[int, _Run],
    lines: Sequence[str],
    loaded: Sequence[LoadedBenchmark],
    control: str,
    failed: Mapping[str, str],
) -> CompareResult:
    first = next(iter(runs.values())).opened
    items = gather_scores({line: {seed: run.scores[line] for seed, run in runs.items()} for line in lines})
    comparison = compare_scores(items, control)
    said = verdict(comparison, STRATEGY_NAMES)
    losses = {line: mean_over_seeds([run.losses[line] for run in runs.values()]) for line in lines}
    measured = measure_heldout(losses, judged_tokens(first.context), control)
    preferences = _preferences(list(runs.values()), control)
    control_name = STRATEGY_NAMES.get(control, control)
    further = (
        preference_table(preferences, control_name, len(runs)) if preferences else None,
        trends_table(items) if {WARM_UP, SELF_EVOLVING} <= set(lines) else None,
        source_gains_table(losses, first.context.heldout.sources, BASE),
        beside_paper(comparison, recipe.model.base, recipe.cleaning.kept_proportion),
    )
    tables = (
        table_1(comparison),
        heldout_table(measured, control, len(runs)),
        *(table for table in further if table is not None),
    )
    prefers = (preference_sentence(p.name, control_name, p.change) for p in preferences if p.change is not None)
    sentences = (said.summary, *said.strategies.values(), *prefers, _shared(runs), _prefixes(runs))
    prompts = heldout_prompts(first)
    models = next(iter(runs.values())).models
    given = {STRATEGY_NAMES.get(line, line): answers(first, models[line], prompts) for line in lines}
    inputs = {
        "recipe": recipe.result_inputs(),
        "seeds": list(runs),
        "control": control,
        "models": {line: [run.models[line].identity for run in runs.values()] for line in lines},
        "benchmarks": identities(loaded),
        "failed": dict(failed),
        "preferences": [asdict(p) for p in preferences],
    }

    def make(folder: Path) -> dict[str, object]:
        (folder / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
        text = "\n".join([*(table.to_markdown() for table in tables), *(f"- {s}" for s in sentences)]) + "\n"
        (folder / "tables.md").write_text(text, encoding="utf-8")
        write_json(folder / TABLES, [table.to_document() for table in tables])
        (folder / "table_1.csv").write_text(tables[0].to_csv(), encoding="utf-8")
        (folder / "table_1.tex").write_text(tables[0].to_latex("tab:main"), encoding="utf-8")
        (folder / "heldout.tex").write_text(tables[1].to_latex("tab:heldout"), encoding="utf-8")
        (folder / "values.csv").write_text(table_1_values(comparison), encoding="utf-8")
        (folder / "answers.md").write_text(answers_markdown(prompts, given), encoding="utf-8")
        pq.write_table(_questions(runs, lines), folder / "questions.parquet", compression="zstd")
        write_json(folder / "comparison.json", {**inputs, "sentences": sentences, "stages": _stages(runs)})
        return {"what": f"comparison of {', '.join(lines)}"}

    folder = first.stages.stage("comparison", inputs, make).path
    return CompareResult(folder, comparison, tables, sentences, failed)


def _preferences(runs: Sequence[_Run], control: str) -> list[ModelPreference]:
    """Of every line, by the name that tables show; margins are means over the seeds, pair by pair."""
    means = {line: np.mean([run.margins[line] for run in runs], axis=0) for line in runs[0].margins}
    return [replace(p, name=STRATEGY_NAMES.get(p.name, p.name)) for p in compare_preferences(means, control)]


def trend(difference: Difference) -> str:
    """How a task went over the rounds (§5.2): ``rich`` (got richer) where the output is better than the warm-up by a
    real difference, ``poor`` where it is worse by one, else ``intermediate``."""
    if not difference.is_real:
        return "intermediate"
    return "rich" if difference.value > 0 else "poor"


def trends_table(items: ItemScores) -> Table:
    """Each task's trend over the rounds of self-evolving cleaning; the rounds' scores are lines of Table 1."""
    of_two = {line: items.scores[line] for line in (WARM_UP, SELF_EVOLVING)}
    against = compare_scores(ItemScores(of_two, items.groups), WARM_UP).differences[SELF_EVOLVING]
    lines = [*((benchmark_named(task).title, d) for task, d in against.tasks.items()), (AVERAGE, against.average)]
    return Table(
        "Rich, poor or intermediate: self-evolving cleaning's output against its warm-up",
        ("task", "output minus warm-up", "trend"),
        tuple((name, f"{points(d.value)} ±{100 * d.half_width:.2f}", trend(d)) for name, d in lines),
        "points, ± half the 95 % interval; rich: better by a real difference, poor: worse by one, else intermediate",
        text_columns=(0, 2),
    )


def _questions(runs: Mapping[int, _Run], lines: Sequence[str]) -> pa.Table:
    """Every answer of every model, with its strategy, seed and benchmark."""
    parts = []
    for seed, run in runs.items():
        for line in lines:
            for name, scores in run.scores[line].items():
                table = scores.questions
                for position, (column, value) in enumerate((("strategy", line), ("seed", seed), ("benchmark", name))):
                    table = table.add_column(position, column, [[value] * len(table)])
                parts.append(table)
    return pa.concat_tables(parts)


def _stages(runs: Mapping[int, _Run]) -> dict[str, int]:
    """``alone``: stages that all strategies would have made by themselves; ``needed``: different ones among them."""
    used = [stages for run in runs.values() for stages in run.used.values()]
    return {"alone": sum(map(len, used)), "needed": len(set().union(*used))}


def _shared(runs: Mapping[int, _Run]) -> str:
    stages = _stages(runs)
    made = len({name for run in runs.values() for name in run.opened.stages.computed})
    return (
        f"The strategies alone would have made {stages['alone']} stages (losses, trainings), together they need "
        f"{stages['needed']}: {stages['alone'] - stages['needed']} shared. {made} stages of any kind were made now."
    )


def _prefixes(runs: Mapping[int, _Run]) -> str:
    manifests = [s.manifest for run in runs.values() for tasks in run.scores.values() for s in tasks.values()]
    requested, computed = (sum(int(m[f"{kind}_tokens"]) for m in manifests) for kind in ("requested", "computed"))
    if not requested:
        return "No benchmark asked for log-likelihoods."
    return (
        f"Benchmarks asked for log-likelihoods over {requested:,} tokens; {computed:,} were computed "
        f"({computed / requested:.0%}), since shared beginnings are computed once."
    )
