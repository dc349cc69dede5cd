"""Run a trainer's own command and record each batch that it feeds its model, in the environment that holds the trainer.

    python watched_training.py RECORD.jsonl MODULE ARGUMENTS...

MODULE may be a script of the current folder. A line of RECORD has ``input_ids``, ``labels`` and, where the batch has
them, ``attention_mask``, ``position_ids`` and ``loss_scale``. Nothing of tokenclean is imported, which the trainer's
environment need not hold.
"""

from __future__ import annotations

import json
import os
import runpy
import sys
from importlib.util import find_spec
from typing import Any

COLUMNS = ("input_ids", "labels", "attention_mask", "position_ids", "loss_scale")


def record_batches(path: str) -> None:
    """From now on every step of a transformers Trainer, which all these trainers are, writes its batch to ``path``."""
    if find_spec("unsloth"):
        import unsloth  # noqa: F401  (it changes transformers, and has to come first)
    from transformers import Trainer

    real = Trainer.training_step

    def training_step(self: Trainer, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        found = {name: inputs[name].tolist() for name in COLUMNS if inputs.get(name) is not None}
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")
        return real(self, model, inputs, *arguments, **options)

    Trainer.training_step = training_step


if __name__ == "__main__":
    record, module, *rest = sys.argv[1:]
    record_batches(record)
    sys.path.insert(0, os.getcwd())
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
