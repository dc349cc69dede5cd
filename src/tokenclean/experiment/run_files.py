"""Names of the files in a run folder and its results, and what ``result.json`` holds. Loads nothing large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

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


class Interval(TypedDict):
    """A paired difference in nats and its 95 % interval."""

    difference: float
    low: float
    high: float


class MeasuredModel(TypedDict):
    """A model on the held-out rows, as in ``result.json``; ``loss``: nats a token."""

    name: str
    kept_share: float | None
    loss: float
    against_base: Interval | None
    against_full: Interval | None
    weak_reference: str
    reference: str


class Result(TypedDict, total=False):
    """What a report reads of ``result.json``."""

    measured: list[MeasuredModel]
    heldout_rows: list[str]
    counts: Mapping[str, int]
    rounds: Rounds | None
    stages: Mapping[str, list[str]]
