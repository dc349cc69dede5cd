"""The figures of the benchmark of scoring: speeds, errors, when a preparation has paid off, and their tables.

``docs/benchmarks.md`` defines every column.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks import machine
from benchmarks.scoring_ways import NAIVE, NAIVE_BF16, Way
from tokenclean import Ragged, TokenizedPool, select_tokens
from tokenclean.selection import jaccard

TOLERANCE_NATS = 1e-3
PROPORTION = 0.6
LEAST_SPREAD_NATS = 1e-3
UNCOMPILED = ", not compiled"


@dataclass(frozen=True)
class Errors:
    """Differences from ``exact`` in nats over the response tokens; of the kept set the Jaccard index."""

    loss_mean: float
    loss_max: float
    score_mean: float | None = None
    score_max: float | None = None
    jaccard: float | None = None


@dataclass(frozen=True)
class Measured:
    """All that was found out about one way. ``paid_off_tokens``: against which way -> from how many tokens on."""

    policy: Mapping[str, Any]
    seconds: list[float]
    tokens_per_second: float
    useful_gflops: float
    useful_mfu: float
    times_as_fast: dict[str, machine.Ratio]
    errors: Errors
    preparation_seconds: float
    paid_off_tokens: dict[str, float]
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Comparison:
    """All ways over the same tokens. ``largest_difference``: of naive float32 and ``exact`` losses, nats.
    ``score_spread``: standard deviation of the exact scores, nats; None without a reference. ``pair_time``: of a way
    that scores base and reference in pairs, its time over that of two passes."""

    ways: dict[str, Measured]
    timings: machine.Timings
    largest_difference: float
    score_spread: float | None
    pair_time: dict[str, machine.Ratio]

    def warnings(self, repeats: int) -> list[str]:
        """Why these figures are no evidence, in sentences."""
        found = self.timings.warnings(repeats)
        if self.score_spread is not None and self.score_spread < LEAST_SPREAD_NATS:
            found.append(
                f"no evidence of selection: the scores' standard deviation is {self.score_spread:.1e} nats, since the "
                "reference hardly differs from the base; name another --reference"
            )
        return found


def errors_of(losses: np.ndarray, exact: np.ndarray, is_response: Ragged) -> Errors:
    """Errors of losses (T,) alone."""
    difference = np.abs(losses - exact)[is_response.values]
    return Errors(float(difference.mean()), float(difference.max()))


def with_score_errors(
    errors: Errors,
    losses: tuple[np.ndarray, np.ndarray],
    exact: tuple[np.ndarray, np.ndarray],
    is_response: Ragged,
) -> Errors:
    """The errors with those of score = base − reference and of the set it keeps; ``losses``: (base, reference)."""
    scores, exact_scores = (is_response.with_values(base - reference) for base, reference in (losses, exact))
    difference = np.abs(scores.values - exact_scores.values)[is_response.values]
    kept = [select_tokens(s, is_response, proportion=PROPORTION, level="global") for s in (scores, exact_scores)]
    return replace(
        errors, score_mean=float(difference.mean()), score_max=float(difference.max()), jaccard=jaccard(*kept)
    )


def check_same_losses(naive: np.ndarray, exact: np.ndarray) -> float:
    """The largest difference in nats at the response; SystemExit unless both sides computed the same."""
    is_scored = ~np.isnan(exact)
    if not np.array_equal(is_scored, ~np.isnan(naive)):
        raise SystemExit("naive and exact give losses at other positions: they do not compute the same")
    largest = float(np.abs(naive - exact)[is_scored].max())
    if largest >= TOLERANCE_NATS:
        raise SystemExit(
            f"naive float32 and exact losses differ by {largest:.2e} nats, more than {TOLERANCE_NATS:g}: they do not "
            "compute the same, so their speeds cannot be compared"
        )
    return largest


def paid_off_tokens(preparation: float, per_token: float, other_preparation: float, other_per_token: float) -> float:
    """Tokens of a pass from which a preparation has paid off against another way; inf where it never does.

    All in seconds; ``per_token`` without the preparation.
    """
    further = max(preparation - other_preparation, 0.0)
    return further / (other_per_token - per_token) if per_token < other_per_token else float("inf")


def summed_up(
    way: Way,
    timings: machine.Timings,
    preparation: Mapping[str, float],
    errors: Errors,
    policy: Mapping[str, Any],
    tokens: TokenizedPool,
    flop: float,
    gemm: Mapping[str, float],
) -> Measured:
    """A way's figures, from the median of its seconds."""
    total = len(tokens.input_ids.values)
    median = {name: statistics.median(seconds) for name, seconds in timings.seconds.items()}
    seconds = timings.seconds[way.name]
    against = [name for name in (NAIVE, NAIVE_BF16) if name in median and name != way.name]
    ahead = [*against[:1], way.name + UNCOMPILED] if way.precision is not None else []
    return Measured(
        policy=policy,
        seconds=seconds,
        tokens_per_second=total / median[way.name],
        useful_gflops=flop / median[way.name] / 1e9,
        useful_mfu=flop / median[way.name] / 1e9 / gemm[way.peak_dtype],
        times_as_fast={name: machine.times_as_fast(timings.seconds[name], seconds) for name in against},
        errors=errors,
        preparation_seconds=preparation[way.name],
        paid_off_tokens={
            name: paid_off_tokens(
                preparation[way.name], median[way.name] / total, preparation[name], median[name] / total
            )
            for name in ahead
            if name in median
        },
    )


def tables(measured: Mapping[str, Measured], *, markdown: bool) -> str:
    """Speed and error of every way, then what its preparation takes."""
    naive = [name for name in (NAIVE, NAIVE_BF16) if name in measured]
    header = ["variant", "tokens/s", "useful GFLOP/s", "useful MFU", *(f"× {name}" for name in naive)]
    header += ["loss error mean / max", "score error mean", "Jaccard", "peak memory"]
    rows = []
    for name, way in measured.items():
        ratios = [_ratio(way.times_as_fast.get(baseline)) for baseline in naive]
        errors = f"{way.errors.loss_mean:.1e} / {way.errors.loss_max:.1e}"
        score, kept = _number(way.errors.score_mean, ".1e"), _number(way.errors.jaccard, ".4f")
        peak = "–" if way.peak_bytes is None else f"{way.peak_bytes / 1024**3:.2f} GiB"
        speed = [f"{way.tokens_per_second:,.0f}", f"{way.useful_gflops:,.1f}", f"{way.useful_mfu:.1%}"]
        rows.append([name, *speed, *ratios, errors, score, kept, peak])
    prepared = [
        [name, f"{way.preparation_seconds:.1f}", _paid_off(way.paid_off_tokens), str(way.policy.get("kernel", "–"))]
        for name, way in measured.items()
        if name not in naive
    ]
    speed = machine.table(header, rows, markdown=markdown)
    return f"{speed}\n\n" + machine.table(
        ["variant", "preparation s", "paid off after", "kernel"], prepared, markdown=markdown
    )


def facts(figures: Mapping[str, Any], found: Comparison, repeats: int) -> list[str]:
    """What was scored and how, in sentences above the tables."""
    spread = found.score_spread
    dtypes = {"float32": "float32", "bfloat16": "bf16"}
    gemm = "; ".join(
        f"in {dtypes[dtype]} {', '.join(f'{rate:,.0f} ({whose})' for whose, rate in rates.items())}"
        for dtype, rates in figures["gemm_gflops_by_product"].items()
    )
    score = "" if spread is None else f"; the exact score's standard deviation is {spread:.2e} nats"
    pairs = [
        f"{name}: base and reference in pairs take {_ratio(ratio)} times two passes; its score is of pairs"
        for name, ratio in found.pair_time.items()
    ]
    return [
        "{model}; reference {reference}; {rows} rows, {tokens:,} tokens, {response_tokens:,} response, longest "
        "{longest_row:,}; the naive way computes {naive_padding:.2f} tokens a token; they stand for a pass of "
        "{expected_tokens:,} tokens".format(**figures["setting"]),
        f"matrix product, GFLOP/s: {gemm}",
        f"medians of {repeats}, {found.timings.others_text}; "
        f"naive float32 and exact losses differ by {found.largest_difference:.1e} nats at most{score}",
        *pairs,
    ]


def _ratio(ratio: machine.Ratio | None) -> str:
    return "1" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _paid_off(paid_off: Mapping[str, float]) -> str:
    told = (f"{tokens:,.0f} tokens" if np.isfinite(tokens) else "never" for tokens in paid_off.values())
    return "; ".join(f"{text} against {name.lstrip(', ')}" for text, name in zip(told, paid_off, strict=True))
