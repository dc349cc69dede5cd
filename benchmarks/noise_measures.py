"""One cell of ``benchmarks.noise``: trains with and without the noise and measures every model on the held-out rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks import machine
from benchmarks.noise_sets import ANSWERS, FILES, Cell, find_question, read_rows, with_answer
from tokenclean.cleaning import StrategyResult
from tokenclean.cleaning.model import Model
from tokenclean.evaluation.corrupted_answers import is_answered
from tokenclean.evaluation.intervals import mean_interval
from tokenclean.evaluation.slot_errors import find_slot_errors
from tokenclean.evaluation.text_overlap import chrf_scores
from tokenclean.experiment.comparing.sample_answers import Prompt, answers, heldout_prompts
from tokenclean.experiment.laboratory import Laboratory, measure_margins, open_laboratory, train_effects
from tokenclean.lab.truth import TruthPool
from tokenclean.observer import Observer
from tokenclean.pool import Conversation, Pool
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe, recipe_from
from tokenclean.scoring import paired_difference
from tokenclean.scoring.paired_difference import mean_loss
from tokenclean.selection import label_noise
from tokenclean.store import Store
from tokenclean.theory import CorollaryCheck
from tokenclean.tokens import tokenize_pool, tokens_touching

BASELINES = ("full_tokens", "random_mask")
LOWER_IS_BETTER = ("loss", "slot errors")
ANSWER_TOKENS = 64
RESAMPLES = 4000
"""Of the interval of a recovered share."""

Document = dict[str, object]
T = TypeVar("T")
Masks = Callable[[Laboratory, TruthPool], Mapping[str, Ragged]]
"""Tokens that are called noise (bool, aligned with the laboratory's rows) by the name of what calls them so. The second
argument: held-out rows."""


def measure_cell(
    cell: Cell,
    data: Path,
    output: Path,
    model: str,
    overrides: tuple[str, ...] = (),
    note: Callable[[str], None] = print,
    masks: Masks | None = None,
) -> Document:
    """Everything that the tables need of a cell, as a JSON value. Cells of one set share the run folder
    ``output/SET``, and with it the passes of the base. ``overrides``: KEY=VALUE for the recipe. ``masks``: gives the
    tokens that further models are trained without, by name."""
    started = time.monotonic()
    training, heldout = read_rows(cell, data)
    recipe = recipe_of(cell, data, output, model, overrides)
    store = Store(recipe.folder, note=note)
    with store.lock():
        laboratory = open_laboratory(recipe, training, heldout, observer=Observer(note=note), store=store)
        flagged = masks(laboratory, heldout) if masks else {}
        _, results = train_effects(laboratory, flagged)
        models = {"base": laboratory.context.base} | {result.strategy: result.model for result in results}
        effects = [line for measure in _measures(cell) for line in measure(laboratory, models)]
    noisy = {span.row for span in training.spans}
    return {
        "cell": {**asdict(cell), "name": cell.name},
        "model": model,
        "rows": len(training),
        "rows_with_noise": len(noisy),
        "heldout_rows": len(heldout),
        "response_tokens": int(laboratory.labels.is_response.values.sum()),
        "noise_rate": laboratory.labels.rate,
        "steps": {result.strategy: (result.model.training or {}).get("steps") for result in results},
        "masks": {result.strategy: _mask(laboratory, result) for result in results if result.kept is not None},
        "effects": effects,
        "seconds": time.monotonic() - started,
        "machine": asdict(machine.describe("cpu")),
    }


def recipe_of(cell: Cell, data: Path, output: Path, model: str, overrides: tuple[str, ...] = ()) -> Recipe:
    """The registered recipe."""
    values = {
        "preset": "quick",
        "name": cell.set,
        "output": str(output),
        "seed": cell.seed,
        "pool": {"sources": [{"path": str(data / FILES.get(cell.set, "sft"))}]},  # a name in errors; rows are read
        "tokens": {"max_length": 1024},
        "model": {"base": model},
        "cleaning": {"strategy": "full_tokens"},
        "training": {"epochs": cell.epochs, "precision": "mixed"},
        "evaluation": {"controls": [], "samples": cell.texts, "sample_tokens": ANSWER_TOKENS},
    }
    return recipe_from(values, overrides, cell.name)


Measure = Callable[[Laboratory, Mapping[str, Model]], list[Document]]


def _measures(cell: Cell) -> list[Measure]:
    found: list[Measure] = [_losses, _preferences]
    further = {"e2e": _slot_errors, "ru_en": _chrf, ANSWERS: _accuracies}
    return found + ([further[cell.set]] if cell.set in further else [])


def _losses(laboratory: Laboratory, models: Mapping[str, Model]) -> list[Document]:
    losses = {name: laboratory.context.heldout_losses(model) for name, model in models.items()}

    def difference(of_model: Ragged, of_baseline: Ragged) -> Document:
        paired = paired_difference(of_model, of_baseline)
        return {"difference": paired.difference, "low": paired.low, "high": paired.high}

    items = {name: of_model.map_values(np.nan_to_num).row_sums() for name, of_model in losses.items()}
    return _lines("loss", losses, items, mean_loss, difference)


def _preferences(laboratory: Laboratory, models: Mapping[str, Model]) -> list[Document]:
    margins = measure_margins(laboratory, models)
    return _item_lines("preference", {name: of_model[~np.isnan(of_model)] for name, of_model in margins.items()})


def _slot_errors(laboratory: Laboratory, models: Mapping[str, Model]) -> list[Document]:
    def rates(texts: list[str], rows: list[Conversation]) -> np.ndarray:
        data = [row.turns[0].content for row in rows]
        return np.array([find_slot_errors(of_row, text).rate for of_row, text in zip(data, texts, strict=True)])

    return _of_texts("slot errors", laboratory, models, rates)


def _chrf(laboratory: Laboratory, models: Mapping[str, Model]) -> list[Document]:
    def scores(texts: list[str], rows: list[Conversation]) -> np.ndarray:
        return chrf_scores(texts, [row.turns[-1].content for row in rows])

    return _of_texts("chrF", laboratory, models, scores)


def _of_texts(
    measure: str,
    laboratory: Laboratory,
    models: Mapping[str, Model],
    score: Callable[[list[str], list[Conversation]], np.ndarray],
) -> list[Document]:
    """A score of each generated text, given with the held-out row whose prompt it answers."""
    prompts: list[Prompt] = heldout_prompts(laboratory.opened)
    by_id = {row.id: row for row in laboratory.context.data.heldout_pool}
    rows = [by_id[prompt.row] for prompt in prompts]
    texts = {name: answers(laboratory.opened, model, prompts) for name, model in models.items()}
    return _item_lines(measure, {name: score(of_model, rows) for name, of_model in texts.items()})


def _accuracies(laboratory: Laboratory, models: Mapping[str, Model]) -> list[Document]:
    """Whether the right option is the likeliest after the row's own reasoning, by log p of its tokens together."""
    context = laboratory.context
    asked = [(row, found) for row in context.data.heldout_pool if (found := find_question(row)) is not None]
    rows, places = [], []
    for row, question in asked:
        for number, choice in enumerate(question.choices):
            start = len(question.before)
            places.append((len(rows), len(row.turns) - 1, start, start + len(choice)))
            rows.append(with_answer(row, question, number))
    tokens = tokenize_pool(Pool(tuple(rows)), context.data.tokenizer, **context.recipe.tokens.model_dump())
    is_choice = tokens_touching(tokens, places)
    right = np.array([question.answer for _, question in asked])
    offsets = np.cumsum([0, *(len(question.choices) for _, question in asked)])

    def answered(model: Model) -> np.ndarray:
        losses = context.passes.losses(model, tokens, "options")
        of_choices = losses.map_values(lambda values: np.where(is_choice.values, values, 0.0)).row_sums()
        return is_answered(Ragged(-of_choices, offsets), right)

    return _item_lines("accuracy", {name: answered(model) for name, model in models.items()})


def _item_lines(measure: str, values: Mapping[str, np.ndarray]) -> list[Document]:
    """Lines of a measure that is a mean over items; none where there are no items."""

    def difference(of_model: np.ndarray, of_baseline: np.ndarray) -> Document:
        interval = mean_interval(of_model - of_baseline)
        return {"difference": interval.mean, "low": interval.low, "high": interval.high}

    if not len(next(iter(values.values()), ())):
        return []
    return _lines(measure, values, values, lambda of_model: float(of_model.mean()), difference)


def _lines(
    measure: str,
    values: Mapping[str, T],
    items: Mapping[str, np.ndarray],
    mean: Callable[[T], float],
    difference: Callable[[T, T], Document],
) -> list[Document]:
    """Each model's value, its difference to each of ``BASELINES`` with its 95 % interval, and the share of the
    oracle's gain that it recovers, of which ``items`` are what each item adds."""
    return [
        {
            "measure": measure,
            "condition": name,
            "value": mean(of_model),
            "items": len(items[name]),
            "against": {
                baseline: difference(of_model, values[baseline])
                for baseline in BASELINES
                if name not in ("base", baseline)
            },
            "recovered": None if name == "base" else _recovered(measure, items, name),
        }
        for name, of_model in values.items()
    ]


def _recovered(measure: str, items: Mapping[str, np.ndarray], name: str) -> Document:
    """Σ (model − full tokens) / Σ (oracle − full tokens) over items, with its 95 % bootstrap interval over them. All
    None where the oracle's own gain is not clear, or it is worse than full tokens: then there is nothing to recover."""
    full, sign = items["full_tokens"], -1 if measure in LOWER_IS_BETTER else 1
    gains = sign * np.stack([items[name] - full, items["oracle"] - full])
    of_model, of_oracle = gains.sum(axis=1)
    draws = np.random.default_rng(0).integers(len(full), size=(RESAMPLES, len(full)))
    resampled = gains[:, draws].sum(axis=2)
    if np.quantile(resampled[1], 0.025) <= 0:
        return {"share": None, "low": None, "high": None}
    low, high = np.quantile(resampled[0] / resampled[1], [0.025, 0.975])
    return {"share": float(of_model / of_oracle), "low": float(low), "high": float(high)}


def _mask(laboratory: Laboratory, result: StrategyResult) -> Document:
    """Noise before and after this mask, and what Eq. 6 makes of it."""
    labels = laboratory.labels
    assert result.kept is not None
    noise = label_noise(result.kept, labels.is_response, labels.is_noise)
    tokens = int(labels.is_response.values.sum())
    check = CorollaryCheck(noise.eta_full, noise.eta_cleaned, noise.kept_share, tokens)
    return {
        "eta_full": noise.eta_full,
        "eta_cleaned": noise.eta_cleaned,
        "kept_share": noise.kept_share,
        "eq6_margin": check.margin,
        "eq6_holds": check.holds,
    }
