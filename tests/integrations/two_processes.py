"""What each of two processes runs: one step of WeightedSFTTrainer; the first writes its loss and gradients.

torchrun … two_processes.py MODEL ROWS.json OUT.pt ACCUMULATED
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from datasets import Dataset
from trainer_step import STEP, run_step
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.sft_config import SFTConfig

from tokenclean.integrations.trl import WeightedSFTTrainer


def main(model: str, rows: Path, out: Path, accumulated: int) -> None:
    dataset = Dataset.from_list(json.loads(rows.read_text(encoding="utf-8")))
    rank = os.environ["RANK"]
    options = STEP | {"gradient_checkpointing": False, "ddp_backend": "gloo"}
    config = SFTConfig(
        str(out.with_name(f"trainer-{rank}")),
        per_device_train_batch_size=len(dataset) // (2 * accumulated),
        gradient_accumulation_steps=accumulated,
        **options,
    )
    trainer = WeightedSFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=config,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(model, pad_token="</s>"),
    )
    found = run_step(trainer)
    torch.save((found.loss, found.gradients), out.with_suffix(f".{rank}.pt"))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
