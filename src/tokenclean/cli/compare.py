"""``tokenclean compare``: strategies against each other, on benchmarks and held-out rows, under several seeds."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenclean.cli.console import note, out, progress, quiet_libraries
from tokenclean.cli.intake import IntakeOptions, takes_intake
from tokenclean.cli.run import RecipeArgument, SetOption
from tokenclean.errors import RecipeError
from tokenclean.recipe import load_recipe


@takes_intake
def compare(
    recipe: RecipeArgument,
    strategies: Annotated[
        str,
        typer.Option(
            metavar="A,B,…",
            help="Strategies to train; the recipe's strategy and controls with full_tokens by default. The base is "
            "always shown.",
        ),
    ] = "",
    seeds: Annotated[
        str, typer.Option(metavar="0,1,…", help="Seeds; the recipe's by default. A further one later re-uses the rest.")
    ] = "",
    control: Annotated[
        str, typer.Option(help="The strategy that differences are taken from, or base.")
    ] = "full_tokens",
    references: Annotated[
        bool, typer.Option("--references", help="Lines for the reference models on the way too.")
    ] = False,
    set_: SetOption = None,
    *,
    intake: IntakeOptions,
) -> None:
    """Train strategies, ask their models the benchmarks' questions, and print the paper's Table 1.

    Scores with standard errors, paired differences from the control with 95 % intervals, held-out loss, and a sentence
    on which differences are real and what would settle the others. Everything is kept in the run folder: the same
    command again computes nothing, another strategy or seed only what is new. Tables are written as Markdown, CSV and
    LaTeX, with every answer to every question.

    Example: tokenclean compare recipes/quick.yaml --strategies full_tokens,rho,fixed_model --seeds 0,1,2
    --set pool.sources.0.path=my.jsonl --set evaluation.tasks=[arc_challenge,boolq]
    """
    loaded = load_recipe(recipe, list(set_ or []), intake)
    try:
        numbers = [int(seed) for seed in seeds.split(",")] if seeds else [loaded.seed]
    except ValueError as error:
        raise RecipeError([f"--seeds: expected numbers such as 0,1,2, found {seeds}"], "comparison") from error

    names = [name.strip() for name in strategies.split(",") if name.strip()]
    if not names:
        names = list(dict.fromkeys(("full_tokens", *loaded.strategies)))

    from tokenclean.store import Store

    store = Store(loaded.folder, note=note)
    with store.lock():
        from tokenclean.cleaning.open_run import open_run
        from tokenclean.experiment.comparing.compare import compare as run_comparison
        from tokenclean.observer import Observer

        quiet_libraries()
        observer = Observer(note, progress)
        result = run_comparison(
            loaded,
            names,
            numbers,
            lambda of_seed: open_run(of_seed, observer, store),
            control=control,
            references=references,
        )
    for table in result.tables:
        out.print(table.to_rich())
        out.print()
    for sentence in result.sentences:
        out.print(f"- {sentence}", soft_wrap=True)
    for strategy, reason in result.failed.items():
        out.print(f"- {strategy} failed: {reason}", soft_wrap=True, style="yellow")
    out.print()
    out.print(f"see it: tokenclean report {loaded.folder}", soft_wrap=True)
    out.print(f"comparison: {result.folder}", soft_wrap=True)
