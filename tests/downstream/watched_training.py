"""Run a trainer's own command and record each batch that it feeds its model, in the environment that holds the trainer.

    python watched_training.py RECORD.jsonl MODULE ARGUMENTS...

MODULE may be a script of the current folder. A line of RECORD has ``input_ids``, ``labels`` and, where the batch has
them, ``attention_mask`` and ``position_ids``. Nothing of tokenclean is imported, which the trainer's environment need
not hold.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from typing import Any

import torch

COLUMNS = ("input_ids", "labels", "attention_mask", "position_ids")


def record_batches(path: str) -> None:
    """From now on every training forward pass of a Llama writes its batch to ``path``."""
    from transformers import LlamaForCausalLM

    real = torch.nn.Module.__call__

    def call(self: torch.nn.Module, *arguments: Any, **inputs: Any) -> Any:
        if isinstance(self, LlamaForCausalLM) and self.training:
            found = {name: inputs[name].tolist() for name in COLUMNS if inputs.get(name) is not None}
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(found) + "\n")
        return real(self, *arguments, **inputs)

    torch.nn.Module.__call__ = call


if __name__ == "__main__":
    record, module, *rest = sys.argv[1:]
    record_batches(record)
    sys.path.insert(0, os.getcwd())
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
