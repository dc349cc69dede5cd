"""Peak memory of ``tokenclean score`` over pools of growing size, or of a training over its steps: neither should grow.

The pools hold the short rows of the shipped demo pool over and over, each with a running number; the model is a tiny
random Llama, so that what is measured is the pass and not the weights. Each pool is scored by a process of its own,
whose peak resident memory the system tells when it ends. Rows a second are those of the whole command, loading
included, and say little about a model of any use.

With ``--steps`` a LoRA is trained on SmolLM2's first layers, in steps of eight rows of the shipped demo pool. The first
step takes the whole pool, whose packs are as full as packs get, so that later peaks are no larger packs. Every step has
packs of other sizes.

    python -m benchmarks.memory [--rows 10000 100000 1000000] [--folder FOLDER] [--json FILE]
    python -m benchmarks.memory --steps 50 2000 [--layers 2] [--precision mixed]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path

from benchmarks import machine

ROWS = (10_000, 100_000, 1_000_000)
BATCH = 8
ROW_BYTES = 300
VOCABULARY = 600
MIB = 1 << 20


@dataclass(frozen=True)
class Measured:
    """One pool, scored. ``peak_bytes``: resident memory of the process that scored it."""

    rows: int
    pool_bytes: int
    table_bytes: int
    shards: int
    seconds: float
    peak_bytes: int

    @property
    def rows_per_second(self) -> float:
        return self.rows / self.seconds


def write_pool(path: Path, count: int) -> None:
    """``count`` rows, those of the demo pool up to ROW_BYTES in turn; the question of each ends with its number."""
    from tokenclean.experiment.demo import pool_path

    lines = pool_path().read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if len(line.encode()) <= ROW_BYTES]
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(islice(cycle(rows), count), start=1):
            first, *rest = row["messages"]
            numbered = {**row, "messages": [{**first, "content": f"{first['content']} ({number})"}, *rest]}
            file.write(json.dumps(numbered, ensure_ascii=False) + "\n")


def save_tiny_model(folder: Path, seed: int = 0) -> None:
    """A random Llama of one layer with a byte-level BPE tokenizer of VOCABULARY tokens."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from tokenclean.experiment.demo import pool_path

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, show_progress=False)
    backend.train([str(pool_path())], trainer)
    backend.add_special_tokens([AddedToken("</s>", normalized=False)])
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=backend.get_vocab_size(),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def score(pool: Path, model: Path, output: Path) -> tuple[float, int]:
    """Seconds and peak bytes of ``tokenclean score``. Raises SystemExit with what it said where it fails."""
    command = [sys.executable, "-m", "tokenclean", "score", str(pool), "--base", str(model), "-o", str(output)]
    return machine.watched_command([*command, "--device", "cpu"], HF_HUB_OFFLINE="1")


def measure(folder: Path, model: Path, rows: int) -> Measured:
    """Write a pool, score it, and take both away again."""
    pool, output = folder / "pool.jsonl", folder / f"scores-{rows}.parquet"
    write_pool(pool, rows)
    seconds, peak_bytes = score(pool, model, output)
    shards = len(list(output.with_suffix(".shards").glob("stages/losses-*")))
    found = Measured(rows, pool.stat().st_size, output.stat().st_size, shards, seconds, peak_bytes)
    pool.unlink()
    output.unlink()
    return found


def peaks_of_steps(steps: Sequence[int], layers: int, precision: str) -> list[int]:
    """Peak resident bytes of this process after each number of steps of one training."""
    from tokenclean.models.device import limit_compiled_products

    limit_compiled_products()  # as the command line does, before torch runs
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tokenclean import load_pool, tokenize_pool
    from tokenclean.cli.console import quiet_libraries
    from tokenclean.experiment.demo import pool_path
    from tokenclean.models.loading.convert import smollm2_folder
    from tokenclean.recipe import TrainingSettings
    from tokenclean.training.adapters import add_fresh_lora
    from tokenclean.training.train_step import TrainingStep

    quiet_libraries()
    folder = str(smollm2_folder())
    tokens = tokenize_pool(load_pool(pool_path()), AutoTokenizer.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    del model.model.layers[layers:]
    settings = TrainingSettings.model_validate({"precision": precision})
    torch.manual_seed(0)
    wrapped = add_fresh_lora(model, settings.lora, None)
    step = TrainingStep(wrapped, settings, longest_row=int(tokens.input_ids.lengths.max()))
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-5)
    weights = tokens.is_response.map_values(lambda values: values.astype(np.float32))
    random = np.random.default_rng(0)
    peaks: list[int] = []
    for number in range(1, max(steps) + 1):
        rows = random.choice(len(tokens), BATCH, replace=False) if number > 1 else np.arange(len(tokens))
        step(tokens.input_ids, weights, rows.tolist())
        optimizer.step()
        optimizer.zero_grad()
        if number in steps:
            peaks.append(machine.peak_memory("cpu"))
    return peaks


def table_of_steps(steps: Sequence[int], peaks: Sequence[int], *, markdown: bool) -> str:
    lines = [(f"{n:,}", f"{p / MIB:,.0f}", f"{p / peaks[0]:.3f}") for n, p in zip(steps, peaks, strict=True)]
    return machine.table(("steps", "peak MiB", "x first"), lines, markdown=markdown)


def table(measured: Sequence[Measured], *, markdown: bool) -> str:
    header = ("rows", "pool MiB", "table MiB", "shards", "seconds", "rows/s", "peak MiB", "x first")
    lines = [
        (
            f"{m.rows:,}",
            f"{m.pool_bytes / MIB:,.1f}",
            f"{m.table_bytes / MIB:,.1f}",
            f"{m.shards:,}",
            f"{m.seconds:,.1f}",
            f"{m.rows_per_second:,.0f}",
            f"{m.peak_bytes / MIB:,.0f}",
            f"{m.peak_bytes / measured[0].peak_bytes:.2f}",
        )
        for m in measured
    ]
    return machine.table(header, lines, markdown=markdown)


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of scoring pools of growing size.")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="sizes of the pools, in rows")
    parser.add_argument("--folder", default=None, help="where pools, shards and tables lie for the time of the run")
    parser.add_argument("--steps", type=int, nargs="+", default=None, help="measure a training after these steps")
    parser.add_argument("--layers", type=int, default=2, help="layers of the model that is trained")
    parser.add_argument("--precision", choices=("exact", "safe", "fast", "mixed"), default="mixed")
    machine.add_options(parser)
    arguments = parser.parse_args()
    if min(*arguments.rows, *(arguments.steps or ()), arguments.layers, 1) < 1:
        raise SystemExit("--rows, --steps and --layers must be at least 1")

    busy = machine.refuse_if_busy(allow=True)  # memory is the same on a busy machine; the seconds are not
    # This process stays small: the peak that the system tells of a child begins with its parent's.
    where = machine.in_fresh_process(machine.describe, "cpu")
    warnings = [busy] if busy else []
    if arguments.steps:
        steps = sorted(arguments.steps)
        peaks = machine.in_fresh_process(peaks_of_steps, steps, arguments.layers, arguments.precision)
        text = table_of_steps(steps, peaks, markdown=arguments.markdown)
        machine.report("memory", where, warnings, {"steps": dict(zip(steps, peaks, strict=True))}, text, arguments)
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        model = Path(name) / "model"
        machine.in_fresh_process(save_tiny_model, model)
        measured = [measure(Path(name), model, rows) for rows in arguments.rows]
    figures = {"pools": [{**asdict(m), "rows_per_second": m.rows_per_second} for m in measured]}
    machine.report("memory", where, warnings, figures, table(measured, markdown=arguments.markdown), arguments)


if __name__ == "__main__":
    main()
