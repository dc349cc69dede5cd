"""``tokenclean compare``: strategies against each other, on benchmarks and held-out rows, under several seeds."""

from __future__ import annotations

from typing import Annotated

from typer import Option

from tokenclean.cli.completion import complete_strategies, complete_strategy
from tokenclean.cli.console import locked_folder, note, out, say, say_tables
from tokenclean.cli.distributed import executing_alone
from tokenclean.cli.options import IntakeOptions, RecipeArgument, SetOption
from tokenclean.cli.settings_options import takes_settings
from tokenclean.errors import RecipeError
from tokenclean.recipe import load_recipe


@takes_settings
def compare(
    recipe: RecipeArgument,
    strategies: Annotated[
        str,
        Option(
            metavar="A,B,…",
            help="Strategies to train; by default the recipe's strategy and controls with full_tokens. The base is "
            "always shown.",
            autocompletion=complete_strategies,
        ),
    ] = "",
    seeds: Annotated[
        str, Option(metavar="0,1,…", help="Seeds; by default the recipe's. Those added later reuse the others.")
    ] = "",
    control: Annotated[
        str, Option(help="Strategy that differences are taken from, or base.", autocompletion=complete_strategy)
    ] = "full_tokens",
    references: Annotated[bool, Option("--references", help="Show the reference models too.")] = False,
    set_: SetOption = None,
    *,
    intake: IntakeOptions,
) -> None:
    """Train strategies, evaluate their models on benchmarks, and print the paper's Table 1.

    Scores with standard errors, paired differences from the control with 95 % intervals, held-out loss, and a sentence
    on which differences are real and what would settle the others. Everything is kept in the run folder: the same
    command given again computes nothing, another strategy or seed only what is new. Tables are written as Markdown, CSV
    and LaTeX, with every answer to every question.

    Example: tokenclean compare recipes/quick.yaml --strategies full_tokens,rho,fixed_model --seeds 0,1,2
    --set pool.sources.0.path=my.jsonl --set evaluation.tasks=[arc_challenge,boolq]
    """
    loaded = load_recipe(recipe, set_ or (), intake)
    try:
        numbers = [int(seed) for seed in seeds.split(",")] if seeds else [loaded.seed]
    except ValueError as error:
        raise RecipeError(f"--seeds: expected numbers such as 0,1,2, found {seeds}", "comparison") from error

    names = [name.strip() for name in strategies.split(",") if name.strip()]
    if not names:
        names = list(dict.fromkeys(("full_tokens", *loaded.strategies)))
    with executing_alone(loaded.executor, note) as executor, locked_folder(loaded.folder) as (store, observer):
        from tokenclean.cleaning.open_run import open_run
        from tokenclean.experiment.comparing.compare import compare as run_comparison

        result = run_comparison(
            loaded,
            names,
            numbers,
            lambda of_seed: open_run(of_seed, observer, store, executor),
            control=control,
            references=references,
        )
    say_tables(result.tables)
    for sentence in result.sentences:
        say(f"- {sentence}")
    for strategy, reason in result.failed.items():
        say(f"- {strategy} failed: {reason}", "yellow")
    out.print()
    say(f"see it: tokenclean report {loaded.folder}")
    say(f"comparison: {result.folder}")
