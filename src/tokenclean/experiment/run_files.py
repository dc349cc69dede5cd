"""Names of the files in a run folder and its results, and what ``result.json`` holds. Loads nothing large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict

from tokenclean.report.plots.trainings import Rounds

LATEST = "latest"
"""File of the run folder that names the results of the last run, found or made."""

TABLES = "tables.json"
"""File of results, of a comparison and of a sweep that holds their tables, for a report."""

CELLS = "cells.json"
"""File of a sweep with the figures of its cells."""

CURATION = "curation.json"
"""File that a report reads, in the folder of a curation and in the results of a run with one."""

KEPT, CLEANED = "kept.parquet", "cleaned.parquet"
"""A strategy's table of all tokens, and its dataset for a trainer."""

RECIPE = "recipe.yaml"

NOISE = "noise.json"
"""File of the results with what noise mixture and repetition found: by strategy, the rates of the pool and its rows."""


class Difference(TypedDict):
    """A paired difference in nats and its 95 % interval."""

    difference: float
    low: float
    high: float


class Mean(TypedDict):
    """A mean over ``items`` values and its 95 % interval."""

    mean: float
    low: float
    high: float
    items: int


class Preference(TypedDict):
    """As of ``evaluation.preference.Preference``."""

    margin: Mean
    wins: Mean
    equal: int


class MeasuredModel(TypedDict):
    """A model on the held-out rows, as in ``result.json``; ``loss``: nats a token.

    ``preference``: for clean answers, over the pairs of ``evaluation.pairs``, and ``preference_against_full`` its
    change from full tokens; None without pairs, and absent from results of earlier versions.
    """

    name: str
    kept_share: float | None
    loss: float
    against_base: Difference | None
    against_full: Difference | None
    weak_reference: str
    reference: str
    preference: NotRequired[Preference | None]
    preference_against_full: NotRequired[Mean | None]


class ChoiceMade(TypedDict):
    """What of a run's choice a verdict needs: what was chosen, and a sentence that says why."""

    chosen: str
    sentence: str


class Result(TypedDict, total=False):
    """What a report reads of ``result.json``. ``choices``: by strategy, of those that choose for the user."""

    measured: list[MeasuredModel]
    heldout_rows: list[str]
    choices: Mapping[str, ChoiceMade]
    counts: Mapping[str, int]
    rounds: Rounds | None
    stages: Mapping[str, list[str]]
