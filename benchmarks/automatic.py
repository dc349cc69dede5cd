"""Does ``auto`` leave clean data alone? On three clean pools, three seeds each, beside full tokens.

Each case is what ``tokenclean run DATA`` does by itself. A finished case is a file in OUTPUT/cases and is not measured
again; one that was stopped resumes from its run folder. What counts is the upper end of the 95 % interval of auto minus
full tokens, on held-out rows by which nothing was chosen: at most 0.005 nats a token in every case.

    python -m benchmarks.automatic --data DIR [--rows 1000] [--seeds 42,43,44] [--model demo] [--output runs/automatic]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine
from tokenclean.cleaning.open_run import open_run
from tokenclean.experiment.run import run
from tokenclean.observer import Observer
from tokenclean.recipe import Recipe, data_values, recipe_from

POOLS = {"alpaca": "sft/alpaca.jsonl", "dolly": "sft/dolly.jsonl", "gpteacher": "sft/gpteacher_roleplay.jsonl"}
"""Clean pools -> their file below the data folder."""

BOUND_NATS = 0.005

Document = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One run: which pool, how many rows of it, held-out ones included, and with which seed."""

    pool: str
    rows: int
    seed: int

    @property
    def name(self) -> str:
        """For files and tables."""
        return f"{self.pool}-{self.rows}-s{self.seed}"


def recipe_of(case: Case, data: Path, output: Path, model: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe that ``tokenclean run`` makes for the pool, with the case's rows and seed."""
    values = data_values([str(data / POOLS[case.pool])])
    own = (f"name={case.name}", f"output={json.dumps(str(output))}", f"seed={case.seed}")
    own += (f"pool.max_rows={case.rows}", f"model.base={json.dumps(model)}")
    return recipe_from(values, (*own, *overrides), case.name)


def measure_case(case: Case, data: Path, output: Path, model: str, overrides: tuple[str, ...] = ()) -> Document:
    """What auto chose, and its held-out loss against full tokens, as a JSON value."""
    started = time.monotonic()
    opened = open_run(recipe_of(case, data, output, model, overrides), Observer(note=print))
    result = run(opened)
    choice = result.own.choice
    difference = next(m.against_full for m in result.measured if m.name == result.own.strategy)
    if choice is None or difference is None:
        raise SystemExit(f"{case.name}: expected auto beside full tokens, found {result.own.strategy}; leave --set out")
    return {
        "case": {**asdict(case), "name": case.name},
        "training_rows": len(opened.context.tokens),
        "reported_rows": difference.rows,
        "choice": choice.to_json(),
        "difference": asdict(difference),
        "holds": difference.high <= BOUND_NATS,
        "seconds": time.monotonic() - started,
        "machine": asdict(machine.describe("cpu")),
    }


def finish_cases(
    cases: Sequence[Case], data: Path, output: Path, model: str, overrides: tuple[str, ...]
) -> list[Document]:
    """The document of each case, found or measured. Raises SystemExit for a finished case of another model or other
    overrides."""
    return [
        machine.found_or_measured(
            output / "cases" / f"{case.name}.json",
            {"model": model, "overrides": list(overrides), "case": {**asdict(case), "name": case.name}},
            f"case {number} of {len(cases)}: {case.name}",
            measure_case,
            *(case, data, output / "runs", model, overrides),
        )
        for number, case in enumerate(cases, start=1)
    ]


def case_table(documents: Sequence[Document], *, markdown: bool) -> str:
    """A row a case: what was estimated, tried and chosen, and what that is worth where nothing was chosen by."""
    rows = []
    for document in documents:
        choice, difference = document["choice"], document["difference"]
        rows.append(
            [
                document["case"]["name"],
                "–" if choice["noise"] is None else f"{choice['noise']:.2%}",
                ", ".join(_trial(trial) for trial in choice["trials"]) or "nothing",
                choice["chosen"],
                f"{difference['difference']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})",
                str(document["reported_rows"]),
                "–" if choice["cost"] is None else f"{choice['cost']:.2f}",
                "yes" if document["holds"] else "NO",
            ]
        )
    columns = ["case", "noise", "tried, minus full tokens", "chosen", "auto minus full tokens", "rows", "cost"]
    return machine.table([*columns, f"at most {BOUND_NATS:g}"], rows, markdown=markdown)


def verdict(documents: Sequence[Document]) -> str:
    """Whether the bound holds in every case."""
    failing = [document["case"]["name"] for document in documents if not document["holds"]]
    if failing:
        return (
            f"The bound of {BOUND_NATS:g} nats does not hold in {len(failing)} of {len(documents)} cases: "
            + ", ".join(failing)
        )
    return f"The bound of {BOUND_NATS:g} nats holds in all {len(documents)} cases."


def _trial(trial: Document) -> str:
    difference = trial["difference"]
    return f"{trial['name']} {'no finite loss' if difference is None else f'{difference:+.4f}'}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.automatic", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with sft/*.jsonl")
    parser.add_argument("--output", type=Path, default=Path("runs/automatic"), help="finished cases and run folders")
    parser.add_argument("--model", default="demo", help="base model")
    parser.add_argument("--pools", default=",".join(POOLS), help="which pools, by name")
    parser.add_argument("--rows", type=int, default=1000, help="rows of each pool, held-out ones included")
    parser.add_argument("--seeds", default="42,43,44", help="seeds of each pool")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change the recipe")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write every figure")
    arguments = parser.parse_args()
    names = arguments.pools.split(",")
    if unknown := sorted(set(names) - set(POOLS)):
        raise SystemExit(f"--pools: no pool is called {', '.join(unknown)}; there are {', '.join(POOLS)}")
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    cases = [Case(name, arguments.rows, seed) for name in names for seed in seeds]
    where = machine.in_fresh_process(machine.describe, "cpu")
    documents = finish_cases(cases, arguments.data, arguments.output, arguments.model, tuple(arguments.set))
    text = f"{case_table(documents, markdown=arguments.markdown)}\n\n{verdict(documents)}"
    machine.report("automatic", where, [], {"cases": documents}, text, arguments)
    if not all(document["holds"] for document in documents):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
