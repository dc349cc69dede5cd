"""What cleaning a large pool costs: FLOP, GPU hours, disk and network for 1B, 10B and 100B response tokens.

Arithmetic, not a measurement: useful FLOP by the model's shape (``experiment.planning.flop``), GPU hours from the
measured share of a data sheet's rate (``experiment.planning.hardware``), disk from what a stored shard takes.

    python -m benchmarks.scale [--gpus 64xH200] [--row-tokens 500] [--response-share 0.5] [--markdown] [--json FILE]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks import machine
from benchmarks.scoring_ways import SHAPES
from tokenclean.experiment.planning.flop import ModelSize, model_size, scoring_flop, training_flop
from tokenclean.experiment.planning.hardware import Hardware
from tokenclean.ragged import Ragged
from tokenclean.recipe import TrainingSettings
from tokenclean.scoring.stored_losses import SHARD_TOKENS
from tokenclean.token_table import write_column

MODELS = ("8b", "70b")
RESPONSE_TOKENS = (10**9, 10**10, 10**11)
CHARACTERS_PER_TOKEN = 4
TRAINING = TrainingSettings(precision="mixed")


@dataclass(frozen=True)
class PoolCost:
    """Of cleaning with a given reference: base and reference score every row, then the base is trained on all.

    ``losses_bytes``: of both models' losses, as stored. ``read_bytes``: text that the workers read, once a model.
    ``weights_bytes``: what one GPU loads, the base in bf16. ``shards``: files of losses.
    """

    response_tokens: int
    scoring_flop: float
    training_flop: float
    losses_bytes: float
    read_bytes: float
    weights_bytes: float
    shards: int


def cost_of(size: ModelSize, response_tokens: int, row_tokens: int, response_share: float) -> PoolCost:
    """``row_tokens`` of every row, ``response_share`` of them response."""
    rows = response_tokens / (row_tokens * response_share)
    length, response = np.array([row_tokens]), np.array([row_tokens * response_share])
    tokens = rows * row_tokens
    return PoolCost(
        response_tokens,
        2 * rows * scoring_flop(size, length, response),
        rows * training_flop(size, TRAINING, length, response),
        2 * response_tokens * stored_bytes(row_tokens, response_share),
        2 * tokens * CHARACTERS_PER_TOKEN,
        2.0 * size.total,
        2 * int(np.ceil(tokens / SHARD_TOKENS)),
    )


def stored_bytes(row_tokens: int, response_share: float) -> float:
    """Bytes a response token of one shard's losses, written as a run writes them. The losses are drawn at random, which
    costs little: those of a model hardly compress either."""
    rows = max(1, SHARD_TOKENS // row_tokens)
    losses = np.full((rows, row_tokens), np.nan, dtype=np.float32)
    response = round(row_tokens * response_share)
    losses[:, row_tokens - response :] = np.random.default_rng(0).exponential(size=(rows, response))
    column = Ragged(losses.ravel(), np.arange(rows + 1) * row_tokens)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "losses.parquet"
        write_column(column, "loss", file)
        return file.stat().st_size / (rows * response)


def sizes(names: tuple[str, ...] = MODELS) -> dict[str, ModelSize]:
    """Llamas by name, counted without their weights."""
    from transformers import LlamaConfig

    return {name: model_size(LlamaConfig(**SHAPES[name]), TRAINING) for name in names}


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--gpus", type=Hardware.parse, default=Hardware.parse("64xH200"), help="such as 64xH200")
    parser.add_argument("--row-tokens", type=int, default=500, help="tokens of a row")
    parser.add_argument("--response-share", type=float, default=0.5, help="share of them in the response")
    parser.add_argument("--precision", choices=("fast", "safe", "exact"), default="fast", help="of the passes")
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write every figure")
    options = parser.parse_args()
    gpus: Hardware = options.gpus
    figures, rows = [], []
    for name, size in sizes().items():
        for tokens in RESPONSE_TOKENS:
            cost = cost_of(size, tokens, options.row_tokens, options.response_share)
            passes = gpus.seconds(cost.scoring_flop, 0.0, options.precision, TRAINING.precision)
            training = gpus.seconds(0.0, cost.training_flop, options.precision, TRAINING.precision)
            figures.append({"model": name, "passes_s": passes, "training_s": training, **asdict(cost)})
            rows.append(
                (
                    f"{name.upper()}, {tokens / 1e9:,.0f}B",
                    f"{cost.scoring_flop / 1e21:,.2f}",
                    f"{cost.training_flop / 1e21:,.2f}",
                    f"{passes * gpus.count / 3600:,.0f}",
                    f"{training * gpus.count / 3600:,.0f}",
                    _duration(passes + training),
                    f"{cost.losses_bytes / 1e9:,.1f}",
                    f"{cost.read_bytes / 1e9:,.0f}",
                    f"{cost.weights_bytes * gpus.count / 1e9:,.0f}",
                    f"{cost.shards:,}",
                )
            )
    header = ("model, response tokens", "passes, ZFLOP", "training, ZFLOP", "GPU hours, passes", "GPU hours, training")
    header += (f"time on {gpus}", "losses, GB", "text read, GB", "weights loaded, GB", "shards")
    text = machine.table(header, rows, markdown=options.markdown)
    machine.report("scale", machine.describe("cpu"), [], {"cells": figures}, text, options)


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return f"{hours:,.1f} h" if hours < 48 else f"{hours / 24:,.0f} days"


if __name__ == "__main__":
    main()
