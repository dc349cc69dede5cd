"""The form of tinker: token ids with a weight each, of any sign."""

from __future__ import annotations

from pathlib import Path

from tokenclean.exporting.cleaned_file import CleanedDataset
from tokenclean.exporting.dataset_card import Card
from tokenclean.exporting.trainers.configuration import fill
from tokenclean.pool.intake import write_lines

_TRAIN = '''\
"""Fine-tune a LoRA on these token weights with tinker: python train.py [--model NAME] [--batch-size N] …

Written by tokenclean. The ids are final. The model must have the tokenizer that made them. Needs tinker,
tinker-cookbook and a key of the service (TINKER_API_KEY).
"""

import argparse
import json
from pathlib import Path

import tinker
import torch
from tinker_cookbook.supervised.common import datum_from_model_input_weights

parser = argparse.ArgumentParser()
parser.add_argument("--model", default={model}, help="base model, with the tokenizer that made the ids")
parser.add_argument("--batch-size", type=int, default=48, help="rows of an optimizer step")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--learning-rate", type=float, default=1e-4)
parser.add_argument("--rank", type=int, default=32, help="rank of the LoRA")
options = parser.parse_args()

with Path(__file__).with_name("train.jsonl").open(encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
client = tinker.ServiceClient().create_lora_training_client(base_model=options.model, rank=options.rank)
for epoch in range(options.epochs):
    for first in range(0, len(rows), options.batch_size):
        batch = rows[first : first + options.batch_size]
        # The service sums weighted losses; divided by the sum of the weights' sizes, a batch's loss is a mean.
        total = sum(abs(weight) for row in batch for weight in row["weights"])
        # The longest row has {longest} tokens; without a maximum length none is cut. A weight is that of its own token:
        # the function shifts.
        data = [
            datum_from_model_input_weights(
                tinker.ModelInput.from_ints(row["tokens"]), torch.tensor(row["weights"]) / total, max_length=None
            )
            for row in batch
        ]
        step = client.forward_backward(data, "cross_entropy")
        client.optim_step(tinker.AdamParams(learning_rate=options.learning_rate)).result()
        step.result()
        print("epoch", epoch, "rows", first, "to", first + len(batch))
print(client.save_weights_for_sampler(name="tokenclean").result().path)
'''


def write_tinker(cleaned: CleanedDataset, folder: Path, card: Card) -> str:
    """``train.jsonl`` with ``tokens`` and ``weights`` a row, and ``train.py``.

    tinker takes a float a token; below 0 it unlearns. ``datum_from_model_input_weights`` shifts by one itself, and sums
    losses over tokens by default, so the script divides by the batch's sum of weights.
    """
    rows = zip(*(cleaned.rows.column(name).to_pylist() for name in ("input_ids", "token_weight")), strict=True)
    write_lines(({"tokens": ids, "weights": weights} for ids, weights in rows), folder / "train.jsonl")
    fill(_TRAIN, folder / "train.py", card, cleaned.longest_row_tokens, quote=repr)
    return "python train.py"
