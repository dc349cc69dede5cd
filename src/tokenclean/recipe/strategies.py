"""The cleaning strategies by name: what recipes, results, reports and comparisons have to know of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

from tokenclean.recipe.error_messages import did_you_mean

ENTRY_POINTS = "tokenclean.strategies"
"""Entry-point group by which an installed package offers a strategy."""


@dataclass(frozen=True)
class Strategy:
    """``name``: in recipes and tables; ``title``: in Table 1. ``function``: ``module:name`` of what runs it, a function
    of a ``RunContext`` that returns a ``StrategyResult``, or only scores (see ``cleaning.run_strategy``).

    ``trains``: what its model is trained on: ``nothing``, ``all tokens`` (every response token), ``rows`` (every
    response token of the rows that it selects) or ``tokens`` (those that it selects). ``ranks``: whether it keeps the
    top ``cleaning.proportion``; ``level``: where it ranks, if not where ``cleaning.level`` says. ``needs_ratings``:
    uses DS². ``needs_trusted``: uses the rows of ``cleaning.trusted``. ``trains_references``: trains references of its
    own, and has no use for a given one. ``does``: what it does, after its name, where no score says it.
    """

    name: str
    title: str
    function: str
    trains: Literal["nothing", "all tokens", "rows", "tokens"] = "tokens"
    ranks: bool = True
    level: Literal["random", "sample"] | None = None
    needs_ratings: bool = False
    needs_trusted: bool = False
    trains_references: bool = False
    does: str = ""

    def load(self) -> Callable[..., object]:
        """Import the function. Raises ValueError where it cannot be imported."""
        module, _, name = self.function.partition(":")
        try:
            return getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ValueError(
                f"strategy {self.name}: cannot import {self.function} ({error}); its folder has to be on PYTHONPATH"
            ) from error


_OURS = "tokenclean.cleaning"

STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("none", "Base", f"{_OURS}.baselines:none", trains="nothing", ranks=False),
        Strategy(
            "ds2",
            "DS²",
            f"{_OURS}.baselines:ds2",
            trains="rows",
            ranks=False,
            needs_ratings=True,
            does="keeps whole rows, those with the best corrected ratings",
        ),
        Strategy(
            "full_tokens",
            "Full tokens",
            f"{_OURS}.baselines:full_tokens",
            trains="all tokens",
            ranks=False,
            does="keeps every response token",
        ),
        Strategy(
            "full_tokens_from_warmup",
            "full_tokens_from_warmup",
            f"{_OURS}.baselines:full_tokens_from_warmup",
            trains="all tokens",
            ranks=False,
            does="keeps every response token, and starts from the warm-up",
        ),
        Strategy(
            "random",
            "Uniform random",
            f"{_OURS}.baselines:random",
            level="random",
            does="keeps tokens drawn at random",
        ),
        Strategy("rho", "RHO", f"{_OURS}.baselines:rho", level="sample"),
        Strategy("fixed_model", "Fixed-model cleaning", f"{_OURS}.fixed_model:fixed_model"),
        Strategy(
            "self_evolving",
            "Self-evolving cleaning",
            f"{_OURS}.self_evolving:self_evolving",
            trains_references=True,
        ),
        Strategy(
            "noise_mixture",
            "noise_mixture",
            f"{_OURS}.noise_removal:noise_mixture",
            ranks=False,
            does="drops no token by itself: it weighs each by how little it looks like noise, in its own training",
        ),
        Strategy(
            "repetition",
            "repetition",
            f"{_OURS}.noise_removal:repetition",
            ranks=False,
            does="drops the passages that many rows share word for word",
        ),
        Strategy(
            "influence",
            "influence",
            f"{_OURS}.influence:influence",
            ranks=False,
            needs_trusted=True,
            does="drops the sentences that a gradient step on the trusted rows makes less likely",
        ),
        Strategy(
            "mismatch",
            "mismatch",
            f"{_OURS}.mismatch:mismatch",
            ranks=False,
            does="drops the rows whose answer is no likelier after its own prompt than after others",
        ),
        Strategy(
            "given",
            "given",
            f"{_OURS}.given_labels:given",
            ranks=False,
            does="keeps what a file of another tool's scores or weights says",
        ),
        Strategy(
            "auto",
            "auto",
            f"{_OURS}.automatic:auto",
            ranks=False,
            does="tries strategies on a share of the rows, and takes what was clearly better there than full tokens",
        ),
    )
}
"""The strategies that tokenclean brings, in the order in which a run takes them."""

STRATEGY_NAMES = {"base" if name == "none" else name: record.title for name, record in STRATEGIES.items()}
"""The paper's rows; other strategies go by their names in a recipe."""


def find_strategy(name: str) -> Strategy:
    """The strategy of this name: one of ours, one that an installed package offers, or ``module:function``.

    Raises ValueError, naming those there are, for an unknown one.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]
    module, colon, function = name.partition(":")
    if colon and module and function.isidentifier():
        return Strategy(function, function, name)
    offered = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    if name in offered:
        return _of_entry_point(offered[name])
    known = (*STRATEGIES, *sorted(offered))
    hint = did_you_mean(name, known)
    raise ValueError(f"expected one of {', '.join(known)}, or module:function of your own, found {name!r}{hint}")


def _of_entry_point(point: EntryPoint) -> Strategy:
    """A package's own record where its entry point is one, else a record of its function."""
    try:
        found = point.load()
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"strategy {point.name}: cannot import {point.value} ({error}); reinstall its package"
        ) from error
    return (
        replace(found, name=point.name)
        if isinstance(found, Strategy)
        else Strategy(point.name, point.name, point.value)
    )
