"""Speed and memory of a LoRA training step on selected tokens, against the naive way, on the same rows in one run.

Naive: float32 (beside it bf16 weights, where the device multiplies bf16), batches of 6 padded to the longest, their
gradients added up, full float32 logits, unselected tokens labelled −100; PEFT's LoRA with its own dropout. Ours: the
product's step, packed, with the head on selected tokens alone. Both make one optimizer step of the same rows, and with
dropout off both must give the same loss and gradient norm. ``--trl`` adds TRL's SFTTrainer with its quickest settings.
On a GPU ours is also measured with the norm and the gated product of liger-kernel, where it is installed.

    python -m benchmarks.training [--pool FILE] [--rows 48] [--selected 0.45] [--repeats 5] [--trl] [--markdown]
                                  [--json FILE]
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers.integrations.liger import apply_liger_kernel

from benchmarks import machine
from benchmarks.scoring_ways import (
    NAIVE,
    NAIVE_BATCH,
    NAIVE_BF16,
    SEED,
    Model,
    add_model_options,
    described,
    in_bf16,
    multiplies_bf16,
    rows_to_score,
)
from benchmarks.trl_step import trl_forward
from tokenclean import Ragged, TokenizedPool, load_pool, select_tokens
from tokenclean.cli.console import quiet_libraries
from tokenclean.models.loading.convert import smollm2_folder
from tokenclean.models.loading.load import load_tokenizer, resolve_source
from tokenclean.recipe import LoraSettings, TrainingSettings
from tokenclean.training.adapters import add_fresh_lora
from tokenclean.training.train_step import TrainingStep

TOLERANCE = 1e-3
"""Largest difference of loss and gradient norm, relative, between the naive way and ``exact``, dropout off."""


@dataclass(frozen=True)
class Way:
    """A way to take a step. ``precision``: of our step; None is the naive way, or TRL's where ``trl`` names its
    batches. ``with_liger``: our step with Liger's kernels."""

    name: str
    precision: str | None = None
    dropout: float = 0.1
    shares_dropout: bool = True
    trl: Literal["padded", "packed", "liger"] | None = None
    as_bf16: bool = False
    with_liger: bool = False

    def settings(self, arguments: argparse.Namespace) -> TrainingSettings:
        return TrainingSettings.model_validate(
            {
                "precision": self.precision or "exact",
                "pack_tokens": arguments.pack_tokens,
                "lora": {"rank": arguments.rank, "dropout": self.dropout, "shared_dropout": self.shares_dropout},
            }
        )

    def ready(
        self, model: Model, tokens: TokenizedPool, weights: Ragged, arguments: argparse.Namespace
    ) -> Callable[[], tuple[float, float]]:
        """Load the model and give what takes one optimizer step: its loss, and the gradient's norm."""
        settings = self.settings(arguments)
        loaded = in_bf16(model.load()) if self.as_bf16 and self.trl is None else model.load()
        torch.manual_seed(SEED)
        wrapped = add_fresh_lora(loaded, LoraSettings(**settings.lora.model_dump()), None)
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        with torch.no_grad():  # a fresh LoRA's B is 0, and so would be half of the gradient
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.01, generator=torch.Generator(parameter.device).manual_seed(SEED))
        optimizer = torch.optim.AdamW(trained, lr=1e-5)
        forward: Callable[[], float]
        if self.trl is not None:
            tokenizer = load_tokenizer(arguments.tokenizer or model.source)
            packing, with_liger = self.trl != "padded", self.trl == "liger"
            forward = trl_forward(
                wrapped, tokenizer, tokens, weights, packing=packing, as_bf16=self.as_bf16, with_liger=with_liger
            )
        elif self.precision is None:
            wrapped.train()
            forward = lambda: naive_loss(wrapped, tokens, weights)  # noqa: E731
        else:
            step = TrainingStep(wrapped, settings, longest_row=int(tokens.input_ids.lengths.max()))
            if self.with_liger:
                # Its rotary embedding is left out: it would replace that of every model in this process.
                kernels = ("rope", "cross_entropy", "fused_linear_cross_entropy")
                apply_liger_kernel(wrapped, dict.fromkeys(kernels, False))
            forward = lambda: step(tokens.input_ids, weights, range(len(tokens)))  # noqa: E731

        def work() -> tuple[float, float]:
            loss = forward()
            norm = torch.linalg.vector_norm(torch.stack([p.grad.float().norm() for p in trained if p.grad is not None]))
            optimizer.step()
            optimizer.zero_grad()
            return loss, float(norm)

        return work


def naive_loss(model: torch.nn.Module, tokens: TokenizedPool, weights: Ragged) -> float:
    """Mean loss of the selected tokens, its gradient added up micro-batch by micro-batch."""
    device, total, loss = next(model.parameters()).device, float(weights.values.sum()), 0.0
    for first in range(0, len(tokens), NAIVE_BATCH):
        rows = range(first, min(first + NAIVE_BATCH, len(tokens)))
        longest = int(tokens.input_ids.lengths[first : rows.stop].max())
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, row in enumerate(rows):
            row_ids, weight = torch.from_numpy(tokens.input_ids[row]), torch.from_numpy(weights[row])
            ids[i, : len(row_ids)], mask[i, : len(row_ids)] = row_ids, 1
            labels[i, : len(row_ids)] = row_ids.masked_fill(weight == 0, -100)
        ids, mask, labels = ids.to(device), mask.to(device), labels.to(device)
        logits = model(input_ids=ids, attention_mask=mask).logits.float()
        summed = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum") / total
        summed.backward()
        loss += float(summed.detach())
    return loss


def selected_weights(tokens: TokenizedPool, share: float) -> Ragged:
    """1.0 for this share of all tokens, drawn among the response tokens; else 0.0."""
    proportion = min(1.0, share * len(tokens.input_ids.values) / int(tokens.is_response.values.sum()))
    kept = select_tokens(None, tokens.is_response, proportion=proportion, level="random", seed=SEED)
    return kept.map_values(lambda labels: labels.astype(np.float32))


def planned_ways(device: str, precisions: list[str], *, with_trl: bool = False) -> list[Way]:
    """Naive ways first, then TRL's; ours with dropout by one mask for each shared input, then the last one in two more
    forms.

    On a GPU, whose memory all of them have to share, without these forms.
    """
    naive = [Way(NAIVE)] if not device.startswith("cuda") else []
    naive += [Way(NAIVE_BF16, as_bf16=True)] if multiplies_bf16(device) else []
    if with_trl:
        naive += trl_ways(device)
    ours, last = [Way(precision, precision) for precision in precisions], precisions[-1]
    if device.startswith("cuda"):
        liger = [Way(f"{last}, Liger's norm and gate", last, with_liger=True)] if find_spec("liger_kernel") else []
        return [*naive, *ours, *liger]
    return [
        *naive,
        *ours,
        Way(f"{last}, a mask a module", last, shares_dropout=False),
        Way(f"{last}, dropout off", last, dropout=0.0),
    ]


def trl_ways(device: str) -> list[Way]:
    """TRL's SFTTrainer, padded and packed, in float32 on a CPU and, where the device multiplies bf16, with autocast; on
    a GPU also packed with Liger's kernels, where they are installed."""
    is_gpu = device.startswith("cuda")
    dtypes = [] if is_gpu else [(False, "")]
    dtypes += [(True, ", bf16")] if multiplies_bf16(device) else []
    ways = [
        Way(f"TRL, {batches}{dtype}", trl=batches, as_bf16=as_bf16)
        for batches in ("padded", "packed")
        for as_bf16, dtype in dtypes
    ]
    if is_gpu and find_spec("liger_kernel"):
        ways.append(Way("TRL, packed, bf16, Liger", trl="liger", as_bf16=True))
    return ways


def check_same_step(model: Model, tokens: TokenizedPool, weights: Ragged, arguments: argparse.Namespace) -> float:
    """Largest relative difference of loss and gradient norm between ``exact`` and the others in float32, dropout off.

    Raises SystemExit above TOLERANCE.
    """
    others = [Way(NAIVE, dropout=0.0)]
    if arguments.trl:
        others += [Way(f"TRL, {batches}", dropout=0.0, trl=batches) for batches in ("padded", "packed")]
    ours = Way("exact", "exact", dropout=0.0).ready(model, tokens, weights, arguments)()
    largest = 0.0
    for way in others:
        found = way.ready(model, tokens, weights, arguments)()
        difference = max(abs(a - b) / abs(a) for a, b in zip(found, ours, strict=True))
        if not difference < TOLERANCE:
            raise SystemExit(
                f"{way.name} and exact differ by {difference:.1e} in loss or gradient norm ({found} and {ours}): they "
                "do not compute the same, so their speeds cannot be compared"
            )
        largest = max(largest, difference)
    return largest


def peak_of_step(model: Model, way: Way, tokens: TokenizedPool, weights: Ragged, arguments: argparse.Namespace) -> int:
    """Bytes at the peak of a way's first two steps in this process, after loading."""
    quiet_libraries()
    work = way.ready(model, tokens, weights, arguments)
    gc.collect()
    machine.reset_peak_memory(model.device)
    work()
    work()
    return machine.peak_memory(model.device)


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=48, help="conversations of the optimizer step")
    parser.add_argument("--selected", type=float, default=0.45, help="share of all tokens that is trained")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--pack-tokens", type=int, default=None, help="(default: the product's)")
    parser.add_argument("--repeats", type=int, default=machine.REPEATS)
    parser.add_argument(
        "--precisions", nargs="+", choices=("exact", "safe", "fast", "mixed"), default=["exact", "mixed"]
    )
    parser.add_argument("--trl", action="store_true", help="beside TRL's SFTTrainer (pip install trl)")
    add_model_options(parser)
    parser.add_argument("--without-memory", action="store_true", help="leave out the steps that measure peak memory")
    machine.add_options(parser)
    return parser


def figures_of(timings: machine.Timings, tokens: int, peaks: Mapping[str, int | None]) -> dict[str, dict[str, Any]]:
    """Of each way: tokens a second by the median step, times as fast as the naive ways, peak memory."""
    naive = [name for name in (NAIVE, NAIVE_BF16) if name in timings.seconds]
    return {
        name: {
            "seconds": seconds,
            "tokens_per_second": tokens / statistics.median(seconds),
            "times_as_fast": {
                n: asdict(machine.times_as_fast(timings.seconds[n], seconds)) for n in naive if n != name
            },
            "loss": timings.results[name][0],
            "peak_bytes": peaks.get(name),
        }
        for name, seconds in timings.seconds.items()
    }


def shown(ways: Mapping[str, Mapping[str, Any]], *, markdown: bool) -> str:
    naive = [name for name in (NAIVE, NAIVE_BF16) if name in ways]
    baseline = ways[naive[0]]["peak_bytes"]
    rows = []
    for name, way in ways.items():
        ratios = [
            "1"
            if n == name or n not in way["times_as_fast"]
            else "{median:.2f} ({low:.2f}–{high:.2f})".format(**way["times_as_fast"][n])
            for n in naive
        ]
        peak = way["peak_bytes"]
        memory = "–" if peak is None else f"{peak / 1024**3:.2f} GiB ({peak / baseline:.2f} ×)"
        rows.append([name, f"{way['tokens_per_second']:,.0f}", *ratios, f"{way['loss']:.4f}", memory])
    header = ["variant", "tokens/s", *(f"× {name}" for name in naive), "loss", "peak memory"]
    return machine.table(header, rows, markdown=markdown)


def main() -> None:
    arguments = options().parse_args()
    if arguments.repeats < 1 or arguments.rows < 1 or not 0 < arguments.selected <= 1:
        raise SystemExit("--repeats and --rows must be at least 1, --selected in (0, 1]")
    if arguments.random_model and arguments.model:
        raise SystemExit("--random-model has random weights: leave out --model")
    if arguments.random_model and arguments.trl and not arguments.tokenizer:
        raise SystemExit("--trl needs a tokenizer: give --tokenizer with --random-model")
    quiet_libraries()
    busy = machine.refuse_if_busy(allow=arguments.allow_busy)
    where = machine.describe(arguments.device)
    source = None if arguments.random_model else resolve_source(arguments.model or str(smollm2_folder()))
    model = Model(source, arguments.random_model, arguments.device)
    tokens, _ = rows_to_score(load_pool(arguments.pool), arguments.rows, model, arguments.tokenizer)
    weights = selected_weights(tokens, arguments.selected)
    difference = None if arguments.device.startswith("cuda") else check_same_step(model, tokens, weights, arguments)
    ways = planned_ways(arguments.device, arguments.precisions, with_trl=arguments.trl)
    steps = {way.name: way.ready(model, tokens, weights, arguments) for way in ways}
    for work in steps.values():
        work()
    timings = machine.interleaved(steps, arguments.repeats, arguments.device)
    if not all(math.isfinite(loss) for loss, _ in timings.results.values()):
        raise SystemExit("a step's loss is not finite")
    steps.clear()
    del work  # pyright: ignore[reportPossiblyUnboundVariable]  # it holds the last model
    gc.collect()
    torch.cuda.empty_cache()
    peaks: dict[str, int | None] = {}
    if not arguments.without_memory:
        peaks = {
            way.name: machine.in_fresh_process(peak_of_step, model, way, tokens, weights, arguments) for way in ways
        }
    measured = figures_of(timings, len(tokens.input_ids.values), peaks)
    setting = described(tokens, model, None, len(tokens.input_ids.values)) | {
        "selected_tokens": int(np.count_nonzero(weights.values)),
        "rank": arguments.rank,
        "pack_tokens": TrainingSettings(pack_tokens=arguments.pack_tokens).pack_tokens_on(
            arguments.device.split(":")[0]
        ),
    }
    figures = {
        "setting": setting,
        "largest_difference": difference,
        "others_cores": timings.others_cores,
        "ways": measured,
    }
    same = (
        ""
        if difference is None
        else (f"; float32 ways differ by {difference:.1e} at most in loss and gradient norm, dropout off")
    )
    facts = (
        "{model}, LoRA of rank {rank} on all linear layers; a step of {rows} rows, {tokens:,} tokens, "
        "{selected_tokens:,} of them selected, longest {longest_row:,}; the naive way computes {naive_padding:.2f} "
        "tokens a token; packs of at most {pack_tokens:,} tokens".format(**setting)
    )
    text = f"{facts}\n\nmedians of {arguments.repeats}, {timings.others_text}{same}\n\n"
    warnings = [*([busy] if busy else []), *timings.warnings(arguments.repeats)]
    text += shown(measured, markdown=arguments.markdown)
    machine.report("training", where, warnings, figures, text, arguments)


if __name__ == "__main__":
    main()
