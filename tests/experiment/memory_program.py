"""One pass of a model in this process, which prints its peak memory and what was foretold, as JSON.

Arguments: the model's folder, and what to do (see ``test_memory``).
"""

from __future__ import annotations

import gc
import json
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from tokenclean import Ragged, TokenizedPool
from tokenclean.experiment.planning.memory import (
    model_shape,
    model_without_content,
    process_bytes,
    scoring_memory,
    training_memory,
)
from tokenclean.models.loading.load import ModelSource, load_config, load_model
from tokenclean.recipe import LoraSettings, Recipe, TrainingSettings
from tokenclean.scoring.scorer import Scorer
from tokenclean.training.adapters import add_fresh_lora
from tokenclean.training.train_step import TrainingStep

ROWS, LENGTH = 16, 128


def peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def pool() -> TokenizedPool:
    ids = Ragged.from_rows([np.full(LENGTH, 5 + row) for row in range(ROWS)], np.int64)
    is_response = ids.with_values(np.tile(np.arange(LENGTH) >= LENGTH // 2, ROWS))
    nowhere = ids.map_values(np.zeros_like)
    names = tuple(map(str, range(ROWS)))
    cut = np.zeros(ROWS, dtype=bool)
    return TokenizedPool(ids, is_response, nowhere, nowhere, names, ("pool",) * ROWS, ((),) * ROWS, cut, ())


def train(source: ModelSource, settings: TrainingSettings, tokens: TokenizedPool) -> None:
    model = load_model(source)
    if settings.method == "lora":
        model = add_fresh_lora(model, settings.lora, None)
    step = TrainingStep(model, settings)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    weights = tokens.is_response.map_values(lambda labels: labels.astype(np.float32))
    for _ in range(2):
        step(tokens.input_ids, weights, range(ROWS))
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    source, (kind, *how) = ModelSource(sys.argv[1]), sys.argv[2].split()
    config, tokens = load_config(source), pool()
    recipe = {"pool": {"sources": [{"path": "pool.jsonl"}]}, "model": {"base": "base"}}
    if kind == "score":
        loaded = Recipe.model_validate({**recipe, "scoring": {"precision": how[0]}})
        foretold = scoring_memory(model_shape(model_without_content(config)), loaded, "cpu", ROWS * LENGTH)
    else:
        settings = TrainingSettings.model_validate(
            {
                "method": "full" if how[0] == "full" else "lora",
                "lora": LoraSettings(rank=16),
                "pack_tokens": ROWS * LENGTH,
                "precision": how[1] if len(how) > 1 else "mixed",
                "activation_checkpointing": how[0] == "checkpointed",
            }
        )
        foretold = training_memory(config, settings, "cpu", ROWS * LENGTH)
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    process = process_bytes()
    if kind == "score":
        Scorer(load_model(source), precision=how[0], compile="off").score(tokens)
    else:
        train(source, settings, tokens)
    print(json.dumps({"process": process, "foretold": foretold.total, "peak": peak_bytes()}))


if __name__ == "__main__":
    main()
