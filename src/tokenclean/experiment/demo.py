"""The demo: the shipped pool with planted noise, every strategy, and what each made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenclean.cleaning import StrategyResult
from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.open_run import OpenRun, open_run_on
from tokenclean.cleaning.run_data import tokenize_run_data
from tokenclean.errors import PoolError
from tokenclean.experiment.finished.finished_run import find_run
from tokenclean.experiment.finished.sample import CleanedSample, choose_sample
from tokenclean.experiment.finished.viewer_tables import decoder_of, open_tables, view_title
from tokenclean.experiment.known_noise import noise_tokens, oracle
from tokenclean.experiment.noise_tables import condition_table
from tokenclean.experiment.reporting.report import make_report
from tokenclean.experiment.result_files import Measured, kept_share
from tokenclean.experiment.run import Further, RunResult, run
from tokenclean.experiment.run_files import KEPT
from tokenclean.lab import NoiseSettings, plant
from tokenclean.models.loading.convert import smollm2_folder
from tokenclean.models.loading.load import load_tokenizer, resolve_source
from tokenclean.observer import Observer
from tokenclean.pool import Pool
from tokenclean.pool.recipe_pool import open_mixture
from tokenclean.ragged import Ragged
from tokenclean.recipe import Recipe, recipe_from
from tokenclean.report.report_page import write_report
from tokenclean.report.tables import Table, difference_text, share_text
from tokenclean.report.viewer.page import write_page
from tokenclean.report.viewer.token_spans import SpanDecoder
from tokenclean.selection import LabelNoise, auroc, label_noise
from tokenclean.store import Store
from tokenclean.theory import CorollaryCheck
from tokenclean.tokens import tokenize_pool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOISE = {
    "corrupted": NoiseSettings(row_share=0.3, word_share=0.25),
    "boilerplate": NoiseSettings(row_share=0.3),
}


@dataclass(frozen=True)
class DemoSize:
    """``heldout`` and ``trusted``: number of clean rows; ``tokens``: of the rows in which noise is planted, at most;
    ``row_tokens``: of the longest row. ``controls``: strategies beside the recipe's own."""

    heldout: int
    trusted: int
    tokens: int
    row_tokens: int
    controls: tuple[str, ...]


SHORT = DemoSize(heldout=25, trusted=50, tokens=3_000, row_tokens=120, controls=("full_tokens",))
FULL = DemoSize(
    heldout=60,
    trusted=60,
    tokens=20_000,
    row_tokens=512,
    controls=("none", "full_tokens", "random", "self_evolving", "noise_mixture"),
)


@dataclass(frozen=True)
class DemoRows:
    """Rows of the shipped pool, clean ones; noise is planted into ``training`` later."""

    training: Pool
    trusted: Pool
    heldout: Pool


@dataclass(frozen=True)
class Cleaned:
    """What a strategy made of the planted noise: label noise before and after, the score's AUROC for finding it."""

    strategy: str
    noise: LabelNoise | None
    auroc: float | None
    corollary: CorollaryCheck | None


def demo_recipe(
    size: DemoSize, *, model: str | None = None, output: str = "runs", overrides: tuple[str, ...] = ()
) -> Recipe:
    """The demo's recipe: preset ``demo`` on the shipped pool; SmolLM2-135M-Instruct from its package by default."""
    values: dict[str, object] = {
        "preset": "demo",
        "name": "demo" if size is SHORT else "demo-full",
        "output": output,
        "pool": {"sources": [{"path": str(pool_path())}]},
        "model": {"base": model or str(smollm2_folder())},
        "evaluation": {"controls": list(size.controls)},
    }
    return recipe_from(values, overrides, "demo recipe")


def pool_path() -> Path:
    """The shipped pool, JSON lines in ``messages`` form."""
    return Path(str(resources.files("tokenclean") / "data" / "demo_pool.jsonl"))


def run_demo(
    recipe: Recipe,
    size: DemoSize,
    observer: Observer | None = None,
    begin: Callable[[OpenRun, Further], None] = lambda opened, further: None,
) -> tuple[RunResult, CleanedSample | None]:
    """Plant noise into the training rows, warm up a reference on clean ones, run the recipe's strategies and the
    oracle, and measure on clean held-out rows.

    ``begin``: called when the run is open, with the strategies beside the recipe's. The first table of the result is
    the demo's own. The sample is an answer as the recipe's own strategy cleaned it, None where it drops nothing.
    """
    tokenizer = load_tokenizer(resolve_source(recipe.model.base, trusted=recipe.model.trust_remote_code))
    rows = draw_rows(open_mixture(recipe).pool, tokenizer, recipe, size)
    planted = plant(rows.training, NOISE, seed=recipe.seed)
    observer = observer or Observer()
    store = Store(recipe.folder, note=observer.note)
    data = tokenize_run_data(recipe, planted.pool, rows.heldout, rows.trusted, tokenizer=tokenizer)
    opened = open_run_on(data, store, observer)
    context = opened.context
    is_noise = noise_tokens(context.tokens, planted.spans)
    further: Further = {"oracle": oracle(is_noise)}
    begin(opened, further)

    def finish(results: list[StrategyResult], measured: list[Measured]) -> tuple[list[Table], dict[str, object]]:
        cleaned = [measure_cleaning(result, context, is_noise) for result in results]
        document = [asdict(c) | {"kept_share": kept_share(o, context)} for c, o in zip(cleaned, results, strict=True)]
        found = [(c.strategy, c.noise) for c in cleaned if c.noise is not None]
        response_tokens = int(context.tokens.is_response.values.sum())
        return [demo_table(cleaned, measured), condition_table(found, response_tokens)], {"demo.json": document}

    result = run(opened, further, finish)
    labels = context.tokens.is_response
    sample = None
    if result.own.kept is not None:
        decoder = SpanDecoder(tokenizer)
        sample = choose_sample(context.tokens.input_ids, labels, result.own.kept, decoder, is_noise)
    return result, sample


def write_pages(recipe: Recipe, results: Path, note: Callable[[str], None]) -> tuple[Path, Path]:
    """The viewer, the recipe's strategy beside the oracle, and the report, as pages in the run folder.

    Raises MissingExtraError without matplotlib or jinja2.
    """
    view, report = recipe.folder / "tokens.html", recipe.folder / "report.html"
    opened = open_tables([results / name / KEPT for name in (recipe.cleaning.strategy, "oracle")])
    write_page(opened, view, title=view_title(opened))
    made = make_report([find_run(recipe.folder)], title="Report of the demo", decoder=lambda run: decoder_of(run, note))
    write_report(made, report)
    return view, report


def draw_rows(pool: Pool, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, size: DemoSize) -> DemoRows:
    """Rows of the pool: the shortest as trusted ones, since they are trained on four times; then in seeded order the
    held-out ones, and as many to train on as hold at most ``size.tokens`` tokens once the noise is planted."""
    options = recipe.tokens.model_dump()
    lengths = tokenize_pool(pool, tokenizer, **options).input_ids.lengths
    order = np.random.Generator(np.random.PCG64(recipe.seed)).permutation(len(pool))
    trusted = order[np.argsort(lengths[order], kind="stable")[: size.trusted]]
    others = order[(lengths[order] <= size.row_tokens) & ~np.isin(order, trusted)]
    heldout, rest = np.split(others, [size.heldout])
    count = int(np.searchsorted(np.cumsum(lengths[rest]), size.tokens, side="right"))
    while count > 1:
        training = pool.take(np.sort(rest[:count]))
        noisy = tokenize_pool(plant(training, NOISE, seed=recipe.seed).pool, tokenizer, **options)
        if len(noisy.input_ids.values) <= size.tokens:
            return DemoRows(training, pool.take(np.sort(trusted)), pool.take(np.sort(heldout)))
        count -= 1
    raise PoolError(f"no two rows of the pool fit into {size.tokens:,} tokens")


def measure_cleaning(result: StrategyResult, context: RunContext, is_noise: Ragged) -> Cleaned:
    """Label noise before and after (§5.1), Corollary 5.1.1, and the score's AUROC (clean tokens above noise)."""
    if result.kept is None:
        return Cleaned(result.strategy, None, None, None)
    labels = context.tokens.is_response
    noise = label_noise(result.kept, labels, is_noise)
    tokens = int(labels.values.sum())
    corollary = CorollaryCheck(noise.eta_full, noise.eta_cleaned, noise.kept_share, tokens)
    area = None
    if result.scores is not None:
        scored = labels.values & np.isfinite(result.scores.values)
        area = auroc(result.scores.values[scored], ~is_noise.values[scored])
    return Cleaned(result.strategy, noise, area, corollary)


def demo_table(cleaned: list[Cleaned], measured: Sequence[Measured]) -> Table:
    """The demo's table: what was planted, what was removed, and whether the model is better for it."""
    by_name = {m.name: m for m in measured}
    noise_of = {line.strategy: line for line in cleaned}
    rows = []
    for name in ("base", *(line.strategy for line in cleaned if line.strategy != "none")):
        m, line = by_name[name], noise_of.get(name)
        noise = line and line.noise
        rows.append(
            (
                name,
                share_text(noise and noise.kept_share),
                share_text(noise and noise.eta_cleaned),
                "–" if line is None or line.auroc is None else f"{line.auroc:.2f}",
                f"{m.loss:.4f}",
                difference_text(m.against_full) if m.against_full else "–",
            )
        )
    return Table(
        "Planted noise: what each strategy removed, and the loss on clean held-out rows",
        ("trained on", "kept r̂", "wrong η̂", "AUROC", "loss", "minus full tokens"),
        tuple(rows),
        "η̂: wrong labels, noise kept and clean tokens dropped (§5.1); AUROC: of the score, clean against planted "
        "tokens (0.5 is chance); loss: nats a response token, ± half of the 95 % interval; oracle: trained on exactly "
        "the clean tokens",
    )
