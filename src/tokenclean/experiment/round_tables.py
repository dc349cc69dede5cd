"""Self-evolving cleaning round by round, beside the base and the controls that train full tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tokenclean.cleaning import StrategyResult
from tokenclean.cleaning.context import RunContext
from tokenclean.cleaning.model import Model
from tokenclean.cleaning.round_records import HeldoutLoss, Round, first_selection, heldout_loss
from tokenclean.cleaning.strategy_result import proportion_of
from tokenclean.recipe import STRATEGIES
from tokenclean.report.tables import Table, share_text
from tokenclean.selection import jaccard, select_tokens

_MOST_SOURCES_SHOWN = 4


@dataclass(frozen=True)
class RoundLine:
    """A model on the held-out rows, and the ``round`` it came from; None for the base and the controls, of whose
    response tokens ``kept_share`` were kept (None for the base)."""

    name: str
    kept_share: float | None
    heldout: HeldoutLoss
    round: Round | None = None


@dataclass(frozen=True)
class RoundByRound:
    """The base, the warm-up and every round in their order, then the controls; ``tokens_kept_first`` and
    ``tokens_dropped_first``: held-out response tokens that the first selection would keep and drop. ``agreement``:
    between the warm-up and every round's model, Jaccard overlap of the held-out tokens that each would keep as the
    reference (the top k % by base loss − its loss)."""

    lines: tuple[RoundLine, ...]
    tokens_kept_first: int
    tokens_dropped_first: int
    agreement: tuple[tuple[float, ...], ...]


def measure_rounds(context: RunContext, results: Sequence[StrategyResult]) -> RoundByRound | None:
    """The rounds of self-evolving cleaning and what they are compared with; None where it did not run."""
    evolved = next((result for result in results if result.round_records), None)
    if evolved is None:
        return None
    records = evolved.round_records
    is_kept_first = first_selection(context, records[1].selection)
    lines = [RoundLine("base", None, heldout_loss(context, context.base, is_kept_first))]
    lines += [RoundLine(r.model.name, r.selection.kept_share, r.heldout, r) for r in records]
    for result in results:
        if (record := STRATEGIES.get(result.strategy)) and record.trains == "all tokens":
            lines.append(RoundLine(result.strategy, 1.0, heldout_loss(context, result.model, is_kept_first)))
    kept = int(is_kept_first.values.sum())
    dropped = int(context.heldout.is_response.values.sum()) - kept
    return RoundByRound(
        tuple(lines),
        kept,
        dropped,
        _agreement(context, [record.model for record in records], proportion_of(context.recipe, evolved)),
    )


def _agreement(context: RunContext, models: Sequence[Model], proportion: float) -> tuple[tuple[float, ...], ...]:
    base, labels = context.heldout_losses(context.base), context.heldout.is_response
    kept = [select_tokens(base - context.heldout_losses(m), labels, proportion=proportion) for m in models]
    return tuple(tuple(jaccard(one, other) for other in kept) for one in kept)


def rounds_table(rounds: RoundByRound) -> Table:
    """A line a model; the kept share of each source too where there are two to four of them."""
    names = sorted({name for line in rounds.lines if line.round for name in line.round.selection.source_shares})
    sources = names if 2 <= len(names) <= _MOST_SOURCES_SHOWN else []
    note = (
        "split: the one that the model was trained on; from the second on its reference, which scored the split, is "
        "the line above. threshold: lowest kept score, nats. kept: share of the split's response tokens"
        + (", then of each source's" if sources else "")
        + f". loss: nats a held-out response token; on kept, on dropped: over the {rounds.tokens_kept_first:,} whose "
        "score under the warm-up reaches the first round's threshold, and over the other "
        f"{rounds.tokens_dropped_first:,}, where drift shows (read both from the warm-up on: its "
        "difference to the base is what parts the tokens)"
    )
    if rolled_back := [line.name for line in rounds.lines if line.round and line.round.is_rolled_back]:
        note += (
            f". {', '.join(rolled_back)} is not part of the output, since its loss is above that of the line before; "
            "these held-out rows chose the output, so its loss here flatters it a little"
        )
    return Table(
        "Self-evolving, round by round",
        ("model", "split", "threshold", "kept", *sources, "loss", "on kept", "on dropped"),
        tuple(_row(line, sources) for line in rounds.lines),
        note,
    )


def rounds_document(rounds: RoundByRound) -> dict[str, object]:
    """Everything that is known of them, for JSON."""
    return {
        "heldout_tokens": {"kept_first": rounds.tokens_kept_first, "dropped_first": rounds.tokens_dropped_first},
        "lines": [_document(line) for line in rounds.lines],
        "agreement": {
            "models": [line.name for line in rounds.lines if line.round],
            "jaccard": rounds.agreement,
        },
    }


def _row(line: RoundLine, sources: Sequence[str]) -> tuple[str, ...]:
    heldout, record = line.heldout, line.round
    losses = map(_nats_text, (heldout.all_tokens, heldout.kept_first, heldout.dropped_first))
    if record is None:
        return (line.name, "–", "–", share_text(line.kept_share), *("–" for _ in sources), *losses)
    selection = record.selection
    return (
        line.name + (" rolled back" if record.is_rolled_back else ""),
        f"D{record.split}",
        _nats_text(selection.threshold),
        share_text(selection.kept_share),
        *(share_text(selection.source_shares.get(name)) for name in sources),
        *losses,
    )


def _document(line: RoundLine) -> dict[str, object]:
    record = line.round
    known = {"model": line.name, "kept_share": line.kept_share, "heldout_nats": asdict(line.heldout)}
    if record is None:
        return known
    return known | {
        "split": record.split,
        "reference": record.reference and record.reference.name,
        "threshold_nats": record.selection.threshold,
        "source_thresholds_nats": dict(record.selection.source_thresholds),
        "source_kept_shares": dict(record.selection.source_shares),
        "is_rolled_back": record.is_rolled_back,
    }


def _nats_text(nats: float | None) -> str:
    return "–" if nats is None else f"{nats:.4f}"
