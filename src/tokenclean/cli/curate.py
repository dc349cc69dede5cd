"""``tokenclean curate``: noisy ratings corrected, the best rows selected."""

from __future__ import annotations

from tokenclean.cli.console import note, out, progress, quiet_libraries
from tokenclean.cli.intake import IntakeOptions, takes_intake
from tokenclean.cli.run import RecipeArgument, SetOption
from tokenclean.recipe import load_recipe


@takes_intake
def curate(recipe: RecipeArgument, set_: SetOption = None, *, intake: IntakeOptions) -> None:
    """Correct the ratings of a recipe's pool (DS²) and select its best rows.

    Prints what the correction changed, each rater's score transition matrix beside cleanlab's, how raters agree before
    and after, and the conversations that moved most. Embeddings, neighbours and corrections are kept in the run folder,
    where run and compare find them; the rows with all figures are written as Parquet.

    Example: tokenclean curate recipes/alpaca-ds2.yaml --set pool.sources.0.path=alpaca.jsonl
    --set pool.curation.ratings.0.path=ratings.csv
    """
    loaded = load_recipe(recipe, list(set_ or []), intake)

    from tokenclean.store import Store

    quiet_libraries()
    store = Store(loaded.folder, note=note)
    with store.lock():
        from tokenclean.experiment.curate import curate as run_curate
        from tokenclean.observer import Observer

        result = run_curate(loaded, store, Observer(note, progress))
    for table in result.tables:
        out.print(table.to_rich())
        out.print()
    for sentence in result.sentences:
        out.print(sentence, soft_wrap=True)
    out.print(f"see it: tokenclean report {loaded.folder}", soft_wrap=True)
    out.print(f"curation: {result.folder}", soft_wrap=True)
