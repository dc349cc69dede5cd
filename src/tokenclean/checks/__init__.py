"""Checks of a pool's texts, without a model or a tokenizer: what ``look`` prints and ``audit`` adds to."""

from tokenclean.checks.findings import Example, Found, Group, Spot
from tokenclean.checks.registry import POOL_CHECKS, ROW_CHECKS, Check
from tokenclean.checks.survey import PoolChecks, Survey, TextResult, survey_texts

__all__ = [
    "POOL_CHECKS",
    "ROW_CHECKS",
    "Check",
    "Example",
    "Found",
    "Group",
    "PoolChecks",
    "Spot",
    "Survey",
    "TextResult",
    "survey_texts",
]
