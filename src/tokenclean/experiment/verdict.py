"""Whether cleaning helped, in one sentence with its interval, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenclean.evaluation.intervals import Interval
from tokenclean.experiment.run_files import ChoiceMade, Difference, MeasuredModel

_NOTHING_DROPPED = 0.995


@dataclass(frozen=True)
class Verdict:
    """``sentence``: the result, with its 95 % interval; ``advice``: what to do next."""

    sentence: str
    advice: str

    def __str__(self) -> str:
        return f"{self.sentence} Next: {self.advice}."


def verdict_of(
    measured: Sequence[MeasuredModel],
    strategy: str | None,
    *,
    heldout_rows: int,
    folder: str,
    choice: ChoiceMade | None = None,
) -> Verdict | None:
    """The verdict on a run's own strategy, against full tokens, else against the base; None if it was not measured.

    ``measured``: the run's models on ``heldout_rows`` held-out conversations. ``folder``: the run folder, for commands.
    ``choice``: what the strategy chose for the user, where it does.
    """
    found = _verdict_of(measured, strategy, heldout_rows=heldout_rows, folder=folder)
    if found is None or choice is None:
        return found
    if choice["chosen"] == "full_tokens":
        advice = f"use its model: tokenclean merge {folder}; --strategy noise_mixture compares cleaning with it"
        return Verdict(choice["sentence"], advice)
    sentence = f"{choice['sentence']} {found.sentence}"
    model = next(m for m in measured if m["name"] == strategy)
    if (of_full := model["against_full"]) is not None and of_full["low"] > 0:
        advice = (
            "go by the rows that are like the text you want: the rows it chose by call it better, these call it worse"
        )
        return Verdict(sentence, advice)
    return Verdict(sentence, found.advice)


def _verdict_of(
    measured: Sequence[MeasuredModel], strategy: str | None, *, heldout_rows: int, folder: str
) -> Verdict | None:
    """The verdict by the measures alone."""
    model = next((m for m in measured if m["name"] == strategy), None)
    if model is None or strategy is None:
        return None
    rows = f"{heldout_rows:,} held-out conversations"
    of_base, of_full = model["against_base"], model["against_full"]
    if of_full is None:
        if of_base is None:
            return None
        control = "" if strategy == "full_tokens" else ", and full tokens were not trained beside it"
        sentence = f"{strategy} is {_compared(of_base, 'the base')} ({_interval(of_base)}; {rows}){control}."
        return Verdict(sentence, _without_control(strategy, of_base))
    found = f"{strategy} is {_compared(of_full, 'full tokens')} ({_interval(of_full)}; {rows})."
    return _against_full(model, of_full, found, folder)


def _against_full(model: MeasuredModel, of_full: Difference, found: str, folder: str) -> Verdict:
    """``found``: the sentence on the held-out loss."""
    signs = {_sign(-of_full["high"], -of_full["low"])}
    if preference := model.get("preference_against_full"):
        change = Interval(**preference)
        found += f" {preference_sentence('It', 'full tokens', change)}"
        signs.add(_sign(change.low, change.high))
    if {1, -1} <= signs:
        return Verdict(f"The measures disagree: {found}", "decide by the measure that stands for the model's use")
    drops_nothing = (model["kept_share"] or 0) >= _NOTHING_DROPPED
    if 1 in signs:
        use = f"use its model: tokenclean merge {folder}"
        if not drops_nothing:
            use += f", or train on the cleaned data: tokenclean export {folder} --to trl"
        return Verdict(f"Cleaning helped: {found}", use)
    if -1 in signs:
        keep_more = "" if drops_nothing else ", or keep more: a higher cleaning.proportion"
        return Verdict(f"Cleaning hurt: {found}", f"train on full tokens{keep_more}")
    if drops_nothing:
        return Verdict(
            f"Cleaning changed nothing that shows: {found}",
            "train on full tokens, since this strategy finds little noise in the data",
        )
    return Verdict(
        f"Cleaning made no difference that shows: {found}",
        "hold out more rows (pool.heldout.rows) to tell smaller differences, or train on full tokens",
    )


def preference_sentence(model: str, control: str, change: Interval) -> str:
    """Whether a model prefers clean answers more than a control does. ``change``: of the margin from the control's, in
    nats a differing token, over pairs."""
    sign = _sign(change.low, change.high)
    how = {1: f"more than {control}", -1: f"less than {control}", 0: f"as much as {control} as far as the pairs show"}
    return (
        f"{model} prefers clean answers {how[sign]} ({change.mean:+.4f} nats a differing token, 95 % interval "
        f"{change.low:+.4f} to {change.high:+.4f}; {change.items:,} pairs)."
    )


def _sign(low: float, high: float) -> int:
    """1 where the whole interval is above 0, -1 where it is below, else 0."""
    return int(low > 0) - int(high < 0)


def _without_control(strategy: str, of_base: Difference) -> str:
    if of_base["low"] > 0:
        return "lower training.learning_rate, since the training made the model worse"
    if strategy == "full_tokens":
        return "compare a cleaning strategy with it: --strategy noise_mixture"
    return "train full tokens beside it: --set evaluation.controls=[full_tokens]"


def _compared(difference: Difference, control: str) -> str:
    """How the held-out loss compares, in words."""
    size = f"{abs(difference['difference']):.4f} nats a token"
    if difference["high"] < 0:
        return f"better than {control} by {size}"
    if difference["low"] > 0:
        return f"worse than {control} by {size}"
    return f"as good as {control} as far as the held-out loss shows"


def _interval(difference: Difference) -> str:
    return f"{difference['difference']:+.4f}, 95 % interval {difference['low']:+.4f} to {difference['high']:+.4f}"
