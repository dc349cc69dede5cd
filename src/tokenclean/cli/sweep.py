"""``tokenclean sweep``: one strategy under many values of recipe keys."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from tokenclean.cli.completion import complete_override
from tokenclean.cli.console import fail, locked_folder, note, say, say_tables
from tokenclean.cli.distributed import executing_alone
from tokenclean.cli.options import IntakeOptions, RecipeArgument, SetOption
from tokenclean.cli.settings_options import takes_settings
from tokenclean.errors import RecipeError
from tokenclean.recipe import Recipe, load_recipe


@takes_settings
def sweep(
    recipe: RecipeArgument,
    over: Annotated[
        list[str],
        Option(
            "--over",
            metavar="KEY=A,B|FROM:TO:STEP",
            help="A recipe key and its values; repeatable, for a grid.",
            autocompletion=complete_override,
        ),
    ],
    plot: Annotated[
        Path | None, Option(metavar="FILE", help="Draw the average over one numeric axis; .png, .svg or .pdf.")
    ] = None,
    set_: SetOption = None,
    *,
    intake: IntakeOptions,
) -> None:
    """Train and evaluate a recipe's strategy once for each value of a key, or for each cell of a grid.

    Cells share everything that does not depend on the key: under fixed_model, rho and random, another proportion
    needs no scoring. Finished cells are reused; a failed cell is shown as failed, and the others continue.

    Example: tokenclean sweep recipes/quick.yaml --over cleaning.proportion=0.3:1.0:0.1
    --set cleaning.strategy=fixed_model --set pool.sources.0.path=my.jsonl
    """
    from tokenclean.experiment.comparing.sweep import check_plot, grid, parse_axis

    recipes: dict[tuple[str, ...], Recipe | RecipeError] = {}
    axes = [parse_axis(axis) for axis in over]
    if plot is not None:
        check_plot(axes, plot)
    for settings in grid(axes):
        try:
            recipes[settings] = load_recipe(recipe, [*(set_ or ()), *settings], intake)
        except RecipeError as error:
            recipes[settings] = error
    good = [loaded for loaded in recipes.values() if isinstance(loaded, Recipe)]
    folders = {loaded.folder for loaded in good}
    if len(folders) > 1:
        raise RecipeError("--over: name and output cannot be swept, since all cells share a run folder", "sweep")
    if not folders:
        raise next(error for error in recipes.values() if isinstance(error, RecipeError))

    with executing_alone(good[0].executor, note) as executor, locked_folder(folders.pop()) as (store, observer):
        from tokenclean.cleaning.open_run import open_run
        from tokenclean.experiment.comparing.sweep import plot_sweep
        from tokenclean.experiment.comparing.sweep import sweep as run_sweep

        result = run_sweep(recipes, lambda of_cell: open_run(of_cell, observer, store, executor))
    say_tables(result.tables)
    has_figures = any(not cell.failure for cell in result.cells)
    if plot is not None and has_figures:
        plot_sweep(result, plot)
        say(f"plot: {plot}")
    say(f"sweep: {result.folder} ({result.stages_made} stages made, {result.stages_reused} reused)")
    if not has_figures:
        fail("every cell failed")
        raise typer.Exit(1)
