"""``tokenclean inspect``: see which tokens are targets, or which were kept; or how long the rows of each source are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenclean.cli.console import out, progress, quiet_libraries
from tokenclean.cli.intake import IntakeOptions, print_intake, sources_of, takes_intake
from tokenclean.cli.options import (
    DEFAULT_DATE,
    DateOption,
    LengthOption,
    RejectedShareOption,
    Targets,
    TargetsOption,
    Template,
    TemplateOption,
    TrustOption,
)
from tokenclean.cli.run import SetOption
from tokenclean.errors import RecipeError, TableError
from tokenclean.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from tokenclean.pool import Pool, RenderedRows
    from tokenclean.token_table import TokenTable

RECIPES = (".yaml", ".yml")

_OF_THE_RECIPE = ("model", "template", "max_length", "targets", "date", "trust_remote_code", "max_rejected_share")


@takes_intake
def inspect(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="A pool, in any form that score takes, a table with is_kept, or a recipe by its .yaml file.",
        ),
    ],
    model: Annotated[
        str | None, typer.Option(help="Model whose tokenizer (and chat template) to use; a recipe names its own.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="How many samples to print.")] = 3,
    start: Annotated[int, typer.Option(min=0, help="The first row to print, from 0.")] = 0,
    statistics: Annotated[
        bool, typer.Option("--statistics", help="Print the paper's Table 4: rows and lengths in tokens by source.")
    ] = False,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the statistics too, unrounded.")] = None,
    template: TemplateOption = Template.tulu,
    max_length: LengthOption = 2048,
    date: DateOption = DEFAULT_DATE,
    targets: TargetsOption = Targets.response,
    max_rejected_share: RejectedShareOption = 0.05,
    trust_remote_code: TrustOption = None,
    set_: SetOption = None,
    *,
    intake: IntakeOptions,
) -> None:
    """Print samples as the model sees them, with the training targets coloured (or kept and dropped tokens of a table).

    Piped, targets and kept tokens stand in ⟦ ⟧ and dropped ones between tildes. Then: rows set aside by reason, keys
    that are not used, and what was done to rows so that they can be used. With --statistics: how many rows each source
    has, how long its prompts and completions are, and its share of the response tokens. Exit code 2 where a run would
    refuse the pool.

    Example: tokenclean inspect my.jsonl --model HuggingFaceTB/SmolLM2-135M --rows 2
    """
    if csv is not None and not statistics:
        raise RecipeError("--csv: only with --statistics", "options")
    recipe = _recipe_of(context, data, set_, intake)
    if recipe is None and model is None:
        raise RecipeError("--model: missing; name the model whose tokenizer to use", "options")

    from tokenclean.models.loading.load import load_tokenizer, resolve_source
    from tokenclean.pool import Intake, check_usable
    from tokenclean.token_table import is_table, read_table

    quiet_libraries()
    if recipe is not None:
        trusted, revision, model = recipe.model.trust_remote_code, recipe.model.revision, recipe.model.base
    else:
        trusted, revision, model = tuple(trust_remote_code or ()), None, str(model)
    tokenizer = load_tokenizer(resolve_source(model, revision=revision, trusted=trusted))
    if recipe is None and is_table(data):
        table = read_table(data)
        if statistics:
            _print_table_statistics(table, model, csv)
        else:
            _print_samples(data, tokenizer, table, rows, start)
        return
    if recipe is None:
        from tokenclean.pool import load_sources

        pool = load_sources(sources_of([data], intake))
        counted, share = Intake.of(pool), max_rejected_share
        options: dict[str, Any] = {
            "template": template.value,
            "max_length": max_length,
            "targets": targets.value,
            "date": date,
        }
    else:
        from tokenclean.cleaning.rows import open_mixture, take_rows, tokens_options

        mixture = open_mixture(recipe)
        pool, options = take_rows(mixture.pool, recipe), tokens_options(recipe)
        counted, share = mixture.intake, recipe.pool.max_rejected_share
    if statistics:
        rendered = _print_pool_statistics(pool, tokenizer, options, model, csv)
    else:
        rendered = (_print_pool_samples(data, pool, tokenizer, options, rows, start),)
    counted = counted.after_rendering(*rendered)
    print_intake(counted)
    check_usable(counted, share, are_reasons_shown=True)


def _recipe_of(context: typer.Context, data: str, overrides: list[str] | None, intake: IntakeOptions) -> Recipe | None:
    """The recipe that ``data`` names, if it names one; RecipeError for options of the other kind."""
    if not data.lower().endswith(RECIPES):
        if overrides:
            raise RecipeError(f"--set: only with a recipe, and the name {data} does not end in .yaml", "options")
        return None
    given = [name for name in _OF_THE_RECIPE if _is_given(context, name)]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise RecipeError(f"{names}: the recipe says it; change it with --set, as in --set model.base=…", "options")
    return load_recipe(data, list(overrides or []), intake)


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _print_pool_statistics(
    pool: Pool, tokenizer: Any, options: dict[str, Any], model: str, csv: Path | None
) -> tuple[RenderedRows, ...]:
    from tokenclean.report.pool_tables import statistics_csv, statistics_table
    from tokenclean.tokens.statistics import pool_statistics

    found = pool_statistics(pool, tokenizer, **options, progress=progress("tokenize", "row"))
    _print_statistics(statistics_table(found, model), statistics_csv(found), csv)
    if pool.removed:
        out.print(f"{len(pool.removed):,} usable rows left out by the recipe's filters and draws")
    return found.rendered


def _print_table_statistics(table: TokenTable, model: str, csv: Path | None) -> None:
    from tokenclean.report.pool_tables import statistics_csv, statistics_table
    from tokenclean.tokens.statistics import table_statistics

    found = table_statistics(table)
    _print_statistics(statistics_table(found, model), statistics_csv(found), csv)


def _print_statistics(table: Any, text: str, csv: Path | None) -> None:
    from tokenclean.store import atomic_path

    out.print(table.to_rich())
    if csv is not None:
        with atomic_path(csv) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _print_pool_samples(
    data: str, pool: Pool, tokenizer: Any, options: dict[str, Any], rows: int, start: int
) -> RenderedRows:
    from tokenclean.tokens import tokenize_pool

    tokens = tokenize_pool(pool, tokenizer, **options)
    _print_samples(data, tokenizer, tokens.table({}), rows, start)
    return tokens.rendered_rows


def _print_samples(data: str, tokenizer: Any, table: TokenTable, rows: int, start: int) -> None:
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
