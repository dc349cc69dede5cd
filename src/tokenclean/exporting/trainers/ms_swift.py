"""The form of ms-swift: token ids with a loss scale each."""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from tokenclean.exporting.cleaned_file import CleanedDataset
from tokenclean.exporting.dataset_card import Card
from tokenclean.exporting.trainers.configuration import fill
from tokenclean.pool.intake import write_lines

_TEMPLATE = '''\
"""A template for ms-swift that adds nothing to rows of token ids: no chat tags, no BOS and no end token.

Written by tokenclean; train.sh names it.
"""

from swift.template import TemplateMeta, register_template

register_template(
    TemplateMeta("tokenclean", prefix=[], prompt=["{{QUERY}}"], chat_sep=None, suffix=[], auto_add_bos=False)
)
'''

_COMMAND = """\
#!/bin/sh
# Fine-tune on these token weights with ms-swift, from inside this folder: sh train.sh [further options of swift sft]
# Written by tokenclean. The ids are final; add learning rate, epochs and batch size of your own.
# --loss_scale default: some models would get another one by themselves. --is_binary_loss_scale false: the weights are
# numbers, not 0 and 1. The longest row has {longest} tokens; a longer one would be left out.
exec swift sft \\
    --model {model} \\
    --model_revision {revision} \\
    --use_hf true \\
    --dataset train.jsonl \\
    --external_plugins template.py \\
    --template tokenclean \\
    --loss_scale default \\
    --is_binary_loss_scale false \\
    --max_length {max_length} \\
    --truncation_strategy delete \\
    --output_dir model \\
    "$@"
"""


def write_ms_swift(cleaned: CleanedDataset, folder: Path, card: Card) -> str:
    """``train.jsonl``, a message of ``{token_ids, loss_scale}`` a row, a ``template.py`` that adds nothing, and
    ``train.sh``.

    ms-swift (4.2 or later) takes token ids as the content of a message and a weight a token. The weights are those of
    their own tokens; it shifts. A template of its own would add a BOS and, to rows that were cut, an end token. It
    trains on no weight below 0.
    """
    columns = ("input_ids", "token_weight")
    rows = zip(*(cleaned.rows.column(name).to_pylist() for name in columns), strict=True)
    messages = (
        [{"role": "user", "content": ""}, {"role": "assistant", "content": {"token_ids": ids, "loss_scale": weights}}]
        for ids, weights in rows
    )
    write_lines(({"messages": both} for both in messages), folder / "train.jsonl")
    (folder / "template.py").write_text(_TEMPLATE, encoding="utf-8")
    fill(_COMMAND, folder / "train.sh", card, cleaned.longest_row_tokens, quote=quote)
    return "sh train.sh"
