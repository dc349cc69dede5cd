"""What the benchmark of scoring compares: the ways to score, the models and rows that they score.

Naive: float32 (on a GPU bf16 weights), dataset order, batches of 6 padded to the longest, full float32 logits of which
the model computes its mean loss, then a second cross-entropy for each token. Ours: ``scoring.scorer.Scorer``.
"""

from __future__ import annotations

import argparse
import copy
import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks import machine
from tokenclean import Pool, Ragged, TokenizedPool, __version__, tokenize_pool
from tokenclean.experiment.demo import pool_path
from tokenclean.models.device import cache_folder, cpu_multiplies_bf16
from tokenclean.models.kernels import cpu as cpu_kernels
from tokenclean.models.loading.load import (
    ModelSource,
    load_config,
    load_model,
    load_tokenizer,
    resolve_source,
    source_fingerprint,
)
from tokenclean.recipe import training_from
from tokenclean.scoring.scorer import Scorer
from tokenclean.store import array_hash, fingerprint

SEED = 0
NAIVE, NAIVE_BF16 = "naive", "naive bf16"
NAIVE_BATCH = 6
MAX_LENGTH = 2048
CHARACTERS_A_TOKEN = 4

REFERENCE_ROWS = 128
REFERENCE_TRAINING = {"batch_size": 8, "learning_rate": 3e-4, "lora": {"rank": 64, "dropout": 0.0}}

SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": True},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24}
    | {"num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": True},
    "8b": {"hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": False},
    "70b": {"hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64}
    | {"num_key_value_heads": 8, "vocab_size": 128_256, "tie_word_embeddings": False},
}
"""Llamas for ``--random-model``, in the sizes of Llama 3."""

Pass = Callable[[TokenizedPool], np.ndarray]
"""The losses of a pool's response tokens, flat, float32, NaN off the response."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Which rows and which model are measured, and where; the model may be a random one."""
    add_real_model_options(parser)
    parser.add_argument("--random-model", choices=SHAPES, default=None, help="a Llama of random weights, no download")
    parser.add_argument("--tokenizer", default=None, help="for --random-model (default: random ids, real lengths)")


def add_real_model_options(parser: argparse.ArgumentParser) -> None:
    """Which rows and which model are measured, and where."""
    parser.add_argument("--pool", default=str(pool_path()), help="pool file (default: the shipped one)")
    parser.add_argument("--model", default=None, help="model folder or Hub id (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")


@dataclass(frozen=True)
class Model:
    """What is scored: a model by its source, or a random Llama by its shape; float32, on ``device``."""

    source: ModelSource | None
    shape: str | None
    device: str

    def load(self) -> torch.nn.Module:
        if self.source is not None:
            return load_model(self.source, device=self.device)
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(SEED)
        with torch.device(self.device):
            return LlamaForCausalLM(LlamaConfig(**SHAPES[self.shape or ""], max_position_embeddings=4096)).eval()

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        if self.source is None:
            return SHAPES[self.shape or ""]["vocab_size"]
        return load_config(self.source).get_text_config().vocab_size

    def __str__(self) -> str:
        return f"random Llama {self.shape}" if self.source is None else shown(self.source)


def shown(source: ModelSource) -> str:
    """A source as it may be printed: of a folder on this machine the name alone."""
    names = (name for name in (source.base, source.adapter) if name is not None)
    return " + ".join(Path(name).name if Path(name).exists() else name for name in names)


@dataclass(frozen=True)
class Way:
    """A way to score: ``precision`` None is naive. ``compile`` and ``expected_tokens`` are Scorer's."""

    name: str
    precision: str | None = None
    compile: str = "off"
    expected_tokens: int = 0

    @property
    def peak_dtype(self) -> str:
        """The dtype of the matrix product against which its utilisation is counted."""
        return "float32" if self.name == NAIVE or self.precision == "exact" else "bfloat16"

    def ready(self, model: torch.nn.Module, longest_row: int) -> tuple[Pass, Callable[[], dict[str, Any]]]:
        """The pass, ready to run, and what gives its policy once it has run. ``model``: in bf16 for NAIVE_BF16."""
        if self.precision is None:
            return (lambda tokens: naive_losses(model, tokens)), lambda: {"batch_rows": NAIVE_BATCH}
        scorer = self.scorer(model, longest_row)
        return (lambda tokens: scorer.score(tokens)["loss"].values), lambda: scorer.policy

    def scorer(self, model: torch.nn.Module, longest_row: int) -> Scorer:
        """For a precision of ours."""
        assert self.precision is not None
        return Scorer(
            model,
            precision=self.precision,
            longest_row=longest_row,
            compile=self.compile,
            expected_tokens=self.expected_tokens,
        )


def naive_losses(model: torch.nn.Module, tokens: TokenizedPool) -> np.ndarray:
    """The naive way, as the module's docstring has it: float32 (T,), NaN off the response."""
    device = next(model.parameters()).device
    losses = np.full(len(tokens.input_ids.values), np.nan, dtype=np.float32)
    offsets = tokens.input_ids.offsets
    for first in range(0, len(tokens), NAIVE_BATCH):
        rows = range(first, min(first + NAIVE_BATCH, len(tokens)))
        ids = torch.zeros(len(rows), int(tokens.input_ids.lengths[first : rows.stop].max()), dtype=torch.int64)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, row in enumerate(rows):
            row_ids, is_target = torch.from_numpy(tokens.input_ids[row]), torch.from_numpy(tokens.is_response[row])
            ids[i, : len(row_ids)], mask[i, : len(row_ids)] = row_ids, 1
            labels[i, : len(row_ids)] = row_ids.masked_fill(~is_target, -100)
        ids, mask, labels = ids.to(device), mask.to(device), labels.to(device)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask, labels=labels).logits.float()
            flat = cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
        per_row = flat.view(len(rows), -1).cpu().numpy()
        for i, row in enumerate(rows):
            losses[offsets[row] + 1 : offsets[row + 1]] = per_row[i, : offsets[row + 1] - offsets[row] - 1]
    losses[~tokens.is_response.values] = np.nan
    return losses


def in_bf16(model: torch.nn.Module) -> torch.nn.Module:
    """A copy with bf16 weights and float32 buffers, as ``from_pretrained`` loads one; no float32 copy on the way."""
    made = {id(p): torch.nn.Parameter(p.detach().to(torch.bfloat16), requires_grad=False) for p in model.parameters()}
    return copy.deepcopy(model, made)


def kernel_product(rows: torch.Tensor, weight: torch.Tensor) -> Callable[[], object]:
    """As ``machine.torch_product``, by the project's own CPU kernels; their output is float32 under bf16 too."""
    packed = cpu_kernels.pack(weight.float(), as_bf16=weight.dtype == torch.bfloat16)
    rows = rows.float()
    return lambda: cpu_kernels.linear(rows, packed, len(weight), None)


def multiplies_bf16(device: str) -> bool:
    """Whether bf16 is faster than float32 there."""
    return device.startswith("cuda") or cpu_multiplies_bf16()


def product_peaks(device: str) -> dict[str, dict[str, float]]:
    """GFLOP/s of the matrix products at hand, by dtype and by whose product it is; bf16's where it is faster."""
    products = {"torch": machine.torch_product}
    if device == "cpu" and cpu_kernels.missing_kernels() is None:
        products["own kernels"] = kernel_product
    return {
        dtype: {name: machine.gemm_gflops(device, dtype, product) for name, product in products.items()}
        for dtype in ("float32", *(("bfloat16",) if multiplies_bf16(device) else ()))
    }


def draw(pool: Pool, rows: int) -> tuple[Pool, Pool]:
    """``rows`` rows drawn with the seed, and up to REFERENCE_ROWS others; both in file order."""
    order = np.random.Generator(np.random.PCG64(SEED)).permutation(len(pool))
    drawn, others = order[:rows], order[rows : rows + REFERENCE_ROWS]
    return pool.take(np.sort(drawn).tolist()), pool.take(np.sort(others).tolist())


def random_tokens(pool: Pool, vocabulary: int) -> TokenizedPool:
    """Random ids with the pool's lengths, without a tokenizer: a token for every CHARACTERS_A_TOKEN characters."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    labels = []
    for row in pool:
        if row.tokens is not None:
            labels.append(np.array(row.tokens.is_response[:MAX_LENGTH]))
            continue
        turns = [(-(-len(t.content) // CHARACTERS_A_TOKEN), t.role == "assistant" and t.is_trained) for t in row.turns]
        label = np.repeat([is_target for _, is_target in turns], [max(count, 1) for count, _ in turns])[:MAX_LENGTH]
        label[0] = False
        labels.append(label)
    is_response = Ragged.from_rows(labels, np.bool_)
    nowhere = is_response.with_values(np.zeros(len(is_response.values), dtype=np.int32))
    return TokenizedPool(
        input_ids=is_response.with_values(generator.integers(0, vocabulary, len(is_response.values))),
        is_response=is_response,
        char_start=nowhere,
        char_end=nowhere,
        ids=tuple(row.id for row in pool),
        sources=tuple(row.source for row in pool),
        contents=((),) * len(pool),
        is_truncated=np.zeros(len(pool), dtype=bool),
        unusable=(),
    )


def rows_to_score(
    pool: Pool, rows: int, model: Model, tokenizer: str | None
) -> tuple[TokenizedPool, TokenizedPool | None]:
    """The drawn rows that have a target, and other rows to train a reference on; None for a random model.

    A random model without ``tokenizer`` gets random ids. Raises SystemExit where there is nothing to score.
    """
    drawn, others = draw(pool, rows)
    remaining = None
    if model.source is not None:
        loaded = load_tokenizer(model.source)
        tokens = tokenize_pool(drawn, loaded)
        remaining = tokenize_pool(others, loaded) if len(others) else None
    elif tokenizer is not None:
        tokens = tokenize_pool(drawn, load_tokenizer(tokenizer))
    else:
        tokens = random_tokens(drawn, model.vocabulary)
    tokens = tokens.take(np.flatnonzero(tokens.is_response.row_sums() > 0))
    if len(tokens) == 0:
        raise SystemExit("no row has a response token to score; give another --pool, or more --rows")
    if (largest := int(tokens.input_ids.values.max())) >= model.vocabulary:
        raise SystemExit(f"token id {largest}: the model knows {model.vocabulary} only; give another --tokenizer")
    return tokens, remaining


def described(
    tokens: TokenizedPool, model: Model, reference: ModelSource | None, expected_tokens: int
) -> dict[str, Any]:
    """What was scored; ``naive_padding``: tokens that the naive way computes, for each token of the rows."""
    lengths = tokens.input_ids.lengths
    batches = (lengths[start : start + NAIVE_BATCH] for start in range(0, len(lengths), NAIVE_BATCH))
    return {
        "model": str(model),
        "reference": None if reference is None else shown(reference),
        "rows": len(tokens),
        "tokens": int(lengths.sum()),
        "response_tokens": int(tokens.is_response.values.sum()),
        "longest_row": int(lengths.max()),
        "expected_tokens": expected_tokens,
        "naive_padding": sum(int(batch.max()) * len(batch) for batch in batches) / int(lengths.sum()),
    }


def most_padded_batch(tokens: TokenizedPool) -> TokenizedPool:
    """The naive batch that takes the most memory."""
    starts = range(0, len(tokens), NAIVE_BATCH)
    lengths = tokens.input_ids.lengths
    padded = [lengths[s : s + NAIVE_BATCH].max() * len(lengths[s : s + NAIVE_BATCH]) for s in starts]
    first = starts[int(np.argmax(padded))]
    return tokens.take(list(range(first, min(first + NAIVE_BATCH, len(tokens)))))


def useful_flop(model: Any, tokens: TokenizedPool) -> float:
    """FLOP that the losses need without padding: body 2·parameters a token, causal attention 2·L²·heads·head_dim a
    layer and row, head 2·V·H a response token. Embeddings and norms' activations count nothing."""
    head = model.get_output_embeddings().weight
    outside = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)} | {id(head)}
    body = sum(p.numel() for p in model.parameters() if id(p) not in outside)
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    lengths = tokens.input_ids.lengths.astype(np.float64)
    attention = 2.0 * float((lengths**2).sum()) * width * config.num_hidden_layers
    return 2.0 * body * float(lengths.sum()) + attention + 2.0 * head.numel() * int(tokens.is_response.values.sum())


def reference_model(model: Model, named: str | None, tokens: TokenizedPool | None) -> ModelSource | None:
    """The named reference, or one trained on ``tokens``; None for ``none``, a random model or no token to train on."""
    if named == "none" or model.source is None:
        return None
    if named is not None:
        return resolve_source(named, base=model.source.base)
    if tokens is None or not tokens.is_response.values.any():
        return None
    return ModelSource(model.source.base, str(trained_reference(model.source, tokens, model.device)))


def trained_reference(
    source: ModelSource, tokens: TokenizedPool, device: str, *, quantization: str = "none", seed: int = SEED
) -> Path:
    """A LoRA that the product trained on ``tokens`` for a few steps, from the cache where it was made before."""
    from tokenclean.training.fine_tune import train

    settings = training_from(REFERENCE_TRAINING | {"quantization": quantization})
    ids, labels = tokens.input_ids, tokens.is_response
    made_of = [source_fingerprint(source), array_hash(ids.values, ids.offsets, labels.values)]
    key = fingerprint([*made_of, settings.model_dump(mode="json"), seed, __version__])
    folder = cache_folder() / "benchmarks" / f"reference-{key[:16]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        weights = labels.map_values(lambda values: values.astype(np.float32))
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            train(source, ids, weights, settings, Path(scratch) / "adapter", seed=seed, device=device)
            (Path(scratch) / "adapter").rename(folder)
    return folder


def peak_of_pass(model: Model, way: Way, tokens: TokenizedPool) -> int:
    """Bytes at the peak of a way's first pass in this process, its preparation and the loaded model included."""
    loaded = model.load()
    if way.name == NAIVE_BF16:
        loaded = in_bf16(loaded)
        gc.collect()
    machine.reset_peak_memory(model.device)
    work, _ = way.ready(loaded, int(tokens.input_ids.lengths.max()))
    work(tokens)
    return machine.peak_memory(model.device)
