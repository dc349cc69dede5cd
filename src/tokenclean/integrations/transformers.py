"""transformers' Trainer on weighted tokens: Σ w·ℓ / Σ |w| over the whole accumulated batch.

A ``compute_loss_func`` alone cannot do that: it is given neither the weights nor their sum over the batches that are
accumulated, since ``num_items_in_batch`` counts labels. So this is a Trainer with its collator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from tokenclean.errors import needs_extra
from tokenclean.integrations.weighted_rows import SMALLEST, UNTRAINED, WEIGHT, check_options, total_weight, weighted_row

with needs_extra("accelerate", "train", "transformers' Trainer"):
    import accelerate  # noqa: F401
from transformers import Trainer


@dataclass(frozen=True)
class WeightedCollator:
    """Pads rows of ``input_ids`` and ``token_weight`` (and ``labels``) on the right.

    Gives ``input_ids``, ``attention_mask``, ``labels`` (int64) and ``token_weight`` (float32), all (N, L), with L the
    longest row's length rounded up to ``pad_to_multiple_of``. Padding has the label −100 and the weight 0; an EOS
    token that is also ``pad_token_id`` keeps its label. Raises TableError as ``weighted_row``.
    """

    pad_token_id: int
    pad_to_multiple_of: int = 1

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        checked = [weighted_row(row, f"row {number} of a batch of {len(rows)}") for number, row in enumerate(rows)]
        mask = [{"attention_mask": [1] * len(row["input_ids"])} for row in checked]
        columns = {
            "input_ids": (torch.int64, self.pad_token_id),
            "attention_mask": (torch.int64, 0),
            "labels": (torch.int64, UNTRAINED),
            WEIGHT: (torch.float32, 0),
        }
        padded = [row | own for row, own in zip(checked, mask, strict=True)]
        return {name: self._pad([row[name] for row in padded], *kind) for name, kind in columns.items()}

    def _pad(self, values: Sequence[Sequence[float]], dtype: torch.dtype, filler: int) -> torch.Tensor:
        rows = [torch.tensor(row, dtype=dtype) for row in values]
        short = -max(map(len, rows)) % self.pad_to_multiple_of
        padded = pad_sequence(rows, batch_first=True, padding_value=filler)
        return torch.nn.functional.pad(padded, (0, short), value=filler)


class WeightedTrainer(Trainer):
    """A Trainer of causal language models that minimises Σ w·ℓ / Σ |w|, with ℓ the tokens' losses in nats.

    Takes ``Trainer``'s arguments; ``data_collator`` must be a ``WeightedCollator``. The sums go over all batches that
    ``gradient_accumulation_steps`` adds up, and over all processes. ``token_weight`` is kept with
    ``remove_unused_columns`` either way. Rows are not cut: the model sees them whole. An evaluation loss is the mean of
    its batches' losses, as in every Trainer.

    Raises RecipeError for another collator and for options that change the loss (``label_smoothing_factor``,
    ``compute_loss_func``, context parallelism), TableError for a row without weights.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        found = type(self.data_collator).__name__
        problem = f"data_collator must be a WeightedCollator, which keeps weights and tokens together, found a {found}"
        check_options(self, *([] if isinstance(self.data_collator, WeightedCollator) else [problem]))
        # compute_loss divides by the weights of the whole step, so the Trainer must not divide by its batches again.
        self.model_accepts_loss_kwargs = True

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The batch's share of the step's loss; ``num_items_in_batch``: Σ |w| of the step, else this batch's."""
        inputs = dict(inputs)
        labels, weights = inputs.pop("labels")[:, 1:], inputs.pop(WEIGHT)[:, 1:]
        outputs = model(**inputs)
        is_trained = weights != 0
        losses = cross_entropy(outputs.logits[:, :-1][is_trained].float(), labels[is_trained], reduction="none")
        total = weights.abs().sum() if num_items_in_batch is None else num_items_in_batch
        loss = (losses * weights[is_trained]).sum() / torch.as_tensor(total).clamp(min=SMALLEST)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())  # gradients are averaged over them
        return (loss, outputs) if return_outputs else loss

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        return total_weight(self, batch_samples, device)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        self._signature_columns = list({*(self._signature_columns or ()), WEIGHT})
