"""Forward and backward of one optimizer step in TRL's SFTTrainer, for ``benchmarks.training --trl``.

TRL builds the batches, the loss of each micro-batch over all of the step's tokens, and runs the backward pass, as in
its own training. Optimizer, logging and checkpoints are left out, as on the other sides.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from tokenclean import Ragged, TokenizedPool

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MICRO_BATCH = 8
UNTRAINED = -100
PACKED_TOKENS = 2048


def trl_forward(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tokens: TokenizedPool,
    weights: Ragged,
    *,
    packing: bool,
    as_bf16: bool,
    with_liger: bool,
) -> Callable[[], float]:
    """What computes the gradients of all rows and returns their mean loss in nats.

    ``weights``: 0 or 1 a token. ``packing``: TRL's own, whole rows in sequences of 2,048 tokens; otherwise batches of
    8 rows of about equal length, padded. ``as_bf16``: autocast. ``with_liger``: Liger's kernels. Gradient
    checkpointing, which TRL switches on by default, is off: it would cost time, and no other way has it.
    """
    from datasets import Dataset, disable_progress_bars
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    labels = [
        [int(token) if weight else UNTRAINED for token, weight in zip(tokens.input_ids[row], weights[row], strict=True)]
        for row in range(len(tokens))
    ]
    rows = Dataset.from_dict({"input_ids": [ids.tolist() for ids in tokens.input_ids], "labels": labels})
    longest = int(tokens.input_ids.lengths.max())
    config = SFTConfig(
        output_dir=tempfile.gettempdir(),
        per_device_train_batch_size=1 if packing else MICRO_BATCH,
        train_sampling_strategy="random" if packing else "group_by_length",
        max_length=max(PACKED_TOKENS, longest) if packing else longest,
        packing=packing,
        gradient_checkpointing=False,
        bf16=as_bf16,
        use_liger_kernel=with_liger,
        use_cpu=not next(model.parameters()).is_cuda,
        report_to="none",
        save_strategy="no",
    )
    with warnings.catch_warnings():
        # Of packing without flash attention: transformers' mask keeps rows apart, as the benchmark checks.
        warnings.simplefilter("ignore")
        trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
    prepared = trainer.accelerator.prepare(trainer.model)
    selected = torch.tensor(int((weights.values > 0).sum()))

    def forward() -> float:
        batches = trainer.get_train_dataloader()
        return sum(float(trainer.training_step(prepared, batch, num_items_in_batch=selected)) for batch in batches)

    return forward
