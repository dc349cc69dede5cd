"""``tokenclean curate``: noisy ratings corrected, the best rows selected."""

from __future__ import annotations

from tokenclean.cli.console import locked_folder, note, say, say_tables
from tokenclean.cli.distributed import executing_alone
from tokenclean.cli.options import IntakeOptions, RecipeArgument, SetOption
from tokenclean.cli.settings_options import takes_settings
from tokenclean.recipe import load_recipe


@takes_settings
def curate(recipe: RecipeArgument, set_: SetOption = None, *, intake: IntakeOptions) -> None:
    """Correct the ratings of a recipe's pool (DS²) and select its best rows.

    Prints what the correction changed, each rater's score transition matrix beside cleanlab's, the raters' agreement
    before and after, and the conversations whose rating changed most. Embeddings, neighbours and corrections are kept
    in the run folder, where run and compare find them; the rows with all figures are written as Parquet.

    Example: tokenclean curate recipes/alpaca-ds2.yaml --set pool.sources.0.path=alpaca.jsonl
    --set pool.curation.ratings.0.path=ratings.csv
    """
    loaded = load_recipe(recipe, set_ or (), intake)
    with executing_alone(loaded.executor, note) as executor, locked_folder(loaded.folder) as (store, observer):
        from tokenclean.experiment.curate import curate as run_curate

        result = run_curate(loaded, store, observer, executor)
    say_tables(result.tables)
    for sentence in result.sentences:
        say(sentence)
    say(f"see it: tokenclean report {loaded.folder}")
    say(f"curation: {result.folder}")
