"""The form of TRL's SFTTrainer, which unsloth trains with too: labels, and a script that trains on them."""

from __future__ import annotations

from pathlib import Path

from tokenclean.exporting.cleaned_file import CleanedDataset
from tokenclean.exporting.dataset_card import Card
from tokenclean.exporting.trainers.configuration import fill

_TRL = '''\
"""Fine-tune on these token labels with TRL: python train.py [--packing] [--model NAME] [--output FOLDER].

Written by tokenclean. The ids and labels are final: TRL adds no chat template and no token to them.
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from transformers.utils import is_torch_bf16_gpu_available
from trl import SFTConfig, SFTTrainer

parser = argparse.ArgumentParser()
parser.add_argument("--model", default={model}, help="base model, with the tokenizer that made the ids")
parser.add_argument("--revision", default={revision}, help="the model's branch, tag or commit")
parser.add_argument("--output", default="model", help="folder of the trained model")
parser.add_argument("--packing", action="store_true", help="several whole rows in one sequence")
options = parser.parse_args()

rows = load_dataset("parquet", data_files=str(Path(__file__).with_name("train.parquet")), split="train")
config = SFTConfig(
    output_dir=options.output,
    # The longest row has {longest} tokens. TRL cuts longer rows at max_length without a word (default: 1024).
    max_length={max_length},
    packing=options.packing,
    packing_strategy="bfd",  # keeps rows whole; "wrapped" and "bfd_split" cut them
    completion_only_loss=True,  # TRL before 1.7 reads completion_mask, which marks the same tokens as labels
    bf16=is_torch_bf16_gpu_available(),  # TRL's default, where the machine can
    model_init_kwargs={{"revision": options.revision}},
)
trainer = SFTTrainer(model=options.model, args=config, train_dataset=rows)
trainer.train()
trainer.save_model()
'''

_UNSLOTH = '''\
"""Fine-tune a LoRA on these token labels with unsloth: python train.py [--packing] [--model NAME] [--output FOLDER].

Written by tokenclean. The ids and labels are final: no chat template is applied and no token added. Do not call
`train_on_responses_only` on this trainer: it would replace the labels.
"""

import argparse
from pathlib import Path

from unsloth import FastLanguageModel  # before trl, which it changes
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

parser = argparse.ArgumentParser()
parser.add_argument("--model", default={model}, help="base model, with the tokenizer that made the ids")
parser.add_argument("--revision", default={revision}, help="the model's branch, tag or commit")
parser.add_argument("--output", default="model", help="folder of the trained adapter")
parser.add_argument("--packing", action="store_true", help="several whole rows in one sequence")
options = parser.parse_args()

# The longest row has {longest} tokens. Longer rows would be cut at max_length without a word.
model, tokenizer = FastLanguageModel.from_pretrained(
    options.model, revision=options.revision, max_seq_length={max_length}, load_in_4bit=False
)
model = FastLanguageModel.get_peft_model(model)
rows = load_dataset("parquet", data_files=str(Path(__file__).with_name("train.parquet")), split="train")
config = SFTConfig(
    output_dir=options.output,
    max_length={max_length},
    packing=options.packing,
    packing_strategy="bfd",  # keeps rows whole; "wrapped" and "bfd_split" cut them
    completion_only_loss=True,
)
trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
trainer.train()
trainer.save_model()
'''


def write_trl(cleaned: CleanedDataset, folder: Path, card: Card) -> str:
    """``train.parquet`` (``input_ids``, ``labels``, ``completion_mask``) and ``train.py``, which trains on it.

    TRL's SFTTrainer (1.7 or later; 0.17 to 1.6 through ``completion_mask``) takes ``input_ids`` and ``labels`` as they
    are, adds neither template nor EOS, and ignores other columns. It cuts every row at ``max_length`` (default: 1,024),
    packing included.
    """
    cleaned.write_columns(("input_ids", "labels", "completion_mask"), folder / "train.parquet")
    fill(_TRL, folder / "train.py", card, cleaned.longest_row_tokens, quote=repr)
    return "python train.py"


def write_unsloth(cleaned: CleanedDataset, folder: Path, card: Card) -> str:
    """``train.parquet`` as for TRL, and a ``train.py`` that loads the model with unsloth.

    unsloth trains with TRL's SFTTrainer, so the same holds: the columns are taken as they are and cut at
    ``max_length``.
    """
    cleaned.write_columns(("input_ids", "labels", "completion_mask"), folder / "train.parquet")
    fill(_UNSLOTH, folder / "train.py", card, cleaned.longest_row_tokens, quote=repr)
    return "python train.py"
