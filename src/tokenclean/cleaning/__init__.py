"""The cleaning strategies; the only code that knows a loop."""

from dataclasses import replace

from tokenclean.cleaning.automatic import with_chosen_proportion
from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.noise_removal import keep_best
from tokenclean.cleaning.strategy_result import StrategyResult
from tokenclean.errors import RecipeError
from tokenclean.ragged import Ragged
from tokenclean.recipe import Strategy, find_strategy


def run_strategy(context: RunContext, strategy: str | Strategy) -> StrategyResult:
    """Run a strategy, by name or by its record.

    Its function returns a ``StrategyResult``, or only scores: float, one a token aligned with ``context.tokens``, NaN
    for a token without one. Then the top ``cleaning.proportion`` of them is kept, ranked where the record's ``level``,
    else ``cleaning.level``, says, and the base is trained on it. Where ``cleaning.proportion`` is ``auto``, a strategy
    that ranks gets a context whose recipe has the number that was chosen. Raises RecipeError for a strategy that cannot
    be imported or returns something else.
    """
    try:
        record = find_strategy(strategy) if isinstance(strategy, str) else strategy
        function = record.load()
    except ValueError as error:
        raise RecipeError([str(error)], "cleaning.strategy") from error
    choice = None
    if record.ranks:
        context, choice = with_chosen_proportion(context)
    result = function(context)
    if isinstance(result, Ragged):
        result = keep_best(context, record.name, result, record.level)
    if not isinstance(result, StrategyResult):
        raise RecipeError(
            [f"{record.function} returned {type(result).__name__}, expected a StrategyResult, or scores as a Ragged"],
            "cleaning.strategy",
        )
    kept = None if result.kept is None else context.data.fix_labels(result.kept)
    return replace(
        result, strategy=record.name, level=record.level, kept=kept, choice=result.choice if choice is None else choice
    )


__all__ = ["RunContext", "StrategyResult", "run_strategy"]
