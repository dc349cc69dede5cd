"""Scoring speed and error of each precision policy against the naive way, on the same rows in the same run.

The ways (``scoring_ways``) take turns, ``--repeats`` times over; a ratio is the median of the ratios round by round,
with the lowest and the highest. Preparation (packing weights, compiling) is timed apart. ``docs/benchmarks.md`` defines
every column. Fails unless the naive way in float32 and ``exact`` compute the same losses.

    python -m benchmarks.scoring [--pool FILE] [--model FOLDER] [--reference ADAPTER] [--rows N] [--repeats N]
                                 [--precisions exact safe fast] [--compile auto|on|off] [--device cpu|cuda]
                                 [--random-model SHAPE] [--tokenizer FOLDER] [--json FILE] [--markdown] [--allow-busy]
"""

from __future__ import annotations

import argparse
import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
import torch

from benchmarks import machine
from benchmarks.scoring_figures import (
    UNCOMPILED,
    Comparison,
    Errors,
    check_same_losses,
    errors_of,
    facts,
    summed_up,
    tables,
    with_score_errors,
)
from benchmarks.scoring_ways import (
    NAIVE,
    NAIVE_BATCH,
    NAIVE_BF16,
    Model,
    Way,
    add_model_options,
    described,
    in_bf16,
    most_padded_batch,
    multiplies_bf16,
    naive_losses,
    peak_of_pass,
    product_peaks,
    reference_model,
    rows_to_score,
    useful_flop,
)
from tokenclean import TokenizedPool, load_pool
from tokenclean.cli.console import quiet_libraries
from tokenclean.models.loading.convert import smollm2_folder
from tokenclean.models.loading.load import ModelSource, resolve_source
from tokenclean.models.precision import PRECISIONS
from tokenclean.scoring.scorer import COMPILE

CHECKED_ROWS = 2 * NAIVE_BATCH


def planned_ways(precisions: Sequence[str], compile: str, device: str, expected_tokens: int) -> list[Way]:
    """The ways in the order of their turns; the naive ones stand first.

    On a GPU only the one in bf16, and on a CPU without bf16 instructions, where nobody would use it, only the other.
    ``expected_tokens``: of the long pass for which this one stands; by them ``auto`` decides whether to compile.
    """
    ways = [Way(precision, precision, compile, expected_tokens) for precision in precisions]
    if compile == "on":
        ways += [Way(precision + UNCOMPILED, precision, "off") for precision in precisions]
    if multiplies_bf16(device):
        ways.insert(0, Way(NAIVE_BF16))
    return ways if device.startswith("cuda") else [Way(NAIVE), *ways]


def measure(
    ways: Sequence[Way],
    model: Model,
    reference: ModelSource | None,
    tokens: TokenizedPool,
    repeats: int,
    gemm: Mapping[str, float],
) -> Comparison:
    """Every way over the tokens, and the check that both sides compute the same. ``gemm``: GFLOP/s by dtype name."""
    device, longest = model.device, int(tokens.input_ids.lengths.max())
    loaded = model.load()
    flop = useful_flop(loaded, tokens)
    exact = Way("exact", "exact").ready(loaded, longest)[0](tokens)
    checked = tokens.take(np.arange(min(CHECKED_ROWS, len(tokens))))
    difference = check_same_losses(naive_losses(loaded, checked), exact[: len(checked.input_ids.values)])

    passes, policies, prepared = {}, {}, {}
    for way in ways:
        scored = in_bf16(loaded) if way.name == NAIVE_BF16 else loaded
        seconds, (work, policy) = machine.timed(lambda w=way, m=scored: w.ready(m, longest), device)
        first, _ = machine.timed(lambda w=work, naive=way.precision is None: w(checked if naive else tokens), device)
        passes[way.name] = lambda w=work: w(tokens)
        policies[way.name] = policy()
        prepared[way.name] = 0.0 if way.precision is None else seconds + first
    timings = machine.interleaved(passes, repeats, device)
    if NAIVE in timings.results:
        difference = check_same_losses(timings.results[NAIVE], exact)

    errors = {name: errors_of(losses, exact, tokens.is_response) for name, losses in timings.results.items()}
    spread, pair_time = None, {}
    if reference is not None:
        compared = Model(reference, None, device).load()
        further, spread = score_errors(ways, compared, timings.results, exact, errors, tokens)
        errors |= further
        pair_time = {
            way.name: time_of_pairs(way, passes[way.name], compared, tokens, repeats)
            for way in ways
            if pairs(way, compared)
        }
    # The first pass holds the preparation that comes with it: what it took beyond a pass.
    preparation = {
        name: max(0.0, seconds - statistics.median(timings.seconds[name])) for name, seconds in prepared.items()
    }
    measured = {
        way.name: summed_up(way, timings, preparation, errors[way.name], policies[way.name], tokens, flop, gemm)
        for way in ways
    }
    return Comparison(measured, timings, difference, spread, pair_time)


def pairs(way: Way, reference: torch.nn.Module) -> bool:
    """Whether the product scores base and reference in pairs this way."""
    return way.precision is not None and way.scorer(reference, 0).pairs


def time_of_pairs(
    way: Way, base: Callable[[], object], reference: torch.nn.Module, tokens: TokenizedPool, repeats: int
) -> machine.Ratio:
    """The time of a pass in pairs over that of one under the base and one under the reference."""
    longest = int(tokens.input_ids.lengths.max())
    alone, paired = (way.scorer(reference, longest) for _ in range(2))
    works = {"base": base, "reference": lambda: alone.score(tokens), "pairs": lambda: paired.score_pair(tokens)}
    for work in works.values():
        work()
    seconds = machine.interleaved(works, repeats, keep_results=False).seconds
    two = [sum(both) for both in zip(seconds["base"], seconds["reference"], strict=True)]
    return machine.times_as_fast(seconds["pairs"], two)


def score_errors(
    ways: Sequence[Way],
    reference: torch.nn.Module,
    base: Mapping[str, np.ndarray],
    exact_base: np.ndarray,
    errors: Mapping[str, Errors],
    tokens: TokenizedPool,
) -> tuple[dict[str, Errors], float]:
    """The errors of every way but the naive ones, with those of the score, as the product computes it; the spread of
    the exact score."""
    longest = int(tokens.input_ids.lengths.max())
    exact = Way("exact", "exact").ready(reference, longest)[0](tokens)
    found = {}
    for way in ways:
        if way.precision is not None:
            scorer = way.scorer(reference, longest)
            if scorer.pairs:
                of_base, own = (columns["loss"].values for columns in scorer.score_pair(tokens))
            else:
                of_base, own = base[way.name], scorer.score(tokens)["loss"].values
            found[way.name] = with_score_errors(
                errors[way.name], (of_base, own), (exact_base, exact), tokens.is_response
            )
    return found, float(np.nanstd(exact_base - exact))


def peak_bytes(model: Model, way: Way, tokens: TokenizedPool) -> int:
    """A way's peak memory, measured in a process of its own; of a naive way on the batch that takes the most."""
    gc.collect()
    if model.device.startswith("cuda"):
        torch.cuda.empty_cache()
    rows = most_padded_batch(tokens) if way.precision is None else tokens
    return machine.in_fresh_process(peak_of_pass, model, way, rows)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.scoring", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--reference", default=None, help="adapter or model; 'none' for none (default: trained here)")
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=machine.REPEATS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    compiling = "auto: as for a pass over the whole pool; on: measured beside off"
    parser.add_argument("--compile", choices=COMPILE, default="auto", help=compiling)
    add_model_options(parser)
    parser.add_argument("--without-memory", action="store_true", help="leave out the passes that measure peak memory")
    machine.add_options(parser)
    return parser


def chosen(arguments: argparse.Namespace) -> tuple[Model, str | None]:
    """The model, and the reference by its name where one is given."""
    if arguments.random_model is not None:
        if arguments.model or arguments.reference:
            raise SystemExit("--random-model has random weights: leave out --model and --reference")
        return Model(None, arguments.random_model, arguments.device), "none"
    source = resolve_source(arguments.model or str(smollm2_folder()))
    return Model(source, None, arguments.device), arguments.reference


def main() -> None:
    arguments = options().parse_args()
    if arguments.repeats < 1 or arguments.rows < 1:
        raise SystemExit("--repeats and --rows must be at least 1")
    quiet_libraries()
    busy = machine.refuse_if_busy(allow=arguments.allow_busy)
    where = machine.describe(arguments.device)
    model, named = chosen(arguments)
    pool = load_pool(arguments.pool)
    tokens, others = rows_to_score(pool, arguments.rows, model, arguments.tokenizer)
    expected = len(tokens.input_ids.values) * len(pool) // min(arguments.rows, len(pool))
    reference = reference_model(model, named, others)
    products = product_peaks(arguments.device)
    gemm = {dtype: max(rates.values()) for dtype, rates in products.items()}
    gemm.setdefault("bfloat16", gemm["float32"])  # a CPU without bf16 instructions computes every policy in float32
    ways = planned_ways(arguments.precisions, arguments.compile, arguments.device, expected)
    found = measure(ways, model, reference, tokens, arguments.repeats, gemm)
    measured = found.ways
    if not arguments.without_memory:
        measured = {way.name: replace(measured[way.name], peak_bytes=peak_bytes(model, way, tokens)) for way in ways}
    figures = {
        "setting": described(tokens, model, reference, expected),
        "gemm_gflops": gemm,
        "gemm_gflops_by_product": products,
        "largest_difference_nats": found.largest_difference,
        "score_spread_nats": found.score_spread,
        "pair_time": {name: asdict(ratio) for name, ratio in found.pair_time.items()},
        "others_cores": found.timings.others_cores,
        "ways": {name: asdict(way) for name, way in measured.items()},
    }
    warnings = [*([busy] if busy else []), *found.warnings(arguments.repeats)]
    text = "\n\n".join([*facts(figures, found, arguments.repeats), tables(measured, markdown=arguments.markdown)])
    machine.report("scoring", where, warnings, figures, text, arguments)


if __name__ == "__main__":
    main()
