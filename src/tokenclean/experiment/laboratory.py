"""The laboratory: which detector finds noise whose place is known, whether the model prefers clean answers, and what
training without the noise is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tokenclean.cleaning import StrategyResult
from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.open_run import OpenRun, open_run_on
from tokenclean.cleaning.run_data import tokenize_run_data
from tokenclean.errors import PoolError
from tokenclean.experiment.known_noise import corrected, masked, noise_tokens, oracle, places_of, random_mask
from tokenclean.experiment.preferences import ModelPreference, compare_preferences, margins_of, tokenize_pairs
from tokenclean.experiment.result_files import Measured
from tokenclean.experiment.run import take_strategies
from tokenclean.lab import DETECTORS, NoiseSettings, plant
from tokenclean.lab.detection_quality import DetectionQuality, TruthLabels, measure_detection
from tokenclean.lab.detectors import Columns, Detection, FillUnit, fill
from tokenclean.lab.pairs import Pairs, pairs_of
from tokenclean.lab.truth import TruthPool, clean_versions, read_truth, truth_of_planted
from tokenclean.observer import Observer
from tokenclean.pool import Pool, load_sources, write_rejected
from tokenclean.pool.splits import heldout_rows
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe
from tokenclean.store import Store
from tokenclean.tokens import first_tokens_touching


@dataclass(frozen=True)
class Laboratory:
    """``truth``: the rows of ``opened`` with their noise. ``pairs``: those in two versions, on which preference is
    measured; of held-out rows where there are any."""

    opened: OpenRun
    truth: TruthPool
    pairs: Pairs

    @property
    def context(self) -> RunContext:
        """Passes and trainings over the rows."""
        return self.opened.context

    @cached_property
    def labels(self) -> TruthLabels:
        """The truth, token by token."""
        tokens, spans = self.context.tokens, self.truth.spans
        onset = first_tokens_touching(tokens, places_of(spans))
        return TruthLabels(tokens.is_response, noise_tokens(tokens, spans), onset)

    @cached_property
    def base_columns(self) -> dict[str, Ragged]:
        """Loss, entropy and collision of the rows under the base, from one pass."""
        return self.opened.passes.columns(self.context.base, self.context.tokens, "rows", ("entropy", "collision"))

    def losses(self, model: Model) -> Ragged:
        """Losses of the rows."""
        return self.base_columns["loss"] if model is self.context.base else self.context.losses(model)


def read_lab_pool(recipe: Recipe, planted: Mapping[str, NoiseSettings]) -> TruthPool:
    """The recipe's rows with their truth: the noise that they state, or where ``planted`` names kinds, noise planted
    by the recipe's seed. At most ``pool.max_rows`` rows, drawn by its seed.

    Raises as ``read_truth``, ``load_sources`` and ``plant``.
    """
    if planted:
        clean = load_sources(recipe.pool.sources)
        clean = clean.take(_drawn(clean.sources, recipe))
        return truth_of_planted(clean, plant(clean, planted, seed=recipe.seed))
    truth = read_truth(recipe.pool.sources)
    return truth.take(_drawn(truth.pool.sources, recipe))


def hold_out(truth: TruthPool, recipe: Recipe) -> tuple[TruthPool, TruthPool]:
    """Rows to train on, and held-out rows, whose clean version is known, as many as ``pool.heldout`` says. Raises
    PoolError where too few have one."""
    settings = recipe.pool.heldout
    known = np.array([row for row, clean in enumerate(truth.clean) if clean is not None], dtype=np.int64)
    count = min(settings.rows, int(settings.max_share * len(truth)))
    if count < 2 or count >= len(known):
        raise PoolError(
            f"--train holds out {count} of {len(truth)} rows, {len(known)} have a clean version; at least 2 have to be "
            "held out, and one with a clean version left: take more rows (--rows), or set pool.heldout.max_share"
        )
    heldout = known[heldout_rows([truth.pool[int(row)].source for row in known], count, recipe.pool_seed)]
    return truth.take(np.setdiff1d(np.arange(len(truth)), heldout)), truth.take(heldout)


def open_laboratory(
    recipe: Recipe, truth: TruthPool, heldout: TruthPool | None = None, *, observer: Observer, store: Store
) -> Laboratory:
    """The rows in tokens; no model is loaded. ``heldout``: rows whose clean version is known, on which trained models
    are compared (``hold_out``); None where nothing is trained. ``store``: the run folder, whose lock the caller holds;
    rows set aside are listed there.

    Raises PoolError where no response token is noise, or a held-out row has no clean version.
    """
    clean = Pool(() if heldout is None else clean_versions(heldout))
    listing = store.root / "rejected.jsonl"
    data = tokenize_run_data(recipe, truth.pool, clean, listing=listing)
    if data.rejected:
        write_rejected(data.rejected, listing)
        observer.note(f"rows set aside, with their reasons: {listing}")
    opened = open_run_on(data, store, observer)
    laboratory = Laboratory(opened, truth, pairs_of(truth if heldout is None else heldout))
    if not laboratory.labels.is_noise.values.any():
        spans = f"{len(truth.spans):,} spans" if truth.spans else "no span"
        raise PoolError(
            f"{recipe.pool.sources[0].place}: no response token is noise ({spans} in {len(truth):,} rows), so there "
            "is nothing to find; take more rows with noise, or plant some with --plant"
        )
    return laboratory


def measure_detectors(
    columns: Columns, labels: TruthLabels, fill_unit: FillUnit | None = None
) -> dict[str, DetectionQuality]:
    """The quality of every detector of ``run_detectors``, by name."""
    return {name: measure_detection(detection, labels) for name, detection in run_detectors(columns, fill_unit).items()}


def run_detectors(columns: Columns, fill_unit: FillUnit | None = None) -> dict[str, Detection]:
    """What every detector whose columns are there finds, by name. With a ``fill_unit`` every detector that flags
    single tokens stands there a second time, as ``NAME + fill``, with its onsets carried to the end of that unit."""
    found: dict[str, Detection] = {}
    for name, detector in DETECTORS.items():
        if (detection := detector(columns)) is None:
            continue
        found[name] = detection
        filled = None if fill_unit is None else fill(detection, columns, fill_unit)
        if filled is not None:
            found[f"{name} + fill"] = filled
    return found


def measure_preferences(laboratory: Laboratory, models: Mapping[str, Model]) -> list[ModelPreference]:
    """How much each model prefers clean answers; empty where fewer than two pairs differ in the models' tokens.

    The change is taken from the model ``full_tokens``, where that is among them.
    """
    return compare_preferences(measure_margins(laboratory, models))


def measure_margins(laboratory: Laboratory, models: Mapping[str, Model]) -> dict[str, np.ndarray]:
    """``pair_margins`` of each model over the pairs of which no version is cut, by name; empty where fewer than two
    are left."""
    context = laboratory.context
    pairs = tokenize_pairs(context, laboratory.pairs)
    if len(pairs.whole) < 2:
        return {}
    is_heldout = len(context.heldout) > 0

    def margins(model: Model) -> np.ndarray:
        scored = None if is_heldout else laboratory.losses(model).take(laboratory.pairs.rows[pairs.whole])
        return margins_of(context, model, pairs, scored)

    return {name: margins(model) for name, model in models.items()}


def untrained_models(laboratory: Laboratory) -> dict[str, Model]:
    """The base, and the reference where one is given."""
    context = laboratory.context
    reference = context.given_reference
    return {"base": context.base} | ({} if reference is None else {"reference": reference})


def train_effects(
    laboratory: Laboratory, flagged: Mapping[str, Ragged] | None = None
) -> tuple[list[Measured], list[StrategyResult]]:
    """What training with and without the noise does on clean held-out rows: the recipe's strategies, the oracle, a
    random mask of the oracle's share, where the clean version of every row is known, ``corrected`` rows, and the masks
    of ``flagged`` tokens (bool, aligned with the rows) by name."""
    is_noise, truth = laboratory.labels.is_noise, laboratory.truth
    further = {"oracle": oracle(is_noise), "random_mask": random_mask(is_noise)}
    if all(row is not None for row in truth.clean):
        further["corrected"] = corrected(Pool(clean_versions(truth)))
    further |= {name: masked(name, tokens) for name, tokens in (flagged or {}).items()}
    results, measured, _ = take_strategies(laboratory.context, further)
    return measured, results


def _drawn(sources: tuple[str, ...], recipe: Recipe) -> np.ndarray:
    count = recipe.pool.max_rows
    if count is None or count >= len(sources):
        return np.arange(len(sources))
    return heldout_rows(sources, count, recipe.pool_seed)
