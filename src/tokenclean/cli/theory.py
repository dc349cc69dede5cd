"""``tokenclean theory``: the error bounds of full and of cleaned tokens, and when cleaning has the lower one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tokenclean.cli.console import out
from tokenclean.errors import RecipeError

if TYPE_CHECKING:
    from tokenclean.report.tables import Table


@dataclass(frozen=True)
class Rates:
    """The arguments of Eq. 6: M, η(D̃), η̂, r̂ and δ."""

    tokens: float
    before: float
    after: float
    kept: float
    delta: float


def theory(
    tokens: Annotated[float, typer.Option(help="M: response tokens before cleaning; 1e6 is a million.")],
    noise_before: Annotated[float, typer.Option(help="η(D̃): share of them that are not valid targets.")],
    noise_after: Annotated[
        float,
        typer.Option(help="η̂: share of them whose label is wrong after cleaning (noise kept, valid ones dropped)."),
    ],
    kept: Annotated[float, typer.Option(help="r̂: share of them that are kept.")],
    delta: Annotated[float, typer.Option(help="δ: each bound may fail with this probability.")] = 0.05,
    log_class_size: Annotated[
        float | None,
        typer.Option(
            help="log|F|: also print the bounds for a class of that many models; at most b·P·log 2 for P trained "
            "parameters of b bits."
        ),
    ] = None,
) -> None:
    """Check whether cleaning lowers the error bound of learning with full tokens (Theorem 5.1, Corollary 5.1.1).

    Prints both bounds, the margin, the least M and the least kept share, and what the proof leaves out.

    Example: tokenclean theory --tokens 1e6 --noise-before 0.3 --noise-after 0.1 --kept 0.7
    """
    rates = Rates(tokens, noise_before, noise_after, kept, delta)
    _check(rates, log_class_size)
    out.print(_table(rates, log_class_size).to_rich())
    out.print()
    for sentence in _sentences(rates, log_class_size):
        out.print(sentence, soft_wrap=True)


def _check(rates: Rates, log_class_size: float | None) -> None:
    problems = []
    if not 1 <= rates.tokens < math.inf:
        problems.append(f"--tokens: expected a number from 1, found {rates.tokens:g}")
    for name, share in (("--noise-before", rates.before), ("--noise-after", rates.after)):
        if not 0 <= share <= 1:
            problems.append(f"{name}: expected a share from 0 to 1, found {share:g}")
    if not 0 < rates.kept <= 1:
        problems.append(f"--kept: expected a share above 0 and at most 1, found {rates.kept:g}")
    if not 0 < rates.delta < 1:
        problems.append(f"--delta: expected a probability between 0 and 1, found {rates.delta:g}")
    if log_class_size is not None and not 0 <= log_class_size < math.inf:
        problems.append(f"--log-class-size: expected a number from 0, found {log_class_size:g}")
    if problems:
        raise RecipeError(problems, "theory")


def _classes(log_class_size: float | None) -> list[tuple[str, float]]:
    """Column headings and their log|F|: that of Eq. 5 and 6, and the user's."""
    from tokenclean.theory import LOG_TWO_MODELS

    asked = [] if log_class_size is None else [(f"log|F| = {log_class_size:.4g}", log_class_size)]
    return [("Eq. 5 and 6", LOG_TWO_MODELS), *asked]


def _table(rates: Rates, log_class_size: float | None) -> Table:
    from tokenclean.report.tables import Table
    from tokenclean.theory import break_even_kept_share, error_bound_of_class, least_tokens, margin

    columns = []
    for _, size in _classes(log_class_size):
        columns.append(
            (
                f"{error_bound_of_class(rates.before, rates.tokens, size, rates.delta):.4f}",
                f"{error_bound_of_class(rates.after, rates.kept * rates.tokens, size, rates.delta):.4f}",
                f"{margin(rates.before, rates.after, rates.kept, rates.tokens, rates.delta, size):+z.4f}",
                _tokens_text(least_tokens(rates.before, rates.after, rates.kept, rates.delta, size)),
                _share_text(break_even_kept_share(rates.before, rates.after, rates.tokens, rates.delta, size)),
            )
        )
    names = (
        f"error bound, {rates.tokens:,.0f} full tokens",
        f"error bound, {rates.kept * rates.tokens:,.0f} kept tokens",
        "margin, the first minus the second",
        "least M",
        "break-even kept share",
    )
    return Table(
        f"Error bounds at η(D̃) = {rates.before:.1%}, η̂ = {rates.after:.1%}, r̂ = {rates.kept:.1%}",
        ("", *(heading for heading, _ in _classes(log_class_size))),
        tuple(zip(names, *columns, strict=True)),
        "least M: the fewest response tokens at which the margin is not below 0, at these rates; break-even: the "
        "smallest kept share at which it is not, at this M and noise",
    )


def _sentences(rates: Rates, log_class_size: float | None) -> list[str]:
    """Whether the condition holds, under which class; whether the rates are possible; what the proof leaves out."""
    from tokenclean.theory import data_quality, error_bound_of_class, margin, possible_noise

    sentences = [
        _verdict("Eq. 6" if number == 0 else f"Eq. 6 with {heading}", rates, size)
        for number, (heading, size) in enumerate(_classes(log_class_size))
    ]
    bounds = [
        error_bound_of_class(noise, tokens, size, rates.delta)
        for _, size in _classes(log_class_size)
        for noise, tokens in ((rates.before, rates.tokens), (rates.after, rates.kept * rates.tokens))
    ]
    if max(bounds) >= 1:
        sentences.append("An error bound of 1 or more says nothing: no error is larger than 1.")
    quality = data_quality(rates.before, rates.after, rates.kept)
    if math.isnan(quality):
        lowest, highest = possible_noise(rates.before, rates.kept)
        sentences.append(
            f"No labels have these three rates: with {1 - rates.before:.1%} valid and {rates.kept:.1%} kept tokens, η̂ "
            f"lies between {lowest:.1%} and {highest:.1%}."
        )
    left_out = (
        "What the proof leaves out: it applies Hoeffding's inequality to the trained model as if the tokens had not "
        "chosen it, so Eq. 5 lacks the size of the model class (--log-class-size adds it); look-up tables on contexts "
        "they have not seen break it (tokenclean.theory.learn_lookup_tables)."
    )
    if not math.isnan(quality):
        honest = margin(rates.before, quality, rates.kept, rates.tokens, rates.delta)
        left_out += (
            f" For cleaned labels it counts η̂ where the distance of the kept from the valid tokens counts, "
            f"{quality:.1%} here; with that the margin of Eq. 6 is {honest:+z.4f}."
        )
    return [*sentences, f"{left_out} And a lower bound is not yet a lower error."]


def _verdict(name: str, rates: Rates, log_class_size: float) -> str:
    from tokenclean.theory import break_even_kept_share, least_tokens, margin, possible_noise

    by = margin(rates.before, rates.after, rates.kept, rates.tokens, rates.delta, log_class_size)
    gain = rates.before - rates.after
    price = gain - by
    removes = f"cleaning removes {gain:.4f} of noise" if gain >= 0 else f"cleaning adds {-gain:.4f} of noise"
    if by >= 0:
        return (
            f"{name} holds: {removes} and pays {price:.4f} for fewer tokens, so the error bound falls by {by:.4f} "
            f"(with probability at least {max(0.0, 1 - 2 * rates.delta):.0%})."
        )
    least = least_tokens(rates.before, rates.after, rates.kept, rates.delta, log_class_size)
    rises = (
        f"{name} does not hold: {removes} and pays {price:.4f} for fewer tokens, so the error bound rises by {-by:.4f}."
    )
    if math.isinf(least):
        return f"{rises} No number of tokens changes that."
    share = break_even_kept_share(rates.before, rates.after, rates.tokens, rates.delta, log_class_size)
    # The limits are symmetric: given η̂ in place of the kept share, they are those of the kept share.
    beyond = " (which no labels with this noise reach)" if share > possible_noise(rates.before, rates.after)[1] else ""
    return (
        f"{rises} It would hold from M = {_tokens_text(least)} on, or, with this noise, from a kept share of "
        f"{_share_text(share)} on{beyond}."
    )


def _tokens_text(tokens: float) -> str:
    return "none" if math.isinf(tokens) else f"{max(1, math.ceil(tokens)):,}"


def _share_text(share: float) -> str:
    if math.isinf(share):
        return "none"
    return f"{share:.1%}" if share >= 0.001 else f"{100 * share:.2g}%"
