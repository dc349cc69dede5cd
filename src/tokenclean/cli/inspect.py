"""``tokenclean inspect``: see which tokens are targets, or which were kept; or how long the rows of each source are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from tokenclean.cli.console import note, out, progress, quiet_libraries, say
from tokenclean.cli.intake import print_intake, sources_of
from tokenclean.cli.options import IntakeOptions, RejectedShareOption, SetOption, TokensOptions, TrustOption
from tokenclean.cli.settings_options import is_given, takes_settings
from tokenclean.errors import RecipeError, TableError
from tokenclean.recipe import Recipe, TokensSettings, load_recipe

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

    from tokenclean.pool import Pool, RenderedRows
    from tokenclean.token_table import TokenTable
    from tokenclean.tokens.statistics import PoolStatistics

RECIPES = (".yaml", ".yml")

_ONLY_WITHOUT_RECIPE = (
    *("--model", "--template", "--max-length", "--targets", "--date"),
    *("--trust-remote-code", "--max-rejected-share"),
)


@takes_settings
def inspect(
    context: typer.Context,
    data: Annotated[
        str,
        Argument(
            metavar="DATA",
            help="A pool, in any form that score takes, a table with is_kept, or a recipe by its .yaml file.",
        ),
    ],
    model: Annotated[
        str | None, Option(help="Model whose tokenizer (and chat template) to use; a recipe names its own.")
    ] = None,
    rows: Annotated[int, Option("--rows", "-n", min=1, help="Number of samples to print.")] = 3,
    start: Annotated[int, Option(min=0, help="First row to print, from 0.")] = 0,
    statistics: Annotated[
        bool, Option("--statistics", help="Print the paper's Table 4: rows and lengths in tokens by source.")
    ] = False,
    csv: Annotated[Path | None, Option(metavar="FILE", help="Write the statistics too, unrounded.")] = None,
    set_: SetOption = None,
    *,
    tokens: TokensOptions,
    trust_remote_code: TrustOption,
    max_rejected_share: RejectedShareOption,
    intake: IntakeOptions,
) -> None:
    """Print samples as the model sees them, with the training targets coloured (or kept and dropped tokens of a table).

    Piped, targets and kept tokens are in ⟦ ⟧ and dropped ones between tildes. Then: rows set aside by reason, keys that
    are not used, and how rows were changed to make them usable. With --statistics: how many rows each source has, how
    long its prompts and completions are, and its share of the response tokens. Exit code 2 where a run would refuse the
    pool.

    Example: tokenclean inspect my.jsonl --model HuggingFaceTB/SmolLM2-135M --rows 2
    """
    if csv is not None and not statistics:
        raise RecipeError("--csv: only with --statistics", "options")
    recipe = _recipe_of(context, data, set_, intake)
    if recipe is not None:
        name, revision, trusted = recipe.model.base, recipe.model.revision, recipe.model.trust_remote_code
        tokens, max_rejected_share = recipe.tokens, recipe.pool.max_rejected_share
    elif model is not None:
        name, revision, trusted = model, None, trust_remote_code
    else:
        raise RecipeError("--model: missing; name the model whose tokenizer to use", "options")
    note(f"reading the tokenizer of {name}")

    from tokenclean.models.loading.load import load_tokenizer, resolve_source
    from tokenclean.pool import Intake, check_usable, load_sources
    from tokenclean.token_table import is_table, read_table

    quiet_libraries()
    tokenizer = load_tokenizer(resolve_source(name, revision=revision, trusted=trusted))
    if recipe is None and is_table(data):
        from tokenclean.tokens.statistics import table_statistics

        table = read_table(data)
        if statistics:
            _print_statistics(table_statistics(table), name, csv)
        else:
            _print_samples(data, tokenizer, table, rows, start)
        return
    if recipe is None:
        pool = load_sources(sources_of([data], intake))
        counted = Intake.of(pool)
    else:
        from tokenclean.pool.recipe_pool import open_mixture, take_rows

        mixture = open_mixture(recipe)
        pool, counted = take_rows(mixture.pool, recipe), mixture.intake
    if statistics:
        rendered = _print_pool_statistics(pool, tokenizer, tokens, name, csv)
    else:
        rendered = _print_pool_samples(data, pool, tokenizer, tokens, rows, start)
    counted = counted.after_rendering(*rendered)
    print_intake(counted)
    check_usable(counted, max_rejected_share, are_reasons_shown=True)


def _recipe_of(
    context: typer.Context, data: str, overrides: list[str] | None, intake: Mapping[str, object]
) -> Recipe | None:
    """The recipe if ``data`` names one. Raises RecipeError for options that do not go with it."""
    if not data.lower().endswith(RECIPES):
        if overrides:
            raise RecipeError(f"--set: only with a recipe, and the name {data} does not end in .yaml", "options")
        return None
    given = {option.opts[0] for option in context.command.params if is_given(context, option.name or "")}
    if names := ", ".join(name for name in _ONLY_WITHOUT_RECIPE if name in given):
        raise RecipeError(f"{names}: the recipe says it; change it with --set, as in --set model.base=…", "options")
    return load_recipe(data, overrides or (), intake)


def _print_pool_statistics(
    pool: Pool, tokenizer: PreTrainedTokenizerBase, tokens: TokensSettings, model: str, csv: Path | None
) -> tuple[RenderedRows, ...]:
    from tokenclean.tokens.statistics import pool_statistics

    found = pool_statistics(pool, tokenizer, tokens, progress("tokenize", "row"))
    _print_statistics(found, model, csv)
    if pool.removed:
        say(f"{len(pool.removed):,} usable rows left out by the recipe's filters and draws")
    return found.rendered


def _print_pool_samples(
    data: str, pool: Pool, tokenizer: PreTrainedTokenizerBase, tokens: TokensSettings, rows: int, start: int
) -> tuple[RenderedRows, ...]:
    from tokenclean.tokens import tokenize_pool

    tokenized = tokenize_pool(pool, tokenizer, **tokens.model_dump())
    _print_samples(data, tokenizer, tokenized.table({}), rows, start)
    return (tokenized.rendered_rows,)


def _print_statistics(statistics: PoolStatistics, model: str, csv: Path | None) -> None:
    from tokenclean.report.pool_tables import statistics_csv, statistics_table
    from tokenclean.store import atomic_path

    out.print(statistics_table(statistics, model).to_rich())
    if csv is not None:
        with atomic_path(csv) as temporary:
            temporary.write_text(statistics_csv(statistics), encoding="utf-8")


def _print_samples(
    data: str, tokenizer: PreTrainedTokenizerBase | Tokenizer, table: TokenTable, rows: int, start: int
) -> None:
    from tokenclean.report.viewer.terminal import labelled_text, token_labels, visible
    from tokenclean.report.viewer.token_spans import SpanDecoder

    ids, is_response, is_kept = table["input_ids"], table["is_response"], table.columns.get("is_kept")
    if start >= len(ids):
        raise TableError(f"{data}: --start {start}, but it has {len(ids)} rows")
    decoder = SpanDecoder(tokenizer)
    for row in range(start, min(start + rows, len(ids))):
        label_T = token_labels(is_response[row], (is_response if is_kept is None else is_kept)[row])
        counted = f"{int(is_response[row].sum())} targets"
        counted += f", {int(is_kept[row].sum())} kept" if is_kept is not None else ""
        own = f" (id {table.original_ids[row]})" if table.original_ids and table.original_ids[row] else ""
        heading = visible(f"{table.ids[row]}{own}  {len(label_T)} tokens, {counted}")
        if out.is_terminal:
            out.rule(heading, align="left")
        else:
            out.print(heading, soft_wrap=True)
        out.print(labelled_text(decoder.decode(ids[row]), label_T, coloured=out.is_terminal), soft_wrap=True)
